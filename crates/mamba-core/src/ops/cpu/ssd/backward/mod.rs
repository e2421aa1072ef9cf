//! One task owns one sequence and a span of heads of one group. It walks the chunks backwards with the
//! gradients of its heads' states in scratch, and recomputes all else from the states before a chunk.
//!
//! `b` and `c` are shared by the heads of a group, so that their gradients are sums over heads: a
//! span's are added up in scratch, the spans' go to a buffer each and are added in order.
//! Parameters' gradients are summed per chunk, then over the chunks, then over the sequences. No
//! sum depends on which thread ran what.

mod head;
mod products;
mod weigh;

use super::super::rows::{Columns, Output};
use super::super::simd::Lanes;
use super::copy::{load, load_transposed, store_transposed, transpose};
use super::padded::Padded;
use super::shared::Scores;
use super::tile::{Left, product, upper_product};
use super::*;
use head::{Carried, Scratch};
use products::SharedGrads;
use rayon::prelude::*;

/// Heads of a task. What they share is computed once for them all; fewer make more tasks.
const SPAN: usize = 4;

/// Gradients of all inputs, given those of `y` (`[batch, seq_len, nheads, headdim]`, the last two axes
/// contiguous) and, optionally, of the final state (`[batch, nheads, headdim, d_state]`).
///
/// `checkpoints` are those of [`forward`](super::forward) on the same inputs. The result is the
/// same, bit by bit, on every run and for any number of threads.
///
/// # Panics
/// If the size of an input, of the checkpoints or of a gradient does not fit the dims.
pub fn backward(
    inputs: &SsdInputs,
    checkpoints: &[f32],
    grad_y: Rows,
    grad_final_state: Option<&[f32]>,
) -> SsdGrads {
    const OP: &str = "ssd backward";
    inputs.check(OP);
    let dims = inputs.dims;
    let (p, n) = (dims.headdim, dims.d_state);
    check_len(OP, "checkpoints", checkpoints, dims.checkpoint_len());
    grad_y.check(OP, "grad_y", dims.rows(), dims.d_inner());
    if let Some(grad) = grad_final_state {
        check_len(OP, "grad_final_state", grad, dims.state_len());
    }
    let spans = Spans { dims, span: SPAN };
    let parts = spans.per_group();
    let (rows, heads) = (dims.rows(), dims.nheads);
    let mut x = Output::new(rows, dims.d_inner());
    let mut dt = Output::new(rows, heads);
    let mut b = Output::new(parts * rows, dims.ngroups * n);
    let mut c = Output::new(parts * rows, dims.ngroups * n);
    let mut a = Output::new(dims.batch, heads);
    let mut dt_bias = Output::new(dims.batch, heads);
    let skip = inputs.d.map_or(0, |d| d.len());
    let mut d = Output::new(dims.batch, skip);
    let mut initial_state = inputs
        .initial_state
        .map(|_| Output::new(dims.batch * heads * p, n));
    let sinks = Sinks {
        x: x.columns(),
        dt: dt.columns(),
        b: b.columns(),
        c: c.columns(),
        a: a.columns(),
        dt_bias: dt_bias.columns(),
        d: d.columns(),
        initial_state: initial_state.as_mut().map(Output::columns),
    };
    (0..spans.tasks()).into_par_iter().for_each(|task| {
        let (batch, group, span, heads) = spans.task(task);
        Task {
            inputs,
            checkpoints: Rows::contiguous(checkpoints, p),
            grad_y,
            grad_final_state,
            sinks: &sinks,
            batch,
            group,
            span,
            heads,
        }
        .run();
    });
    // SAFETY: the tasks are done, and together they own all heads of all sequences.
    unsafe {
        SsdGrads {
            x: x.finish(),
            dt: dt.finish(),
            a: sum_parts(a.finish(), dims.batch),
            b: sum_parts(b.finish(), parts),
            c: sum_parts(c.finish(), parts),
            d: inputs.d.map(|_| sum_parts(d.finish(), dims.batch)),
            dt_bias: inputs
                .dt_bias
                .map(|_| sum_parts(dt_bias.finish(), dims.batch)),
            initial_state: initial_state.map(|state| state.finish()),
        }
    }
}

/// `[parts, ..]` summed over the parts, in their order.
fn sum_parts(mut data: Vec<f32>, parts: usize) -> Vec<f32> {
    /// Values that a thread adds up at a time.
    const PIECE: usize = 1 << 13;
    if parts < 2 || data.is_empty() {
        return data;
    }
    let len = data.len() / parts;
    let (sum, rest) = data.split_at_mut(len);
    sum.par_chunks_mut(PIECE).enumerate().for_each(|(i, sum)| {
        for part in rest.chunks_exact(len) {
            for (sum, value) in sum.iter_mut().zip(&part[i * PIECE..]) {
                *sum += value;
            }
        }
    });
    data.truncate(len);
    data
}

struct Sinks<'a> {
    /// `[batch * seq_len, nheads * headdim]`
    x: Columns<'a>,
    /// `[batch * seq_len, nheads]`
    dt: Columns<'a>,
    /// `[spans * batch * seq_len, ngroups * d_state]`
    b: Columns<'a>,
    /// As `b`.
    c: Columns<'a>,
    /// `[batch, nheads]`
    a: Columns<'a>,
    /// `[batch, nheads]`
    dt_bias: Columns<'a>,
    /// `[batch, ..]`, as long as `d`.
    d: Columns<'a>,
    /// `[batch * nheads * headdim, d_state]`
    initial_state: Option<Columns<'a>>,
}

struct Task<'a> {
    inputs: &'a SsdInputs<'a>,
    /// `[batch * chunks * nheads * d_state, headdim]`
    checkpoints: Rows<'a>,
    grad_y: Rows<'a>,
    grad_final_state: Option<&'a [f32]>,
    sinks: &'a Sinks<'a>,
    batch: usize,
    group: usize,
    span: usize,
    heads: Range<usize>,
}

/// What the heads of a task share in a chunk.
struct Shared {
    /// `[positions, d_state]`
    b: Padded,
    /// `[positions, d_state]`
    c: Padded,
    /// `b_s . c_t` in row `s`, vectors from that of `s` on.
    scores: Padded,
    /// Gradients of the scores, summed over heads; zero before the vector of `s`.
    grad_scores: Padded,
    /// `[d_state, positions]`
    c_transposed: Padded,
    /// `[d_state, positions]`, what states have to do with it.
    grad_b: Padded,
    /// As `grad_b`.
    grad_c: Padded,
    /// `[positions, d_state]`, what scores have to do with it.
    grad: Padded,
}

impl Shared {
    fn new(most: usize, n: usize) -> Self {
        Self {
            b: Padded::zeros(most, n),
            c: Padded::zeros(most, n),
            scores: Padded::zeros(most, most),
            grad_scores: Padded::zeros(most, most),
            c_transposed: Padded::zeros(n, most),
            grad_b: Padded::zeros(n, most),
            grad_c: Padded::zeros(n, most),
            grad: Padded::zeros(most, n),
        }
    }
}

impl Task<'_> {
    fn run(self) {
        let dims = self.inputs.dims;
        let most = dims.seq_len.min(CHECKPOINT_INTERVAL);
        let mut shared = Shared::new(most, dims.d_state);
        let mut scratch = Scratch::new(most, &dims);
        let mut carried: Vec<_> = self.heads.clone().map(|head| self.carried(head)).collect();
        for chunk in (0..dims.checkpoints()).rev() {
            let rows = dims.chunk_rows(self.batch, chunk);
            self.prepare(&rows, &mut shared);
            for (head, carried) in self.heads.clone().zip(&mut carried) {
                self.head(chunk, &rows, head, &mut shared, carried, &mut scratch);
            }
            self.finish(&rows, &mut shared);
        }
        for (head, carried) in self.heads.clone().zip(&carried) {
            self.finish_head(head, carried);
        }
    }

    fn carried(&self, head: usize) -> Carried {
        let SsdDims {
            headdim,
            d_state,
            nheads,
            ..
        } = self.inputs.dims;
        let mut carried = Carried::new(d_state, headdim);
        if let Some(grad) = self.grad_final_state {
            let grad = Rows::contiguous(grad, d_state);
            let row = (self.batch * nheads + head) * headdim;
            let to = &mut carried.grad_state;
            load_transposed(grad, row..row + headdim, 0..d_state, to);
            carried.empty = false;
        }
        carried
    }

    fn prepare(&self, rows: &Range<usize>, shared: &mut Shared) {
        let (inputs, n) = (self.inputs, self.inputs.dims.d_state);
        let columns = inputs.dims.states(self.group);
        load(inputs.b, rows.clone(), columns.clone(), &mut shared.b);
        load(inputs.c, rows.clone(), columns, &mut shared.c);
        transpose(&shared.c, rows.len(), &mut shared.c_transposed);
        let mut tiles = Scores {
            b: Left::plain(&shared.b),
            c: &shared.c_transposed,
            d_state: n,
            to: &mut shared.scores,
        };
        upper_product(whole_vectors(rows.len()), &mut tiles);
        shared.grad_scores.clear();
        shared.grad_b.clear();
        shared.grad_c.clear();
    }

    /// Gradients of `b` and `c` in this chunk.
    fn finish(&self, rows: &Range<usize>, shared: &mut Shared) {
        let dims = self.inputs.dims;
        let len = whole_vectors(rows.len());
        let first = self.span * dims.rows();
        let part = first + rows.start..first + rows.end;
        let columns = dims.states(self.group);
        let vectors = shared.grad.vectors();
        let mut tiles = SharedGrads {
            grad_scores: Left::plain(&shared.grad_scores),
            factor: &shared.c,
            after: true,
            len,
            to: &mut shared.grad,
        };
        product(0..len, 0..vectors, &mut tiles);
        let (grad_b, plus) = (&shared.grad_b, Some(&shared.grad));
        // SAFETY: this task alone writes this group of this sequence in this span's part.
        unsafe { store_transposed(grad_b, plus, &self.sinks.b, part.clone(), columns.clone()) };
        let mut tiles = SharedGrads {
            grad_scores: Left::transposed(&shared.grad_scores),
            factor: &shared.b,
            after: false,
            len,
            to: &mut shared.grad,
        };
        product(0..len, 0..vectors, &mut tiles);
        let (grad_c, plus) = (&shared.grad_c, Some(&shared.grad));
        // SAFETY: as above.
        unsafe { store_transposed(grad_c, plus, &self.sinks.c, part, columns) };
    }

    fn finish_head(&self, head: usize, carried: &Carried) {
        let dims = self.inputs.dims;
        let (batch, sinks) = (self.batch, self.sinks);
        let row = (batch * dims.nheads + head) * dims.headdim;
        let here = (batch..batch + 1, head..head + 1);
        // SAFETY: this task alone writes what belongs to this head of this sequence.
        unsafe {
            sinks.a.block(&here.0, &here.1).write(carried.grad_a as f32);
            let bias = sinks.dt_bias.block(&here.0, &here.1);
            bias.write(carried.grad_bias as f32);
            if let Some(to) = &sinks.initial_state {
                let rows = row..row + dims.headdim;
                store_transposed(&carried.grad_state, None, to, rows, 0..dims.d_state);
            }
            let channels = &Lanes::values(&carried.grad_d)[..dims.headdim];
            match self.inputs.skip(head) {
                None => {}
                Some(&[_]) => {
                    let sum: f32 = channels.iter().sum();
                    sinks.d.block(&here.0, &here.1).write(sum);
                }
                Some(_) => {
                    let to = sinks.d.block(&here.0, &dims.channels(head));
                    to.copy_from_nonoverlapping(channels.as_ptr(), channels.len());
                }
            }
        }
    }
}
