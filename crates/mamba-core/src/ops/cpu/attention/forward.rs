//! One task owns one head of one sequence and a block of its queries, and walks the keys in blocks with a running maximum
//! and sum a query. The weighted sums are `[dim, queries]`, so that queries are lanes from beginning to end.

use super::super::rows::{Columns, Output};
use super::super::simd::{Kernel, LANES, Lanes, Vector, dispatch, math::exp2};
use super::super::ssd::copy::{load, store_transposed, transpose};
use super::super::ssd::padded::Padded;
use super::super::ssd::tile::{Left, Tile, Tiles, product};
use super::super::ssd::whole_vectors;
use super::blocks::*;
use super::*;
use rayon::prelude::*;

/// Runs the operation: `y = softmax(q k^T / sqrt(dim)) v` a head, each query over the keys up to its own.
///
/// The result is the same, bit by bit, on every run and for any number of threads.
///
/// # Panics
/// If an input's size does not fit `dims`.
pub fn forward(inputs: &AttentionInputs) -> AttentionOutputs {
    inputs.check();
    let dims = inputs.dims;
    let mut y = Output::new(dims.batch * dims.len, dims.heads * dims.dim);
    let mut log_sums = Output::new(dims.batch * dims.heads, dims.len);
    let (to, sums_to) = (y.columns(), log_sums.columns());
    let blocks = dims.len.div_ceil(QUERIES);
    (0..dims.batch * dims.heads * blocks)
        .into_par_iter()
        .for_each_init(
            || Scratch::new(dims.dim),
            |scratch, task| {
                // The longest rows first: short ones fill the end.
                let block = blocks - 1 - task % blocks;
                let task = Task {
                    inputs,
                    batch: task / blocks / dims.heads,
                    head: task / blocks % dims.heads,
                    queries: block * QUERIES..dims.len.min((block + 1) * QUERIES),
                };
                task.run(scratch, &to, &sums_to);
            },
        );
    // SAFETY: the tasks are done, and together they own all heads of all queries.
    unsafe {
        AttentionOutputs {
            y: y.finish(),
            log_sums: log_sums.finish(),
        }
    }
}

/// What a thread's tasks use one after the other.
struct Scratch {
    /// Queries, keys or values as they come, `[KEYS, dim]`.
    rows: Padded,
    /// `[dim, QUERIES]`, scaled.
    queries: Padded,
    /// `[KEYS, QUERIES]`, scores and then weights.
    scores: Padded,
    /// `[dim, QUERIES]`
    sums: Padded,
    running: Running,
}

/// The softmax so far, a lane a query.
struct Running {
    max: [Lanes; VECTORS],
    sum: [Lanes; VECTORS],
    /// What the last block multiplies everything before it by.
    shrink: [Lanes; VECTORS],
}

impl Scratch {
    fn new(dim: usize) -> Self {
        Self {
            rows: Padded::zeros(KEYS, dim),
            queries: Padded::zeros(dim, QUERIES),
            scores: Padded::zeros(KEYS, QUERIES),
            sums: Padded::zeros(dim, QUERIES),
            running: Running {
                max: [Lanes::ZERO; VECTORS],
                sum: [Lanes::ZERO; VECTORS],
                shrink: [Lanes::ZERO; VECTORS],
            },
        }
    }
}

struct Task<'a> {
    inputs: &'a AttentionInputs<'a>,
    batch: usize,
    head: usize,
    queries: Range<usize>,
}

impl Task<'_> {
    fn run(self, scratch: &mut Scratch, y: &Columns, log_sums: &Columns) {
        let AttentionInputs {
            dims,
            query,
            key,
            value,
        } = *self.inputs;
        let own = dims.query_rows(self.batch, &self.queries);
        let (columns, theirs) = (
            dims.columns(self.head),
            dims.columns(self.head / dims.group()),
        );
        let len = whole_vectors(self.queries.len());
        load(query, own.clone(), columns.clone(), &mut scratch.rows);
        transpose(&scratch.rows, len, &mut scratch.queries);
        let all = whole_vectors(dims.dim);
        dispatch(Scale {
            factor: dims.scale(),
            vectors: len / LANES,
            matrix: &mut scratch.queries,
        });
        scratch.sums.clear();
        scratch.running.max = [Lanes([MASKED; LANES]); VECTORS];
        scratch.running.sum = [Lanes::ZERO; VECTORS];

        let positions = positions(dims, &self.queries);
        for block in key_blocks(dims, &self.queries) {
            let rows = dims.key_rows(self.batch, &block.keys);
            let keys = whole_vectors(block.keys.len());
            load(key, rows.clone(), theirs.clone(), &mut scratch.rows);
            let mut tiles = Product {
                left: Left::plain(&scratch.rows),
                right: &scratch.queries,
                steps: dims.dim,
                to: &mut scratch.scores,
            };
            product(0..keys, block.vectors.clone(), &mut tiles);
            dispatch(Softmax {
                scores: &mut scratch.scores,
                running: &mut scratch.running,
                positions: &positions,
                block: &block,
            });
            load(value, rows, theirs.clone(), &mut scratch.rows);
            let mut tiles = Gather {
                values: Left::transposed(&scratch.rows),
                weights: &scratch.scores,
                keys,
                shrink: &scratch.running.shrink,
                to: &mut scratch.sums,
            };
            product(0..all, block.vectors, &mut tiles);
        }

        dispatch(Divide {
            sums: &mut scratch.sums,
            by: &scratch.running.sum,
        });
        let row = self.batch * dims.heads + self.head;
        let to = log_sums.block(&(row..row + 1), &self.queries);
        // SAFETY: this task alone writes this head of these queries.
        unsafe {
            store_transposed(&scratch.sums, None, y, own, columns);
            let to = std::slice::from_raw_parts_mut(to, self.queries.len());
            let max = Lanes::values(&scratch.running.max);
            let sums = Lanes::values(&scratch.running.sum);
            for ((to, max), sum) in to.iter_mut().zip(max).zip(sums) {
                *to = max + sum.log2();
            }
        }
    }
}

/// Scores become weights relative to the largest score so far.
struct Softmax<'a> {
    scores: &'a mut Padded,
    running: &'a mut Running,
    positions: &'a [Lanes; VECTORS],
    block: &'a KeyBlock,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let vectors = self.block.vectors.clone();
        let mut vector = vectors.start;
        while vector < vectors.end {
            if vectors.end - vector >= 2 {
                self.some::<V, 2>(vector);
                vector += 2;
            } else {
                self.some::<V, 1>(vector);
                vector += 1;
            }
        }
    }
}

impl Softmax<'_> {
    #[inline(always)]
    fn some<V: Vector, const C: usize>(&mut self, vector: usize) {
        let keys = whole_vectors(self.block.keys.len());
        let mut max = [V::zero(); C];
        for c in 0..C {
            max[c] = V::load(&self.running.max[vector + c]);
        }
        for key in 0..keys {
            let scores = &mut self.scores.row_mut(key)[vector..vector + C];
            for c in 0..C {
                let mut score = V::load(&scores[c]);
                if self.block.masked {
                    let positions = V::load(&self.positions[vector + c]);
                    score = mask(score, positions, self.block.keys.start + key);
                    score.store(&mut scores[c]);
                }
                max[c] = score.at_least(max[c]);
            }
        }
        let mut sum = [V::zero(); C];
        for c in 0..C {
            let shrink = exp2(V::load(&self.running.max[vector + c]) - max[c]);
            sum[c] = V::load(&self.running.sum[vector + c]) * shrink;
            shrink.store(&mut self.running.shrink[vector + c]);
            max[c].store(&mut self.running.max[vector + c]);
        }
        for key in 0..keys {
            let scores = &mut self.scores.row_mut(key)[vector..vector + C];
            for c in 0..C {
                let weight = exp2(V::load(&scores[c]) - max[c]);
                weight.store(&mut scores[c]);
                sum[c] = sum[c] + weight;
            }
        }
        for c in 0..C {
            sum[c].store(&mut self.running.sum[vector + c]);
        }
    }
}

/// `to = shrink to + values^T weights`
struct Gather<'a> {
    values: Left<'a>,
    weights: &'a Padded,
    keys: usize,
    shrink: &'a [Lanes; VECTORS],
    to: &'a mut Padded,
}

impl Tiles for Gather<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::load(self.to, row, vector);
        for c in 0..C {
            let shrink = V::load(&self.shrink[vector + c]);
            for r in 0..R {
                tile.0[r][c] = tile.0[r][c] * shrink;
            }
        }
        tile.add_product(self.values, row, self.weights, vector, 0..self.keys);
        tile.store(self.to, row, vector);
    }
}

/// Each column by its divisor.
struct Divide<'a> {
    sums: &'a mut Padded,
    by: &'a [Lanes; VECTORS],
}

impl Kernel for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let mut factors = [V::zero(); VECTORS];
        for c in 0..VECTORS {
            let by = self.by[c].0.map(|sum| 1.0 / sum);
            factors[c] = V::load_array(&by);
        }
        for row in 0..self.sums.rows() {
            let row = self.sums.row_mut(row);
            for c in 0..VECTORS {
                (V::load(&row[c]) * factors[c]).store(&mut row[c]);
            }
        }
    }
}
