//! One task owns the heads of one sequence that share keys and values, so that no gradient is written by two. It walks blocks
//! of queries, and for each the blocks of keys that they see, whose weights it computes again from the saved sums.

use super::super::rows::{Columns, Output};
use super::super::simd::{Kernel, LANES, Lanes, Vector, dispatch, math::exp2};
use super::super::ssd::copy::{load, store, store_transposed, transpose};
use super::super::ssd::padded::Padded;
use super::super::ssd::tile::{Left, product};
use super::super::ssd::whole_vectors;
use super::blocks::*;
use super::*;
use rayon::prelude::*;

/// Gradients of the inputs, given that of `y` (`[batch * len, heads * dim]`).
///
/// ```text
/// p = softmax(q k^T / sqrt(dim))        dv = p^T dy        ds = p (dy v^T - dy . y) / sqrt(dim)        dq = ds k        dk = ds^T q
/// ```
///
/// The result is the same, bit by bit, on every run and for any number of threads.
///
/// # Panics
/// If a size does not fit `dims`.
pub fn backward(inputs: &AttentionInputs, saved: AttentionSaved, grad_y: Rows) -> AttentionGrads {
    inputs.check();
    let dims = inputs.dims;
    saved.check(dims);
    let (queries, keys) = (dims.batch * dims.len, dims.batch * dims.seen);
    grad_y.check("attention", "grad_y", queries, dims.heads * dims.dim);
    let mut query = Output::new(queries, dims.heads * dims.dim);
    let [mut key, mut value] = [(); 2].map(|()| Output::new(keys, dims.kv_heads * dims.dim));
    let sinks = Sinks {
        query: query.columns(),
        key: key.columns(),
        value: value.columns(),
    };
    (0..dims.batch * dims.kv_heads)
        .into_par_iter()
        .for_each_init(
            || Scratch::new(dims),
            |scratch, task| {
                let task = Task {
                    inputs,
                    saved,
                    grad_y,
                    batch: task / dims.kv_heads,
                    kv_head: task % dims.kv_heads,
                };
                task.run(scratch, &sinks);
            },
        );
    // SAFETY: the tasks are done, and together they own all heads of all positions.
    unsafe {
        AttentionGrads {
            query: query.finish(),
            key: key.finish(),
            value: value.finish(),
        }
    }
}

struct Sinks<'a> {
    query: Columns<'a>,
    key: Columns<'a>,
    value: Columns<'a>,
}

/// What a thread's tasks use one after the other.
struct Scratch {
    /// Rows as they come, `[QUERIES, dim]`.
    query: Padded,
    grad_y: Padded,
    /// The same transposed, `[dim, QUERIES]`, the queries scaled.
    query_t: Padded,
    grad_y_t: Padded,
    y_t: Padded,
    /// `[KEYS, dim]`
    key: Padded,
    value: Padded,
    /// `[KEYS, QUERIES]`: scores and then weights, and their gradients.
    weights: Padded,
    grads: Padded,
    /// `[dim, QUERIES]`
    grad_query: Padded,
    /// `[seen, dim]`
    grad_key: Padded,
    grad_value: Padded,
    sums: Sums,
}

/// A lane a query.
struct Sums {
    log_sums: [Lanes; VECTORS],
    /// `dy . y`
    agreement: [Lanes; VECTORS],
}

impl Scratch {
    fn new(dims: AttentionDims) -> Self {
        let rows = |len| Padded::zeros(len, dims.dim);
        let transposed = || Padded::zeros(dims.dim, QUERIES);
        let pairs = || Padded::zeros(KEYS, QUERIES);
        Self {
            query: rows(QUERIES),
            grad_y: rows(QUERIES),
            query_t: transposed(),
            grad_y_t: transposed(),
            y_t: transposed(),
            key: rows(KEYS),
            value: rows(KEYS),
            weights: pairs(),
            grads: pairs(),
            grad_query: transposed(),
            grad_key: rows(dims.seen),
            grad_value: rows(dims.seen),
            sums: Sums {
                log_sums: [Lanes::ZERO; VECTORS],
                agreement: [Lanes::ZERO; VECTORS],
            },
        }
    }
}

struct Task<'a> {
    inputs: &'a AttentionInputs<'a>,
    saved: AttentionSaved<'a>,
    grad_y: Rows<'a>,
    batch: usize,
    kv_head: usize,
}

impl Task<'_> {
    fn run(self, scratch: &mut Scratch, sinks: &Sinks) {
        let dims = self.inputs.dims;
        scratch.grad_key.clear();
        scratch.grad_value.clear();
        for head in self.kv_head * dims.group()..(self.kv_head + 1) * dims.group() {
            for first in (0..dims.len).step_by(QUERIES) {
                let queries = first..dims.len.min(first + QUERIES);
                self.block(head, &queries, scratch, sinks);
            }
        }
        let (rows, columns) = (
            dims.key_rows(self.batch, &(0..dims.seen)),
            dims.columns(self.kv_head),
        );
        let all = whole_vectors(dims.dim);
        // The queries were not scaled where they met the gradients.
        dispatch(Scale {
            factor: 1.0 / (dims.dim as f32).sqrt(),
            vectors: all / LANES,
            matrix: &mut scratch.grad_key,
        });
        // SAFETY: this task alone writes this head of this sequence.
        unsafe {
            store(&scratch.grad_key, &sinks.key, rows.clone(), columns.clone());
            store(&scratch.grad_value, &sinks.value, rows, columns);
        }
    }

    fn block(&self, head: usize, queries: &Range<usize>, scratch: &mut Scratch, sinks: &Sinks) {
        let AttentionInputs {
            dims,
            query,
            key,
            value,
        } = *self.inputs;
        let own = dims.query_rows(self.batch, queries);
        let (columns, theirs) = (dims.columns(head), dims.columns(self.kv_head));
        let (len, all) = (whole_vectors(queries.len()), whole_vectors(dims.dim));
        load(query, own.clone(), columns.clone(), &mut scratch.query);
        transpose(&scratch.query, len, &mut scratch.query_t);
        // A buffer that is free so far.
        load(self.saved.y, own.clone(), columns.clone(), &mut scratch.key);
        transpose(&scratch.key, len, &mut scratch.y_t);
        load(
            self.grad_y,
            own.clone(),
            columns.clone(),
            &mut scratch.grad_y,
        );
        transpose(&scratch.grad_y, len, &mut scratch.grad_y_t);
        scratch.grad_query.clear();
        let row = (self.batch * dims.heads + head) * dims.len;
        let log_sums = &self.saved.log_sums[row + queries.start..row + queries.end];
        // Lanes without a query have weights, too, which meet zeros: they must be finite.
        scratch.sums.log_sums = [Lanes::ZERO; VECTORS];
        Lanes::values_mut(&mut scratch.sums.log_sums)[..log_sums.len()].copy_from_slice(log_sums);
        dispatch(Scale {
            factor: dims.scale(),
            vectors: len / LANES,
            matrix: &mut scratch.query_t,
        });
        dispatch(Agreement {
            y: &scratch.y_t,
            grad_y: &scratch.grad_y_t,
            to: &mut scratch.sums.agreement,
        });

        let positions = positions(dims, queries);
        for block in key_blocks(dims, queries) {
            let rows = dims.key_rows(self.batch, &block.keys);
            let keys = whole_vectors(block.keys.len());
            let vectors = block.vectors.clone();
            let steps = vectors.start * LANES..len;
            load(key, rows.clone(), theirs.clone(), &mut scratch.key);
            load(value, rows, theirs.clone(), &mut scratch.value);
            let scores = |left, right, to| Product {
                left,
                right,
                steps: dims.dim,
                to,
            };
            let (left, right) = (Left::plain(&scratch.key), &scratch.query_t);
            let mut tiles = scores(left, right, &mut scratch.weights);
            product(0..keys, vectors.clone(), &mut tiles);
            let (left, right) = (Left::plain(&scratch.value), &scratch.grad_y_t);
            let mut tiles = scores(left, right, &mut scratch.grads);
            product(0..keys, vectors.clone(), &mut tiles);
            dispatch(Grads {
                weights: &mut scratch.weights,
                grads: &mut scratch.grads,
                sums: &scratch.sums,
                positions: &positions,
                block: &block,
            });
            let across = scratch.grad_key.vectors();
            let mut tiles = AddProduct {
                left: Left::plain(&scratch.weights),
                right: &scratch.grad_y,
                steps: steps.clone(),
                to: &mut scratch.grad_value,
                offset: block.keys.start,
            };
            product(0..keys, 0..across, &mut tiles);
            let mut tiles = AddProduct {
                left: Left::plain(&scratch.grads),
                right: &scratch.query,
                steps,
                to: &mut scratch.grad_key,
                offset: block.keys.start,
            };
            product(0..keys, 0..across, &mut tiles);
            let mut tiles = AddProduct {
                left: Left::transposed(&scratch.key),
                right: &scratch.grads,
                steps: 0..keys,
                to: &mut scratch.grad_query,
                offset: 0,
            };
            product(0..all, vectors, &mut tiles);
        }

        dispatch(Scale {
            factor: 1.0 / (dims.dim as f32).sqrt(),
            vectors: len / LANES,
            matrix: &mut scratch.grad_query,
        });
        // SAFETY: this task alone writes this head of these queries.
        unsafe { store_transposed(&scratch.grad_query, None, &sinks.query, own, columns) };
    }
}

/// The scalar products of columns.
struct Agreement<'a> {
    y: &'a Padded,
    grad_y: &'a Padded,
    to: &'a mut [Lanes; VECTORS],
}

impl Kernel for Agreement<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for c in 0..VECTORS {
            let mut sum = V::zero();
            for row in 0..self.y.rows() {
                let y = V::load(&self.y.row(row)[c]);
                sum = y.mul_add(V::load(&self.grad_y.row(row)[c]), sum);
            }
            sum.store(&mut self.to[c]);
        }
    }
}

/// Scores become weights, and the gradients of weights those of scores.
struct Grads<'a> {
    weights: &'a mut Padded,
    grads: &'a mut Padded,
    sums: &'a Sums,
    positions: &'a [Lanes; VECTORS],
    block: &'a KeyBlock,
}

impl Kernel for Grads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for vector in self.block.vectors.clone() {
            let log_sums = V::load(&self.sums.log_sums[vector]);
            let agreement = V::load(&self.sums.agreement[vector]);
            let positions = V::load(&self.positions[vector]);
            for key in 0..whole_vectors(self.block.keys.len()) {
                let weight = &mut self.weights.row_mut(key)[vector];
                let mut score = V::load(weight);
                if self.block.masked {
                    score = mask(score, positions, self.block.keys.start + key);
                }
                let value = exp2(score - log_sums);
                value.store(weight);
                let grad = &mut self.grads.row_mut(key)[vector];
                (value * (V::load(grad) - agreement)).store(grad);
            }
        }
    }
}
