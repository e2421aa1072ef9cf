//! One task owns one sequence and a span of [`SPAN`] lane blocks. It walks the chunks backwards;
//! each chunk's states are recomputed from its checkpoint, four states of one block at a time.
//!
//! `b` and `c` are shared by all channels, so that their gradients are sums over lanes, blocks and
//! spans. A task adds its blocks up lane by lane and sums the lanes once; the spans' sums go
//! to a buffer each and are added in order. Parameters' gradients are summed per chunk, then
//! over the chunks, then over the sequences. No sum depends on which thread ran what.

use super::super::{
    rows::{Columns, Output},
    simd::{
        Kernel, dispatch,
        math::{TO_EXP2, silu_with_derivative, softplus_with_derivative},
    },
};
use super::*;
use rayon::prelude::*;

/// Lane blocks of one task: enough to spread the sum over lanes, few enough for a chunk's scratch
/// to stay in the second-level cache.
const SPAN: usize = 8;

/// Gradients of all inputs, given those of `y` (`[batch, seq_len, d_inner]`) and, optionally, of
/// the final state (`[batch, d_inner, d_state]`).
///
/// `checkpoints` are those of [`forward`](super::forward) on the same inputs. The result is the
/// same, bit by bit, on every run and for any number of threads.
///
/// # Panics
/// If the size of an input, of the checkpoints or of a gradient does not fit the dims.
pub fn backward(
    inputs: &ScanInputs,
    checkpoints: &[f32],
    grad_y: &[f32],
    grad_final_state: Option<&[f32]>,
) -> ScanGrads {
    const OP: &str = "selective_scan backward";
    inputs.check(OP);
    let dims = inputs.dims;
    let ScanDims {
        batch,
        seq_len,
        d_inner,
        d_state,
    } = dims;
    check_len(OP, "checkpoints", checkpoints, dims.checkpoint_len());
    check_len(OP, "grad_y", grad_y, dims.rows() * d_inner);
    if let Some(grad) = grad_final_state {
        check_len(OP, "grad_final_state", grad, batch * d_inner * d_state);
    }

    let spans = dims.blocks().div_ceil(SPAN);
    let mut u = Output::new(dims.rows(), d_inner);
    let mut delta = Output::new(dims.rows(), d_inner);
    let mut z = inputs.z.map(|_| Output::new(dims.rows(), d_inner));
    let mut initial_state = Output::new(batch, d_inner * d_state);
    let mut a = Output::new(batch, d_inner * d_state);
    let mut d = Output::new(batch, d_inner);
    let mut delta_bias = Output::new(batch, d_inner);
    let mut b = vec![0.0; spans * dims.rows() * d_state];
    let mut c = vec![0.0; spans * dims.rows() * d_state];

    let sinks = Sinks {
        u: u.columns(),
        delta: delta.columns(),
        z: z.as_mut().map(Output::columns),
        initial_state: initial_state.columns(),
        a: a.columns(),
        d: d.columns(),
        delta_bias: delta_bias.columns(),
    };
    let sequence = seq_len * d_state;
    b.par_chunks_mut(sequence)
        .zip(c.par_chunks_mut(sequence))
        .enumerate()
        .for_each(|(task, (grad_b, grad_c))| {
            let (span, batch) = (task / batch, task % batch);
            let blocks = span * SPAN..dims.blocks().min((span + 1) * SPAN);
            dispatch(Task {
                inputs,
                checkpoints: Rows::contiguous(checkpoints, d_inner),
                grad_y: Rows::contiguous(grad_y, d_inner),
                grad_final_state,
                sinks: &sinks,
                grad_b,
                grad_c,
                batch,
                blocks,
            });
        });
    // SAFETY: the tasks are done, and together they own all channels of all sequences.
    unsafe {
        ScanGrads {
            u: u.finish(),
            delta: delta.finish(),
            a: sum_parts(a.finish(), batch),
            b: sum_parts(b, spans),
            c: sum_parts(c, spans),
            d: inputs.d.map(|_| sum_parts(d.finish(), batch)),
            z: z.map(|z| z.finish()),
            delta_bias: inputs
                .delta_bias
                .map(|_| sum_parts(delta_bias.finish(), batch)),
            initial_state: initial_state.finish(),
        }
    }
}

/// The sum of the `parts` equal parts of `data`, in their order.
fn sum_parts(mut data: Vec<f32>, parts: usize) -> Vec<f32> {
    let len = data.len() / parts.max(1);
    let (sum, rest) = data.split_at_mut(len);
    for part in rest.chunks_exact(len.max(1)) {
        for (sum, value) in sum.iter_mut().zip(part) {
            *sum += value;
        }
    }
    data.truncate(len);
    data
}

struct Sinks<'a> {
    u: Columns<'a>,
    delta: Columns<'a>,
    z: Option<Columns<'a>>,
    initial_state: Columns<'a>,
    a: Columns<'a>,
    d: Columns<'a>,
    delta_bias: Columns<'a>,
}

struct Task<'a> {
    inputs: &'a ScanInputs<'a>,
    checkpoints: Rows<'a>,
    grad_y: Rows<'a>,
    grad_final_state: Option<&'a [f32]>,
    sinks: &'a Sinks<'a>,
    /// `[seq_len, d_state]`, of this sequence and span.
    grad_b: &'a mut [f32],
    /// `[seq_len, d_state]`, of this sequence and span.
    grad_c: &'a mut [f32],
    batch: usize,
    blocks: Range<usize>,
}

/// What one lane block carries from chunk to chunk; one vector a state where it is a `Vec`.
struct Block {
    channels: Range<usize>,
    a: Vec<Lanes>,
    scaled_a: Vec<Lanes>,
    /// Gradient of the state after the chunk at hand.
    grad_state: Vec<Lanes>,
    grad_a: Vec<Lanes>,
    grad_d: Lanes,
    grad_bias: Lanes,
}

/// One position of one lane block.
///
/// Together in memory what is used together: arrays a multiple of 4 KiB apart would make a load
/// look, in its low address bits, like the store before it, and wait for that.
#[derive(Clone, Copy)]
struct Position {
    dt: Lanes,
    /// Derivative of `dt` by `delta`.
    dt_slope: Lanes,
    dt_u: Lanes,
    /// Gradient of the output before the gate.
    grad: Lanes,
    /// Derivative of the loss by `z`, but for the factor of the output before the gate.
    grad_gate: Lanes,
    /// Output before the gate, without the direct path; only if there is a gate.
    y: Lanes,
    grad_dt: Lanes,
    grad_dt_u: Lanes,
}

impl Position {
    const ZERO: Self = Self {
        dt: Lanes::ZERO,
        dt_slope: Lanes::ZERO,
        dt_u: Lanes::ZERO,
        grad: Lanes::ZERO,
        grad_gate: Lanes::ZERO,
        y: Lanes::ZERO,
        grad_dt: Lanes::ZERO,
        grad_dt_u: Lanes::ZERO,
    };
}

type Chunk = [Position; CHECKPOINT_INTERVAL];

/// One state at one position.
#[derive(Clone, Copy)]
struct Cell {
    decay: Lanes,
    /// The state before the position.
    before: Lanes,
    /// Gradients of `b` and `c`, summed over the blocks but not yet over the lanes.
    grad_b: Lanes,
    grad_c: Lanes,
}

impl Cell {
    const ZERO: Self = Self {
        decay: Lanes::ZERO,
        before: Lanes::ZERO,
        grad_b: Lanes::ZERO,
        grad_c: Lanes::ZERO,
    };
}

/// One group of states in one chunk.
type Group = [[Cell; GROUP]; CHECKPOINT_INTERVAL];

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let dims = self.inputs.dims;
        let n = dims.d_state;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in self.blocks.clone() {
            blocks.push(self.block::<V>(block));
        }
        let mut chunks = vec![[Position::ZERO; CHECKPOINT_INTERVAL]; blocks.len()];
        let mut group = [[Cell::ZERO; GROUP]; CHECKPOINT_INTERVAL];
        let mut resets = [false; CHECKPOINT_INTERVAL];

        for index in (0..dims.checkpoints()).rev() {
            let rows = chunk_rows(&dims, self.batch, index);
            self.inputs.resets(rows.clone(), &mut resets);
            for (block, chunk) in blocks.iter().zip(&mut chunks) {
                self.prepare::<V>(&rows, &block.channels, chunk);
            }
            let checkpoint = (self.batch * dims.checkpoints() + index) * n;
            let place = Place {
                rows: &rows,
                resets: &resets,
                checkpoint,
            };
            let grouped = n - n % GROUP;
            for first in (0..grouped).step_by(GROUP) {
                self.group::<V, GROUP>(&place, first, &mut blocks, &mut chunks, &mut group);
            }
            for first in grouped..n {
                self.group::<V, 1>(&place, first, &mut blocks, &mut chunks, &mut group);
            }
            for (block, chunk) in blocks.iter_mut().zip(&chunks) {
                self.finish::<V>(&rows, block, chunk);
            }
        }
        for block in &blocks {
            let (sinks, batch, channels) = (self.sinks, self.batch, &block.channels);
            // SAFETY: this task alone writes these channels of this sequence.
            unsafe {
                sinks.a.write_transposed(batch, channels, &block.grad_a);
                sinks
                    .initial_state
                    .write_transposed(batch, channels, &block.grad_state);
                sinks.d.write(batch, channels, V::load(&block.grad_d));
                sinks
                    .delta_bias
                    .write(batch, channels, V::load(&block.grad_bias));
            }
        }
    }
}

/// Where a chunk lies.
struct Place<'a> {
    rows: &'a Range<usize>,
    resets: &'a [bool; CHECKPOINT_INTERVAL],
    /// Row of the checkpoints that holds the chunk's first state.
    checkpoint: usize,
}

impl Task<'_> {
    #[inline(always)]
    fn block<V: Vector>(&self, block: usize) -> Block {
        let ScanDims {
            d_inner, d_state, ..
        } = self.inputs.dims;
        let channels = self.inputs.dims.channels(block);
        let zeros = vec![Lanes::ZERO; d_state];
        let mut a = zeros.clone();
        load_transposed(self.inputs.a, d_state, &channels, &mut a);
        let mut scaled_a = a.clone();
        for lanes in &mut scaled_a {
            (V::load(lanes) * V::splat(TO_EXP2)).store(lanes);
        }
        let mut grad_state = zeros.clone();
        if let Some(grad) = self.grad_final_state {
            let states = self.batch * d_inner * d_state..(self.batch + 1) * d_inner * d_state;
            load_transposed(&grad[states], d_state, &channels, &mut grad_state);
        }
        Block {
            channels,
            a,
            scaled_a,
            grad_state,
            grad_a: zeros,
            grad_d: Lanes::ZERO,
            grad_bias: Lanes::ZERO,
        }
    }

    /// All that depends on the position but not on the state, and sums set to zero. Asks for
    /// what the chunk before will read.
    #[inline(always)]
    fn prepare<V: Vector>(&self, rows: &Range<usize>, channels: &Range<usize>, chunk: &mut Chunk) {
        let grouped = rows.len() - rows.len() % GROUP;
        for t in (0..grouped).step_by(GROUP) {
            self.prepare_together::<V, GROUP>(rows.start, t, channels, chunk);
        }
        for t in grouped..rows.len() {
            self.prepare_together::<V, 1>(rows.start, t, channels, chunk);
        }
    }

    /// [`prepare`](Self::prepare) for `N` positions from `first`.
    #[inline(always)]
    fn prepare_together<V: Vector, const N: usize>(
        &self,
        start: usize,
        first: usize,
        channels: &Range<usize>,
        chunk: &mut Chunk,
    ) {
        let inputs = self.inputs;
        let bias = load_channels::<V>(inputs.delta_bias, channels);
        let mut delta = [V::zero(); N];
        let mut z = [V::zero(); N];
        for i in 0..N {
            let row = start + first + i;
            let before = row.wrapping_sub(CHECKPOINT_INTERVAL);
            inputs.prefetch(&inputs.u, before, channels);
            inputs.prefetch(&inputs.delta, before, channels);
            inputs.prefetch(&self.grad_y, before, channels);
            delta[i] = V::load_padded(inputs.delta.get(row, channels.clone())) + bias;
            if let Some(gates) = &inputs.z {
                inputs.prefetch(gates, before, channels);
                z[i] = V::load_padded(gates.get(row, channels.clone()));
            }
        }
        let (dt, slope) = if inputs.delta_softplus {
            softplus_with_derivative(Lockstep(delta))
        } else {
            (Lockstep(delta), Lockstep::splat(1.0))
        };
        for i in 0..N {
            let (t, row) = (first + i, start + first + i);
            let u = V::load_padded(inputs.u.get(row, channels.clone()));
            let at = &mut chunk[t];
            dt.0[i].store(&mut at.dt);
            slope.0[i].store(&mut at.dt_slope);
            (dt.0[i] * u).store(&mut at.dt_u);
            V::load_padded(self.grad_y.get(row, channels.clone())).store(&mut at.grad);
            (at.y, at.grad_dt, at.grad_dt_u) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
        }
        if inputs.z.is_some() {
            let (gate, slope) = silu_with_derivative(Lockstep(z));
            for i in 0..N {
                let at = &mut chunk[first + i];
                let grad = V::load(&at.grad);
                (grad * slope.0[i]).store(&mut at.grad_gate);
                (grad * gate.0[i]).store(&mut at.grad);
            }
        }
    }

    /// Takes the `G` states from `first` of all blocks through the chunk, forwards and backwards.
    #[inline(always)]
    fn group<V: Vector, const G: usize>(
        &mut self,
        place: &Place,
        first: usize,
        blocks: &mut [Block],
        chunks: &mut [Chunk],
        group: &mut Group,
    ) {
        let len = place.rows.len();
        for cell in group[..len].as_flattened_mut() {
            (cell.grad_b, cell.grad_c) = (Lanes::ZERO, Lanes::ZERO);
        }
        for (block, chunk) in blocks.iter_mut().zip(chunks) {
            let last = if self.inputs.z.is_some() {
                self.recompute::<V, G, true>(place, first, block, chunk, group)
            } else {
                self.recompute::<V, G, false>(place, first, block, chunk, group)
            };
            self.retrace::<V, G>(place, first, last, block, chunk, group);
        }
        let ScanDims { seq_len, d_state, .. } = self.inputs.dims;
        let start = place.rows.start - self.batch * seq_len;
        for (t, cells) in group[..len].iter().enumerate() {
            let mut grad_b = [V::zero(); GROUP];
            let mut grad_c = [V::zero(); GROUP];
            for g in 0..G {
                grad_b[g] = V::load(&cells[g].grad_b);
                grad_c[g] = V::load(&cells[g].grad_c);
            }
            let states = (start + t) * d_state + first..(start + t) * d_state + first + G;
            self.grad_b[states.clone()].copy_from_slice(&V::sums(grad_b)[..G]);
            self.grad_c[states].copy_from_slice(&V::sums(grad_c)[..G]);
        }
    }

    /// States and decays of the chunk, from the checkpoint; returns the states after it.
    #[inline(always)]
    fn recompute<V: Vector, const G: usize, const GATED: bool>(
        &self,
        place: &Place,
        first: usize,
        block: &Block,
        chunk: &mut Chunk,
        group: &mut Group,
    ) -> [V; G] {
        let mut scaled_a = [V::zero(); G];
        let mut h = [V::zero(); G];
        for g in 0..G {
            scaled_a[g] = V::load(&block.scaled_a[first + g]);
            let row = place.checkpoint + first + g;
            h[g] = V::load_padded(self.checkpoints.get(row, block.channels.clone()));
        }
        for (t, row) in place.rows.clone().enumerate() {
            let b = self.inputs.b.get(row, first..first + G);
            let c = self.inputs.c.get(row, first..first + G);
            let (at, cells) = (&mut chunk[t], &mut group[t]);
            let mut decay = decays(V::load(&at.dt), scaled_a);
            if place.resets[t] {
                decay = [V::zero(); G];
            }
            let dt_u = V::load(&at.dt_u);
            let mut y = V::load(&at.y);
            for g in 0..G {
                decay[g].store(&mut cells[g].decay);
                h[g].store(&mut cells[g].before);
                h[g] = decay[g].mul_add(h[g], dt_u * V::splat(b[g]));
                if GATED {
                    y = h[g].mul_add(V::splat(c[g]), y);
                }
            }
            if GATED {
                y.store(&mut at.y);
            }
        }
        h
    }

    /// Gradients of the chunk, from its last position to its first, given the states after it.
    #[inline(always)]
    fn retrace<V: Vector, const G: usize>(
        &self,
        place: &Place,
        first: usize,
        mut state: [V; G],
        block: &mut Block,
        chunk: &mut Chunk,
        group: &mut Group,
    ) {
        let mut a = [V::zero(); G];
        let mut grad_a = [V::zero(); G];
        let mut carried = [V::zero(); G];
        for g in 0..G {
            a[g] = V::load(&block.a[first + g]);
            carried[g] = V::load(&block.grad_state[first + g]);
        }
        for (t, row) in place.rows.clone().enumerate().rev() {
            let b = self.inputs.b.get(row, first..first + G);
            let c = self.inputs.c.get(row, first..first + G);
            let (at, cells) = (&mut chunk[t], &mut group[t]);
            let (dt, dt_u, grad) = (V::load(&at.dt), V::load(&at.dt_u), V::load(&at.grad));
            let mut grad_dt = V::load(&at.grad_dt);
            let mut grad_dt_u = V::load(&at.grad_dt_u);
            for g in 0..G {
                let cell = &mut cells[g];
                grad.mul_add(state[g], V::load(&cell.grad_c)).store(&mut cell.grad_c);
                let grad_state = grad.mul_add(V::splat(c[g]), carried[g]);
                grad_state.mul_add(dt_u, V::load(&cell.grad_b)).store(&mut cell.grad_b);
                grad_dt_u = grad_state.mul_add(V::splat(b[g]), grad_dt_u);

                carried[g] = grad_state * V::load(&cell.decay);
                state[g] = V::load(&cell.before);
                let grad_exponent = carried[g] * state[g];
                grad_dt = grad_exponent.mul_add(a[g], grad_dt);
                grad_a[g] = grad_exponent.mul_add(dt, grad_a[g]);
            }
            grad_dt.store(&mut at.grad_dt);
            grad_dt_u.store(&mut at.grad_dt_u);
        }
        for g in 0..G {
            carried[g].store(&mut block.grad_state[first + g]);
            let sum = &mut block.grad_a[first + g];
            (V::load(sum) + grad_a[g]).store(sum);
        }
    }

    /// Gradients of the inputs that have a channel and a position.
    #[inline(always)]
    fn finish<V: Vector>(&self, rows: &Range<usize>, block: &mut Block, chunk: &Chunk) {
        let inputs = self.inputs;
        let channels = &block.channels;
        let d = load_channels::<V>(inputs.d, channels);
        let (mut grad_d, mut grad_bias) = (V::zero(), V::zero());
        for (t, row) in rows.clone().enumerate() {
            let u = V::load_padded(inputs.u.get(row, channels.clone()));
            let at = &chunk[t];
            let grad = V::load(&at.grad);
            let grad_dt_u = V::load(&at.grad_dt_u);
            let grad_u = V::load(&at.dt).mul_add(grad_dt_u, d * grad);
            let grad_dt = u.mul_add(grad_dt_u, V::load(&at.grad_dt));
            let grad_delta = grad_dt * V::load(&at.dt_slope);
            grad_d = grad.mul_add(u, grad_d);
            grad_bias = grad_bias + grad_delta;
            // SAFETY: this task alone writes these channels of this sequence.
            unsafe {
                self.sinks.u.write(row, channels, grad_u);
                self.sinks.delta.write(row, channels, grad_delta);
                if let Some(z) = &self.sinks.z {
                    let y = d.mul_add(u, V::load(&at.y));
                    z.write(row, channels, y * V::load(&at.grad_gate));
                }
            }
        }
        (V::load(&block.grad_d) + grad_d).store(&mut block.grad_d);
        (V::load(&block.grad_bias) + grad_bias).store(&mut block.grad_bias);
    }
}
