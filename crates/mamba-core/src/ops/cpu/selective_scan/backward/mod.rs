//! One task owns one sequence and some spans of [`SPAN`] lane blocks. It walks the chunks backwards;
//! each chunk's states are recomputed from its checkpoint, four states of one block at a time.
//!
//! `b` and `c` are shared by all channels, so that their gradients are sums over lanes, blocks and
//! spans. A span's blocks are added up lane by lane and the lanes summed once; the spans' sums go
//! to a buffer each and are added in order. Parameters' gradients are summed per chunk, then
//! over the chunks, then over the sequences. No sum depends on which thread ran what.

mod layout;
mod positions;
mod states;

use super::super::{
    rows::{Columns, Output},
    simd::{Kernel, dispatch, math::TO_EXP2},
};
use super::*;
use layout::{Block, Chunk, Place, Step};
use rayon::prelude::*;

/// Lane blocks whose gradients of `b` and `c` are added up lane by lane: enough to spread the sum
/// over lanes, few enough to leave work for many threads.
const SPAN: usize = 8;

/// Most spans of one task: neighbours in memory, so that the machine sees long pieces of rows being
/// read and written; a chunk's scratch for them all stays in the second-level cache.
const MAX_SPANS: usize = 4;

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

    let spans = dims.blocks().div_ceil(SPAN).max(1);
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
    // As in forward, the cut into tasks is free to follow the machine.
    let tasks = 4 * rayon::current_num_threads();
    let together = (batch * spans / tasks).clamp(1, MAX_SPANS);
    let sequence = seq_len * d_state;
    b.par_chunks_mut(spans * sequence)
        .zip(c.par_chunks_mut(spans * sequence))
        .enumerate()
        .flat_map(|(batch, (grad_b, grad_c))| {
            let parts = grad_b
                .par_chunks_mut(together * sequence)
                .zip(grad_c.par_chunks_mut(together * sequence));
            parts
                .enumerate()
                .map(move |(i, parts)| (batch, i * together, parts))
        })
        .for_each(|(batch, span, (grad_b, grad_c))| {
            let blocks = span * SPAN..dims.blocks().min((span + together) * SPAN);
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
            a: sum_parts(a.finish(), 1, batch),
            b: sum_parts(b, batch, spans),
            c: sum_parts(c, batch, spans),
            d: inputs.d.map(|_| sum_parts(d.finish(), 1, batch)),
            z: z.map(|z| z.finish()),
            delta_bias: inputs
                .delta_bias
                .map(|_| sum_parts(delta_bias.finish(), 1, batch)),
            initial_state: initial_state.finish(),
        }
    }
}

/// `[outer, parts, ..]` summed over the parts, in their order.
fn sum_parts(mut data: Vec<f32>, outer: usize, parts: usize) -> Vec<f32> {
    let len = data.len() / (outer * parts).max(1);
    if parts < 2 || len == 0 {
        return data;
    }
    data.par_chunks_mut(parts * len).for_each(|parts| {
        let (sum, rest) = parts.split_at_mut(len);
        for part in rest.chunks_exact(len) {
            for (sum, value) in sum.iter_mut().zip(part) {
                *sum += value;
            }
        }
    });
    for i in 1..outer {
        let sum = i * parts * len..(i * parts + 1) * len;
        data.copy_within(sum, i * len);
    }
    data.truncate(outer * len);
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
    /// `[spans, seq_len, d_state]`, of this sequence and these spans.
    grad_b: &'a mut [f32],
    /// As `grad_b`.
    grad_c: &'a mut [f32],
    batch: usize,
    blocks: Range<usize>,
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
        let mut group = [Step::ZERO; CHECKPOINT_INTERVAL];
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
            let spans = blocks.chunks_mut(SPAN).zip(chunks.chunks_mut(SPAN));
            for (span, (blocks, chunks)) in spans.enumerate() {
                for first in (0..grouped).step_by(GROUP) {
                    self.group::<V, GROUP>(&place, span, first, blocks, chunks, &mut group);
                }
                for first in grouped..n {
                    self.group::<V, 1>(&place, span, first, blocks, chunks, &mut group);
                }
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
}
