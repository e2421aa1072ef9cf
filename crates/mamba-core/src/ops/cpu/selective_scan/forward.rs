//! One task owns one sequence and a span of lane blocks, one channel a lane. It walks the chunks
//! in order and, within a chunk, its blocks: neighbours in memory, so that the machine sees whole
//! rows being read. In a block's chunk, groups of [`GROUP`] states run through all positions with
//! their states in registers, while step sizes and outputs stay in the first-level cache.

use super::super::{
    rows::{Columns, Output},
    simd::{
        Kernel, dispatch,
        math::{TO_EXP2, silu, softplus},
    },
};
use super::*;
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
    dt: [Lanes; CHECKPOINT_INTERVAL],
    dt_u: [Lanes; CHECKPOINT_INTERVAL],
    y: [Lanes; CHECKPOINT_INTERVAL],
    resets: [bool; CHECKPOINT_INTERVAL],
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self {
            inputs,
            sinks,
            batch,
            ..
        } = self;
        let dims = &inputs.dims;
        let n = dims.d_state;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in self.blocks.clone() {
            blocks.push(self.block::<V>(block));
        }
        let zeros = [Lanes::ZERO; CHECKPOINT_INTERVAL];
        let resets = [false; CHECKPOINT_INTERVAL];
        let mut chunk = Chunk {
            dt: zeros,
            dt_u: zeros,
            y: zeros,
            resets,
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
                    advance::<V, GROUP>(inputs, &rows, first, scaled_a, state, &mut chunk);
                }
                for first in grouped..n {
                    advance::<V, 1>(inputs, &rows, first, scaled_a, state, &mut chunk);
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

/// Step sizes, and outputs as far as the states have no part in them. Asks for what comes after.
#[inline(always)]
fn prepare<V: Vector>(
    inputs: &ScanInputs,
    rows: &Range<usize>,
    channels: &Range<usize>,
    chunk: &mut Chunk,
) {
    let grouped = rows.len() - rows.len() % GROUP;
    for t in (0..grouped).step_by(GROUP) {
        prepare_together::<V, GROUP>(inputs, rows.start, t, channels, chunk);
    }
    for t in grouped..rows.len() {
        prepare_together::<V, 1>(inputs, rows.start, t, channels, chunk);
    }
}

/// [`prepare`] for `N` positions from `first`.
#[inline(always)]
fn prepare_together<V: Vector, const N: usize>(
    inputs: &ScanInputs,
    start: usize,
    first: usize,
    channels: &Range<usize>,
    chunk: &mut Chunk,
) {
    let d = load_channels::<V>(inputs.d, channels);
    let bias = load_channels::<V>(inputs.delta_bias, channels);
    let mut dt = [V::zero(); N];
    for i in 0..N {
        let row = start + first + i;
        if let Some(z) = &inputs.z {
            inputs.prefetch(z, row, channels);
        }
        inputs.prefetch(&inputs.u, row + CHECKPOINT_INTERVAL, channels);
        inputs.prefetch(&inputs.delta, row + CHECKPOINT_INTERVAL, channels);
        dt[i] = V::load_padded(inputs.delta.get(row, channels.clone())) + bias;
    }
    if inputs.delta_softplus {
        dt = softplus(Lockstep(dt)).0;
    }
    for i in 0..N {
        let (t, row) = (first + i, start + first + i);
        let u = V::load_padded(inputs.u.get(row, channels.clone()));
        dt[i].store(&mut chunk.dt[t]);
        (dt[i] * u).store(&mut chunk.dt_u[t]);
        (d * u).store(&mut chunk.y[t]);
    }
}

/// Gates the outputs and writes them.
#[inline(always)]
fn finish<V: Vector>(
    inputs: &ScanInputs,
    sinks: &Sinks,
    rows: &Range<usize>,
    channels: &Range<usize>,
    chunk: &Chunk,
) {
    let grouped = rows.len() - rows.len() % GROUP;
    for t in (0..grouped).step_by(GROUP) {
        finish_together::<V, GROUP>(inputs, sinks, rows.start, t, channels, chunk);
    }
    for t in grouped..rows.len() {
        finish_together::<V, 1>(inputs, sinks, rows.start, t, channels, chunk);
    }
}

/// [`finish`] for `N` positions from `first`.
#[inline(always)]
fn finish_together<V: Vector, const N: usize>(
    inputs: &ScanInputs,
    sinks: &Sinks,
    start: usize,
    first: usize,
    channels: &Range<usize>,
    chunk: &Chunk,
) {
    let mut gate = [V::splat(1.0); N];
    if let Some(z) = inputs.z {
        for i in 0..N {
            gate[i] = V::load_padded(z.get(start + first + i, channels.clone()));
        }
        gate = silu(Lockstep(gate)).0;
    }
    for i in 0..N {
        let y = V::load(&chunk.y[first + i]) * gate[i];
        // SAFETY: this task alone writes these channels of this sequence.
        unsafe { sinks.y.write(start + first + i, channels, y) };
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
) {
    let mut h = [V::zero(); G];
    let mut rates = [V::zero(); G];
    for g in 0..G {
        h[g] = V::load(&state[first + g]);
        rates[g] = V::load(&scaled_a[first + g]);
    }
    for (t, row) in rows.clone().enumerate() {
        if chunk.resets[t] {
            h = [V::zero(); G];
        }
        let b = inputs.b.get(row, first..first + G);
        let c = inputs.c.get(row, first..first + G);
        let dt = V::load(&chunk.dt[t]);
        let dt_u = V::load(&chunk.dt_u[t]);
        let mut y = V::load(&chunk.y[t]);
        let decay = decays(dt, rates);
        for g in 0..G {
            h[g] = decay[g].mul_add(h[g], dt_u * V::splat(b[g]));
            y = h[g].mul_add(V::splat(c[g]), y);
        }
        y.store(&mut chunk.y[t]);
    }
    for g in 0..G {
        h[g].store(&mut state[first + g]);
    }
}
