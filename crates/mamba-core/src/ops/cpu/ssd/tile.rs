//! Products of scratch matrices, a tile of the result in registers at a time.
//!
//! The chunks' products are small, mostly triangular, and each has something to do before or after
//! it. A library would pack their factors first, which takes as long as a good part of them.

use super::super::simd::{Kernel, LANES, Vector, dispatch};
use super::{ahead::Ahead, padded::Padded};
use std::ops::Range;

/// Steps of a product from one [`Ahead::ask`] to the next, and lines to ask for: in 128 cycles, two or
/// three lines can come from memory that takes 100 ns, and the product itself needs some from the
/// second-level cache.
const STEPS_PER_ASK: usize = 16;
const LINES_PER_ASK: usize = 5;

/// The left factor of a product: element `(row, step)`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    data: &'a [f32],
    row_stride: usize,
    step_stride: usize,
}

impl<'a> Left<'a> {
    /// A matrix as it is.
    pub fn plain(matrix: &'a Padded) -> Self {
        Self {
            data: matrix.values(),
            row_stride: matrix.stride(),
            step_stride: 1,
        }
    }

    /// Columns as rows.
    pub fn transposed(matrix: &'a Padded) -> Self {
        Self {
            data: matrix.values(),
            row_stride: 1,
            step_stride: matrix.stride(),
        }
    }
}

/// `R` rows and `C` vectors of a result.
#[derive(Clone, Copy)]
pub struct Tile<V, const R: usize, const C: usize>(pub [[V; C]; R]);

impl<V: Vector, const R: usize, const C: usize> Tile<V, R, C> {
    #[inline(always)]
    pub fn zero() -> Self {
        Self([[V::zero(); C]; R])
    }

    #[inline(always)]
    pub fn load(from: &Padded, row: usize, vector: usize) -> Self {
        let mut tile = Self::zero();
        for r in 0..R {
            let from = &from.row(row + r)[vector..vector + C];
            for c in 0..C {
                tile.0[r][c] = V::load(&from[c]);
            }
        }
        tile
    }

    #[inline(always)]
    pub fn store(&self, to: &mut Padded, row: usize, vector: usize) {
        for r in 0..R {
            let to = &mut to.row_mut(row + r)[vector..vector + C];
            for c in 0..C {
                self.0[r][c].store(&mut to[c]);
            }
        }
    }

    /// Adds rows `row..` of `left` times the vectors `vector..` of `right`, over `steps`.
    #[inline(always)]
    pub fn add_product(
        &mut self,
        left: Left,
        row: usize,
        right: &Padded,
        vector: usize,
        steps: Range<usize>,
    ) {
        if steps.is_empty() {
            return;
        }
        let last = (row + R - 1) * left.row_stride + (steps.end - 1) * left.step_stride;
        assert!(last < left.data.len());
        assert!(steps.end <= right.rows() && vector + C <= right.vectors());
        let stride = right.stride();
        // SAFETY: by the assertions both factors have these rows and columns of these steps.
        unsafe {
            let mut a = left
                .data
                .as_ptr()
                .add(row * left.row_stride + steps.start * left.step_stride);
            let mut b = right
                .values()
                .as_ptr()
                .add(steps.start * stride + vector * LANES);
            for _ in steps {
                let mut vectors = [V::zero(); C];
                for c in 0..C {
                    vectors[c] = V::read(b.add(c * LANES));
                }
                for r in 0..R {
                    let factor = V::splat(*a.add(r * left.row_stride));
                    for c in 0..C {
                        self.0[r][c] = factor.mul_add(vectors[c], self.0[r][c]);
                    }
                }
                a = a.wrapping_add(left.step_stride);
                b = b.wrapping_add(stride);
            }
        }
    }

    /// [`add_product`](Self::add_product), asking for memory on the way.
    #[inline(always)]
    pub fn add_product_and_ask(
        &mut self,
        left: Left,
        row: usize,
        right: &Padded,
        vector: usize,
        steps: usize,
        ahead: &mut Ahead,
    ) {
        for start in (0..steps).step_by(STEPS_PER_ASK) {
            ahead.ask(LINES_PER_ASK);
            let some = start..steps.min(start + STEPS_PER_ASK);
            self.add_product(left, row, right, vector, some);
        }
    }

    /// Multiplies each row by its factor, `factors[row..]`.
    #[inline(always)]
    pub fn scale_rows(&mut self, factors: &[f32], row: usize) {
        let factors = &factors[row..row + R];
        for r in 0..R {
            for c in 0..C {
                self.0[r][c] = self.0[r][c] * V::splat(factors[r]);
            }
        }
    }
}

/// A product, tile by tile.
pub trait Tiles {
    /// Does the tile that begins at row `row` and vector `vector` of the result.
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize);
}

/// Runs `tiles` over `rows`, whole vectors of them, and `vectors`.
pub fn product(rows: Range<usize>, vectors: Range<usize>, tiles: &mut impl Tiles) {
    debug_assert!(rows.len().is_multiple_of(LANES));
    dispatch(Product {
        rows,
        vectors,
        tiles,
    });
}

/// As [`product`], of a square result where vectors before the one with a row's own column are left
/// out.
pub fn upper_product(rows: usize, tiles: &mut impl Tiles) {
    for block in 0..rows / LANES {
        let rows_of_block = block * LANES..(block + 1) * LANES;
        product(rows_of_block, block..rows / LANES, tiles);
    }
}

struct Product<'a, T> {
    rows: Range<usize>,
    vectors: Range<usize>,
    tiles: &'a mut T,
}

impl<T: Tiles> Kernel for Product<'_, T> {
    type Output = ();

    /// Sixteen sums hide the latency of multiply-adds and leave registers for the factors; eight do
    /// where a vector takes two registers or there are just sixteen.
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self {
            rows,
            vectors,
            tiles,
        } = self;
        let mut vector = vectors.start;
        while vector < vectors.end {
            let left = vectors.end - vector;
            if V::REGISTERS < 32 {
                down::<V, 4, 1, T>(&rows, vector, tiles);
                vector += 1;
            } else if left >= 4 {
                down::<V, 4, 4, T>(&rows, vector, tiles);
                vector += 4;
            } else if left == 3 {
                down::<V, 4, 3, T>(&rows, vector, tiles);
                vector += 3;
            } else if left == 2 {
                down::<V, 8, 2, T>(&rows, vector, tiles);
                vector += 2;
            } else {
                down::<V, 8, 1, T>(&rows, vector, tiles);
                vector += 1;
            }
        }
    }
}

#[inline(always)]
fn down<V: Vector, const R: usize, const C: usize, T: Tiles>(
    rows: &Range<usize>,
    vector: usize,
    tiles: &mut T,
) {
    for row in rows.clone().step_by(R) {
        tiles.tile::<V, R, C>(row, vector);
    }
}
