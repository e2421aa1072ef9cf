//! One task owns one sequence and a span of heads of one group. It walks the chunks in order with
//! all states of its heads in scratch; products of `b` and `c` are made once a chunk for all heads.

use super::super::rows::{Columns, Output};
use super::super::simd::{Kernel, LANES, Vector, dispatch};
use super::ahead::Ahead;
use super::copy::{load, load_transposed, store, store_transposed, transpose};
use super::padded::Padded;
use super::positions::Positions;
use super::shared::{ScaleRows, Scores, States, skip_weights};
use super::tile::{Left, Tile, Tiles, product, upper_product};
use super::*;
use rayon::prelude::*;

/// Most heads of one task: the products that they share are then an eighth of a head's own.
const MAX_SPAN: usize = 8;

/// Runs the operation; see [`SsdInputs`] for what it computes.
///
/// With `save_checkpoints` the states that [`backward`](super::backward) starts from are returned
/// too: `d_state / CHECKPOINT_INTERVAL` times the memory of `x`. The result is the same, bit by bit,
/// on every run and for any number of threads.
///
/// # Panics
/// If an input's size does not fit `dims`.
pub fn forward(inputs: &SsdInputs, save_checkpoints: bool) -> SsdOutputs {
    inputs.check("ssd");
    let dims = inputs.dims;
    if dims.seq_len == 1 && !save_checkpoints {
        let zeros = || vec![0.0; dims.state_len()];
        let mut state = inputs.initial_state.map_or_else(zeros, <[f32]>::to_vec);
        return SsdOutputs {
            y: step(inputs, &mut state),
            final_state: state,
            checkpoints: None,
        };
    }
    let (p, n) = (dims.headdim, dims.d_state);
    let mut y = Output::new(dims.rows(), dims.d_inner());
    let mut final_state = Output::new(dims.batch * dims.nheads * p, n);
    let mut checkpoints = save_checkpoints.then(|| Output::new(dims.checkpoint_len() / p, p));
    let sinks = Sinks {
        y: y.columns(),
        final_state: final_state.columns(),
        checkpoints: checkpoints.as_mut().map(Output::columns),
    };
    // Four tasks a thread keep all busy to the end. Heads do not meet, so that the cut is free to
    // follow the machine.
    let tasks = 4 * rayon::current_num_threads();
    let span = (dims.batch * dims.nheads / tasks).clamp(1, MAX_SPAN);
    let spans = Spans { dims, span };
    (0..spans.tasks()).into_par_iter().for_each(|task| {
        let (batch, group, _, heads) = spans.task(task);
        Task {
            inputs,
            sinks: &sinks,
            batch,
            group,
            heads,
        }
        .run();
    });
    // SAFETY: the tasks are done, and together they own all heads of all sequences.
    unsafe {
        SsdOutputs {
            y: y.finish(),
            final_state: final_state.finish(),
            checkpoints: checkpoints.map(|checkpoints| checkpoints.finish()),
        }
    }
}

struct Sinks<'a> {
    /// `[batch * seq_len, nheads * headdim]`
    y: Columns<'a>,
    /// `[batch * nheads * headdim, d_state]`
    final_state: Columns<'a>,
    /// `[batch * chunks * nheads * d_state, headdim]`
    checkpoints: Option<Columns<'a>>,
}

struct Task<'a> {
    inputs: &'a SsdInputs<'a>,
    sinks: &'a Sinks<'a>,
    batch: usize,
    group: usize,
    heads: Range<usize>,
}

impl Task<'_> {
    fn run(self) {
        let (inputs, sinks, batch) = (self.inputs, self.sinks, self.batch);
        let dims = inputs.dims;
        let (p, n) = (dims.headdim, dims.d_state);
        let most = dims.seq_len.min(CHECKPOINT_INTERVAL);
        let mut states: Vec<_> = self.heads.clone().map(|head| self.state(head)).collect();
        let (mut b, mut c) = (Padded::zeros(most, n), Padded::zeros(most, n));
        let mut c_transposed = Padded::zeros(n, most);
        let mut scores = Padded::zeros(most, most);
        let mut weights = Padded::zeros(most, most);
        let (mut x, mut parts) = (Padded::zeros(most, p), Padded::zeros(most, p));
        let mut positions = Positions::ZERO;
        let mut ahead = Ahead::default();

        for chunk in 0..dims.checkpoints() {
            let rows = dims.chunk_rows(batch, chunk);
            let len = whole_vectors(rows.len());
            let columns = dims.states(self.group);
            load(inputs.b, rows.clone(), columns.clone(), &mut b);
            load(inputs.c, rows.clone(), columns, &mut c);
            transpose(&c, len, &mut c_transposed);
            let mut tiles = Scores {
                b: Left::plain(&b),
                c: &c_transposed,
                d_state: n,
                to: &mut scores,
            };
            upper_product(len, &mut tiles);
            // Nothing has entered the first chunk of a sequence without an initial state.
            let empty = chunk == 0 && inputs.initial_state.is_none();

            for (head, state) in self.heads.clone().zip(&mut states) {
                if let Some(checkpoints) = &sinks.checkpoints {
                    let row = ((batch * dims.checkpoints() + chunk) * dims.nheads + head) * n;
                    // SAFETY: this task alone writes this head of this sequence.
                    unsafe { store(state, checkpoints, row..row + n, 0..p) };
                }
                self.look_ahead(chunk, head, &mut ahead);
                positions.fill(inputs, &rows, head, false);
                let channels = dims.channels(head);
                load(inputs.x, rows.clone(), channels.clone(), &mut x);
                dispatch(Weigh {
                    positions: &positions,
                    scores: &scores,
                    len,
                    to: &mut weights,
                });
                let mut tiles = Outputs {
                    c: Left::plain(&c),
                    state,
                    d_state: if empty { 0 } else { n },
                    entered: positions.entered.values(),
                    weights: Left::transposed(&weights),
                    x: &x,
                    skip: inputs.skip(head),
                    to: sinks.y.block(&rows, &channels),
                    stride: sinks.y.width(),
                    rows: rows.len(),
                    columns: p,
                    ahead: &mut ahead,
                };
                product(0..len, 0..x.vectors(), &mut tiles);
                dispatch(ScaleRows {
                    from: &x,
                    factors: &positions.left.values()[..len],
                    to: &mut parts,
                });
                let vectors = state.vectors();
                let mut tiles = States {
                    left: Left::transposed(&b),
                    parts: &parts,
                    len,
                    through: positions.through,
                    state,
                    ahead: &mut ahead,
                };
                product(0..whole_vectors(n), 0..vectors, &mut tiles);
            }
        }
        for (head, state) in self.heads.clone().zip(&states) {
            let row = (batch * dims.nheads + head) * p;
            // SAFETY: as above.
            unsafe { store_transposed(state, None, &sinks.final_state, row..row + p, 0..n) };
        }
    }

    /// What the head after `head`, or the first one in the next chunk, reads and writes, and the head's
    /// share of what all read there.
    fn look_ahead(&self, chunk: usize, head: usize, ahead: &mut Ahead) {
        let (inputs, dims) = (self.inputs, self.inputs.dims);
        let (index, heads) = (head - self.heads.start, self.heads.len());
        let here = dims.chunk_rows(self.batch, chunk);
        let after = here.end..(here.end + CHECKPOINT_INTERVAL).min((self.batch + 1) * dims.seq_len);
        let (rows, next) = if index + 1 < heads {
            (here, head + 1)
        } else {
            (after.clone(), self.heads.start)
        };
        ahead.clear();
        let (first, p) = (dims.channels(next).start, dims.headdim);
        ahead.add(inputs.x.line(rows.start, first), rows.len(), p);
        ahead.add(self.sinks.y.line(rows.start, first), rows.len(), p);
        let share = after.start + index * after.len() / heads
            ..after.start + (index + 1) * after.len() / heads;
        let first = dims.states(self.group).start;
        for rows in [inputs.b, inputs.c] {
            ahead.add(rows.line(share.start, first), share.len(), dims.d_state);
        }
    }

    /// A head's states before the first position, `[d_state, headdim]`.
    fn state(&self, head: usize) -> Padded {
        let SsdDims {
            headdim, d_state, ..
        } = self.inputs.dims;
        let mut state = Padded::zeros(d_state, headdim);
        if let Some(initial) = self.inputs.initial_state(self.batch, head) {
            load_transposed(initial, 0..headdim, 0..d_state, &mut state);
        }
        state
    }
}

/// What `x_s` adds to `y_t`: scores times decays and step sizes.
struct Weigh<'a> {
    positions: &'a Positions,
    scores: &'a Padded,
    len: usize,
    to: &'a mut Padded,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for s in 0..self.len {
            let dt = V::splat(self.positions.dt.values()[s]);
            let (scores, to) = (self.scores.row(s), self.to.row_mut(s));
            for vector in s / LANES..self.len / LANES {
                let score = V::load(&scores[vector]) * dt;
                (self.positions.decays_from::<V>(s, vector) * score).store(&mut to[vector]);
            }
        }
    }
}

/// `y_t = entered_t c_t . state + sum_s weights_st x_s + d x_t`
struct Outputs<'a> {
    c: Left<'a>,
    state: &'a Padded,
    d_state: usize,
    entered: &'a [f32],
    weights: Left<'a>,
    x: &'a Padded,
    skip: Option<&'a [f32]>,
    to: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
    ahead: &'a mut Ahead,
}

impl Tiles for Outputs<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::zero();
        tile.add_product_and_ask(self.c, row, self.state, vector, self.d_state, self.ahead);
        tile.scale_rows(self.entered, row);
        tile.add_product(self.weights, row, self.x, vector, 0..row + R);
        for c in 0..C {
            let start = (vector + c) * LANES;
            let columns = start..self.columns.min(start + LANES);
            let skip = skip_weights::<V>(self.skip, &columns);
            for r in 0..R.min(self.rows.saturating_sub(row)) {
                let x = V::load(&self.x.row(row + r)[vector + c]);
                let y = skip.mul_add(x, tile.0[r][c]);
                // SAFETY: inside the block of this head and chunk, which is this task's alone.
                unsafe {
                    let to = self.to.add((row + r) * self.stride + start);
                    y.write_first(to, columns.len());
                }
            }
        }
    }
}
