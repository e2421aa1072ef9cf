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
        math::{TO_EXP2, exp2_each, silu_with_derivative, softplus_with_derivative},
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

/// One chunk of one lane block, one vector a position.
#[derive(Clone, Copy)]
struct Chunk {
    dt: [Lanes; CHECKPOINT_INTERVAL],
    /// Derivative of `dt` by `delta`.
    dt_slope: [Lanes; CHECKPOINT_INTERVAL],
    dt_u: [Lanes; CHECKPOINT_INTERVAL],
    /// Gradient of the output before the gate.
    grad: [Lanes; CHECKPOINT_INTERVAL],
    /// Derivative of the loss by `z`, but for the factor of the output before the gate.
    grad_gate: [Lanes; CHECKPOINT_INTERVAL],
    /// Output before the gate, without the direct path; only if there is a gate.
    y: [Lanes; CHECKPOINT_INTERVAL],
    grad_dt: [Lanes; CHECKPOINT_INTERVAL],
    grad_dt_u: [Lanes; CHECKPOINT_INTERVAL],
}

impl Chunk {
    const ZERO: Self = {
        let zeros = [Lanes::ZERO; CHECKPOINT_INTERVAL];
        Self {
            dt: zeros,
            dt_slope: zeros,
            dt_u: zeros,
            grad: zeros,
            grad_gate: zeros,
            y: zeros,
            grad_dt: zeros,
            grad_dt_u: zeros,
        }
    };
}

/// One group of states in one chunk: `[position][state]`.
struct Group {
    decay: [[Lanes; GROUP]; CHECKPOINT_INTERVAL],
    /// The state before each position, and after the last one.
    state: [[Lanes; GROUP]; CHECKPOINT_INTERVAL + 1],
    grad_b: [[Lanes; GROUP]; CHECKPOINT_INTERVAL],
    grad_c: [[Lanes; GROUP]; CHECKPOINT_INTERVAL],
}

impl Group {
    const ZERO: Self = Self {
        decay: [[Lanes::ZERO; GROUP]; CHECKPOINT_INTERVAL],
        state: [[Lanes::ZERO; GROUP]; CHECKPOINT_INTERVAL + 1],
        grad_b: [[Lanes::ZERO; GROUP]; CHECKPOINT_INTERVAL],
        grad_c: [[Lanes::ZERO; GROUP]; CHECKPOINT_INTERVAL],
    };
}

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
        let mut chunks = vec![Chunk::ZERO; blocks.len()];
        let mut group = Box::new(Group::ZERO);
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
        let inputs = self.inputs;
        let bias = load_channels::<V>(inputs.delta_bias, channels);
        for (t, row) in rows.clone().enumerate() {
            let before = row.wrapping_sub(CHECKPOINT_INTERVAL);
            inputs.prefetch(&inputs.u, before, channels);
            inputs.prefetch(&inputs.delta, before, channels);
            inputs.prefetch(&self.grad_y, before, channels);
            if let Some(z) = &inputs.z {
                inputs.prefetch(z, before, channels);
            }
            let u = V::load_padded(inputs.u.get(row, channels.clone()));
            let delta = V::load_padded(inputs.delta.get(row, channels.clone())) + bias;
            let (dt, slope) = if inputs.delta_softplus {
                softplus_with_derivative(delta)
            } else {
                (delta, V::splat(1.0))
            };
            dt.store(&mut chunk.dt[t]);
            slope.store(&mut chunk.dt_slope[t]);
            (dt * u).store(&mut chunk.dt_u[t]);

            let mut grad = V::load_padded(self.grad_y.get(row, channels.clone()));
            if let Some(z) = inputs.z {
                let z = V::load_padded(z.get(row, channels.clone()));
                let (gate, slope) = silu_with_derivative(z);
                (grad * slope).store(&mut chunk.grad_gate[t]);
                grad = grad * gate;
                chunk.y[t] = Lanes::ZERO;
            }
            grad.store(&mut chunk.grad[t]);
            chunk.grad_dt[t] = Lanes::ZERO;
            chunk.grad_dt_u[t] = Lanes::ZERO;
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
        group.grad_b[..len].fill([Lanes::ZERO; GROUP]);
        group.grad_c[..len].fill([Lanes::ZERO; GROUP]);
        for (block, chunk) in blocks.iter_mut().zip(chunks) {
            if self.inputs.z.is_some() {
                self.recompute::<V, G, true>(place, first, block, chunk, group);
            } else {
                self.recompute::<V, G, false>(place, first, block, chunk, group);
            }
            self.retrace::<V, G>(place, first, block, chunk, group);
        }
        let ScanDims {
            seq_len, d_state, ..
        } = self.inputs.dims;
        let start = place.rows.start - self.batch * seq_len;
        for t in 0..len {
            let states = (start + t) * d_state + first..(start + t) * d_state + first + G;
            let grad_b = &mut self.grad_b[states.clone()];
            let grad_c = &mut self.grad_c[states];
            for g in 0..G {
                grad_b[g] = V::load(&group.grad_b[t][g]).sum();
                grad_c[g] = V::load(&group.grad_c[t][g]).sum();
            }
        }
    }

    /// States and decays of the chunk, from the checkpoint.
    #[inline(always)]
    fn recompute<V: Vector, const G: usize, const GATED: bool>(
        &self,
        place: &Place,
        first: usize,
        block: &Block,
        chunk: &mut Chunk,
        group: &mut Group,
    ) {
        let mut scaled_a = [V::zero(); G];
        let mut h = [V::zero(); G];
        for g in 0..G {
            scaled_a[g] = V::load(&block.scaled_a[first + g]);
            let row = place.checkpoint + first + g;
            h[g] = V::load_padded(self.checkpoints.get(row, block.channels.clone()));
            h[g].store(&mut group.state[0][g]);
        }
        for (t, row) in place.rows.clone().enumerate() {
            let b = self.inputs.b.get(row, first..first + G);
            let c = self.inputs.c.get(row, first..first + G);
            let dt = V::load(&chunk.dt[t]);
            let dt_u = V::load(&chunk.dt_u[t]);
            let mut y = V::load(&chunk.y[t]);
            let mut decay = scaled_a;
            for g in 0..G {
                decay[g] = dt * scaled_a[g];
            }
            decay = exp2_each(decay);
            if place.resets[t] {
                decay = [V::zero(); G];
            }
            for g in 0..G {
                h[g] = decay[g].mul_add(h[g], dt_u * V::splat(b[g]));
                decay[g].store(&mut group.decay[t][g]);
                h[g].store(&mut group.state[t + 1][g]);
                if GATED {
                    y = h[g].mul_add(V::splat(c[g]), y);
                }
            }
            if GATED {
                y.store(&mut chunk.y[t]);
            }
        }
    }

    /// Gradients of the chunk, from its last position to its first.
    #[inline(always)]
    fn retrace<V: Vector, const G: usize>(
        &self,
        place: &Place,
        first: usize,
        block: &mut Block,
        chunk: &mut Chunk,
        group: &mut Group,
    ) {
        let mut a = [V::zero(); G];
        let mut grad_a = [V::zero(); G];
        let mut carried = [V::zero(); G];
        let mut state = [V::zero(); G];
        for g in 0..G {
            a[g] = V::load(&block.a[first + g]);
            carried[g] = V::load(&block.grad_state[first + g]);
            state[g] = V::load(&group.state[place.rows.len()][g]);
        }
        for (t, row) in place.rows.clone().enumerate().rev() {
            let b = self.inputs.b.get(row, first..first + G);
            let c = self.inputs.c.get(row, first..first + G);
            let dt = V::load(&chunk.dt[t]);
            let dt_u = V::load(&chunk.dt_u[t]);
            let grad = V::load(&chunk.grad[t]);
            let mut grad_dt = V::load(&chunk.grad_dt[t]);
            let mut grad_dt_u = V::load(&chunk.grad_dt_u[t]);
            for g in 0..G {
                let (to_b, to_c) = (&mut group.grad_b[t][g], &mut group.grad_c[t][g]);
                grad.mul_add(state[g], V::load(to_c)).store(to_c);
                let grad_state = grad.mul_add(V::splat(c[g]), carried[g]);
                grad_state.mul_add(dt_u, V::load(to_b)).store(to_b);
                grad_dt_u = grad_state.mul_add(V::splat(b[g]), grad_dt_u);

                carried[g] = grad_state * V::load(&group.decay[t][g]);
                state[g] = V::load(&group.state[t][g]);
                let grad_exponent = carried[g] * state[g];
                grad_dt = grad_exponent.mul_add(a[g], grad_dt);
                grad_a[g] = grad_exponent.mul_add(dt, grad_a[g]);
            }
            grad_dt.store(&mut chunk.grad_dt[t]);
            grad_dt_u.store(&mut chunk.grad_dt_u[t]);
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
            let grad = V::load(&chunk.grad[t]);
            let grad_dt_u = V::load(&chunk.grad_dt_u[t]);
            let grad_u = V::load(&chunk.dt[t]).mul_add(grad_dt_u, d * grad);
            let grad_dt = u.mul_add(grad_dt_u, V::load(&chunk.grad_dt[t]));
            let grad_delta = grad_dt * V::load(&chunk.dt_slope[t]);
            grad_d = grad.mul_add(u, grad_d);
            grad_bias = grad_bias + grad_delta;
            // SAFETY: this task alone writes these channels of this sequence.
            unsafe {
                self.sinks.u.write(row, channels, grad_u);
                self.sinks.delta.write(row, channels, grad_delta);
                if let Some(z) = &self.sinks.z {
                    let y = d.mul_add(u, V::load(&chunk.y[t]));
                    z.write(row, channels, y * V::load(&chunk.grad_gate[t]));
                }
            }
        }
        (V::load(&block.grad_d) + grad_d).store(&mut block.grad_d);
        (V::load(&block.grad_bias) + grad_bias).store(&mut block.grad_bias);
    }
}
