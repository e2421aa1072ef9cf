//! One task owns one sequence and a span of lane blocks, one channel a lane. It walks the chunks
//! in order and, within a chunk, its blocks: neighbours in memory, so that the machine sees whole
//! rows being read. In a block's chunk, groups of [`GROUP`] states run through all positions with
//! their states in registers, while step sizes and outputs stay in the first-level cache.

mod positions;

use super::super::{
    rows::{Columns, Output},
    simd::{Kernel, dispatch, math::TO_EXP2, prefetch},
};
use super::*;
use positions::{finish, prepare};
use rayon::prelude::*;

/// Most lane blocks of one task.
const MAX_SPAN: usize = 8;

/// Runs the scan; see [`ScanInputs`] for what it computes.
///
/// With `save_checkpoints` the states that [`backward`](super::backward) starts from are returned
/// too: `d_state / CHECKPOINT_INTERVAL` times the memory of `u`.
///
/// # Panics
/// If an input's size does not fit `dims`.
pub fn forward(inputs: &ScanInputs, save_checkpoints: bool) -> ScanOutputs {
    inputs.check("selective_scan");
    let dims = inputs.dims;
    if dims.seq_len == 1 && !save_checkpoints {
        let zeros = || vec![0.0; dims.state_len()];
        let mut state = inputs.initial_state.map_or_else(zeros, <[f32]>::to_vec);
        return ScanOutputs {
            y: step(inputs, &mut state),
            final_state: state,
            checkpoints: None,
        };
    }
    let ScanDims {
        batch,
        d_inner,
        d_state,
        ..
    } = dims;

    let mut y = Output::new(dims.rows(), d_inner);
    let mut final_state = Output::new(batch, d_inner * d_state);
    let mut checkpoints =
        save_checkpoints.then(|| Output::new(batch * dims.checkpoints() * d_state, d_inner));

    let sinks = Sinks {
        y: y.columns(),
        final_state: final_state.columns(),
        checkpoints: checkpoints.as_mut().map(Output::columns),
    };
    // Four tasks a thread keep all busy to the end. Channels do not meet, so that the cut is free
    // to follow the machine.
    let tasks = 4 * rayon::current_num_threads();
    let span = (batch * dims.blocks() / tasks).clamp(1, MAX_SPAN);
    let spans = dims.blocks().div_ceil(span);
    (0..batch * spans).into_par_iter().for_each(|task| {
        let (batch, first) = (task / spans, task % spans * span);
        let blocks = first..dims.blocks().min(first + span);
        dispatch(Task {
            inputs,
            sinks: &sinks,
            batch,
            blocks,
        });
    });
    // SAFETY: the tasks are done, and together they own all channels of all sequences.
    unsafe {
        ScanOutputs {
            y: y.finish(),
            final_state: final_state.finish(),
            checkpoints: checkpoints.map(|checkpoints| checkpoints.finish()),
        }
    }
}

struct Sinks<'a> {
    y: Columns<'a>,
    final_state: Columns<'a>,
    checkpoints: Option<Columns<'a>>,
}

struct Task<'a> {
    inputs: &'a ScanInputs<'a>,
    sinks: &'a Sinks<'a>,
    batch: usize,
    blocks: Range<usize>,
}

/// What one lane block carries from chunk to chunk, one vector a state.
struct Block {
    channels: Range<usize>,
    scaled_a: Vec<Lanes>,
    state: Vec<Lanes>,
}

/// One chunk of one lane block.
struct Chunk {
    positions: [Position; CHECKPOINT_INTERVAL],
    resets: [bool; CHECKPOINT_INTERVAL],
}

/// One position of it.
#[derive(Clone, Copy)]
struct Position {
    dt: Lanes,
    dt_u: Lanes,
    y: Lanes,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (inputs, sinks, batch) = (self.inputs, self.sinks, self.batch);
        let dims = &inputs.dims;
        let n = dims.d_state;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in self.blocks.clone() {
            blocks.push(self.block::<V>(block));
        }
        let zero = Position {
            dt: Lanes::ZERO,
            dt_u: Lanes::ZERO,
            y: Lanes::ZERO,
        };
        let mut chunk = Chunk {
            positions: [zero; CHECKPOINT_INTERVAL],
            resets: [false; CHECKPOINT_INTERVAL],
        };

        for index in 0..dims.checkpoints() {
            let rows = chunk_rows(dims, batch, index);
            inputs.resets(rows.clone(), &mut chunk.resets);
            for Block {
                channels,
                scaled_a,
                state,
            } in &mut blocks
            {
                if let Some(checkpoints) = &sinks.checkpoints {
                    let first = (batch * dims.checkpoints() + index) * n;
                    for (row, lanes) in (first..).zip(state.iter()) {
                        // SAFETY: this task alone writes these channels of this sequence.
                        unsafe { checkpoints.write(row, channels, V::load(lanes)) };
                    }
                }
                prepare::<V>(inputs, &rows, channels, &mut chunk);
                let grouped = n - n % GROUP;
                for first in (0..grouped).step_by(GROUP) {
                    self.ask_to_save(index, first..first + GROUP, channels.start);
                    let ahead = self.ahead(&rows, first, channels.start);
                    advance::<V, GROUP>(inputs, &rows, first, scaled_a, state, &mut chunk, &ahead);
                }
                for first in grouped..n {
                    self.ask_to_save(index, first..first + 1, channels.start);
                    let ahead = self.ahead(&rows, first, channels.start);
                    advance::<V, 1>(inputs, &rows, first, scaled_a, state, &mut chunk, &ahead);
                }
                finish::<V>(inputs, sinks, &rows, channels, &chunk);
            }
        }
        for Block {
            channels, state, ..
        } in &blocks
        {
            // SAFETY: this task alone writes the final states of these channels.
            unsafe { sinks.final_state.write_transposed(batch, channels, state) };
        }
    }
}

impl Task<'_> {
    /// What the pass of the states from `first` asks for: inputs of the next chunk, and room for the
    /// outputs of this one.
    #[inline(always)]
    fn ahead(&self, rows: &Range<usize>, first: usize, channel: usize) -> Ahead<1> {
        let inputs = self.inputs;
        let next = rows.start + CHECKPOINT_INTERVAL;
        let columns = [
            Some(inputs.u.line(next, channel)),
            Some(inputs.delta.line(next, channel)),
            inputs.z.map(|z| z.line(next, channel)),
            Some(self.sinks.y.line(rows.start, channel)),
        ];
        let d_state = inputs.dims.d_state;
        Ahead::share(
            columns.into_iter().flatten(),
            turn(first, d_state),
            turns(d_state),
        )
    }

    /// Asks for the room of some of the states before the next chunk.
    #[inline(always)]
    fn ask_to_save(&self, index: usize, states: Range<usize>, channel: usize) {
        if let Some(checkpoints) = &self.sinks.checkpoints {
            let dims = &self.inputs.dims;
            let row = (self.batch * dims.checkpoints() + index + 1) * dims.d_state;
            let line = checkpoints.line(row, channel);
            states.for_each(|state| prefetch(line.row(state)));
        }
    }

    #[inline(always)]
    fn block<V: Vector>(&self, block: usize) -> Block {
        let ScanDims {
            d_inner, d_state, ..
        } = self.inputs.dims;
        let channels = self.inputs.dims.channels(block);
        let mut scaled_a = vec![Lanes::ZERO; d_state];
        load_transposed(self.inputs.a, d_state, &channels, &mut scaled_a);
        for lanes in &mut scaled_a {
            (V::load(lanes) * V::splat(TO_EXP2)).store(lanes);
        }
        let mut state = vec![Lanes::ZERO; d_state];
        if let Some(initial) = self.inputs.initial_state {
            let states = self.batch * d_inner * d_state..(self.batch + 1) * d_inner * d_state;
            load_transposed(&initial[states], d_state, &channels, &mut state);
        }
        Block {
            channels,
            scaled_a,
            state,
        }
    }
}

/// Takes the `G` states from `first` through the chunk.
#[inline(always)]
fn advance<V: Vector, const G: usize>(
    inputs: &ScanInputs,
    rows: &Range<usize>,
    first: usize,
    scaled_a: &[Lanes],
    state: &mut [Lanes],
    chunk: &mut Chunk,
    ahead: &Ahead<1>,
) {
    let mut h = [V::zero(); G];
    let mut rates = [V::zero(); G];
    for g in 0..G {
        h[g] = V::load(&state[first + g]);
        rates[g] = V::load(&scaled_a[first + g]);
    }
    let (b, c) = (
        inputs.b.column(rows, &(first..first + G)),
        inputs.c.column(rows, &(first..first + G)),
    );
    let positions = chunk.positions[..rows.len()].iter_mut();
    for (t, (at, &reset)) in positions.zip(&chunk.resets).enumerate() {
        ahead.ask(t);
        if reset {
            h = [V::zero(); G];
        }
        let dt = V::load(&at.dt);
        let dt_u = V::load(&at.dt_u);
        let mut y = V::load(&at.y);
        let decay = decays(dt, rates);
        for g in 0..G {
            h[g] = decay[g].mul_add(h[g], dt_u * V::splat(b.get(t, g)));
            y = h[g].mul_add(V::splat(c.get(t, g)), y);
        }
        y.store(&mut at.y);
    }
    for g in 0..G {
        h[g].store(&mut state[first + g]);
    }
}
