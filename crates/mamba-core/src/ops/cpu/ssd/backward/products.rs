//! The products of a chunk's gradients.

use super::super::super::rows::Columns;
use super::super::super::simd::{LANES, Lanes, Vector};
use super::super::ahead::Ahead;
use super::super::padded::Padded;
use super::super::positions::{PerPosition, Positions};
use super::super::shared::skip_weights;
use super::super::tile::{Left, Tile, Tiles};
use std::ops::Range;

/// `to_st = x_s . grad_y_t`, where `t` is not in a vector before that of `s`.
pub struct Agreement<'a> {
    pub x: Left<'a>,
    /// `[headdim, positions]`
    pub grad_y: &'a Padded,
    pub headdim: usize,
    pub to: &'a mut Padded,
}

impl Tiles for Agreement<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::zero();
        tile.add_product(self.x, row, self.grad_y, vector, 0..self.headdim);
        tile.store(self.to, row, vector);
    }
}

/// What positions learn from the gradients of `x`.
pub struct Sums {
    /// `x_s . to_end_s (grad_state b_s)`: gradient of `dt_s` through the chunk's last state.
    pub leaving: PerPosition,
    /// The whole gradient of `dt_s` apart from decays.
    pub direct: PerPosition,
}

/// Before step size and skip, `grad_x_s = to_end_s grad_state b_s + sum_t weights_st grad_y_t`.
pub struct GradX<'a> {
    pub b: Left<'a>,
    pub grad_state: &'a Padded,
    /// None if nothing comes from later chunks.
    pub d_state: usize,
    pub positions: &'a Positions,
    pub weights: Left<'a>,
    pub x: &'a Padded,
    pub grad_y: &'a Padded,
    pub skip: Option<&'a [f32]>,
    pub to: &'a Columns<'a>,
    pub rows: &'a Range<usize>,
    pub channels: &'a Range<usize>,
    pub len: usize,
    pub sums: &'a mut Sums,
    /// Gradient of the skip weights, one a channel.
    pub grad_d: &'a mut [Lanes],
    pub ahead: &'a mut Ahead,
}

impl Tiles for GradX<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::zero();
        tile.add_product_and_ask(
            self.b,
            row,
            self.grad_state,
            vector,
            self.d_state,
            self.ahead,
        );
        tile.scale_rows(self.positions.to_end.values(), row);
        add_dots(self.x, &tile, row, vector, &mut self.sums.leaving);
        tile.add_product(self.weights, row, self.grad_y, vector, row..self.len);
        add_dots(self.x, &tile, row, vector, &mut self.sums.direct);

        tile.scale_rows(self.positions.dt.values(), row);
        let block = self.to.block(self.rows, self.channels);
        for c in 0..C {
            let start = (vector + c) * LANES;
            let columns = start..self.channels.len().min(start + LANES);
            let skip = skip_weights::<V>(self.skip, &columns);
            let mut grad_d = V::load(&self.grad_d[vector + c]);
            for r in 0..R {
                let x = V::load(&self.x.row(row + r)[vector + c]);
                grad_d = x.mul_add(V::load(&self.grad_y.row(row + r)[vector + c]), grad_d);
            }
            grad_d.store(&mut self.grad_d[vector + c]);
            for r in 0..R.min(self.rows.len().saturating_sub(row)) {
                let grad_y = V::load(&self.grad_y.row(row + r)[vector + c]);
                let grad = skip.mul_add(grad_y, tile.0[r][c]);
                // SAFETY: inside the block of this head and chunk, which is this task's alone.
                unsafe {
                    let to = block.add((row + r) * self.to.width() + start);
                    grad.write_first(to, columns.len());
                }
            }
        }
    }
}

/// Adds the scalar products of the tile's rows with those of `x`.
#[inline(always)]
fn add_dots<V: Vector, const R: usize, const C: usize>(
    x: &Padded,
    tile: &Tile<V, R, C>,
    row: usize,
    vector: usize,
    to: &mut PerPosition,
) {
    let to = &mut to.values_mut()[row..row + R];
    for first in (0..R).step_by(4) {
        let mut products = [V::zero(); 4];
        for i in 0..4 {
            let x = &x.row(row + first + i)[vector..vector + C];
            for c in 0..C {
                products[i] = V::load(&x[c]).mul_add(tile.0[first + i][c], products[i]);
            }
        }
        let sums = V::sums(products);
        for i in 0..4 {
            to[first + i] += sums[i];
        }
    }
}

/// Adds `entered_t state^T grad_y_t` to the gradient of `c`, transposed.
pub struct GradC<'a> {
    pub state: Left<'a>,
    /// `[headdim, positions]`
    pub grad_y: &'a Padded,
    pub headdim: usize,
    pub entered: &'a PerPosition,
    /// `[d_state, positions]`
    pub c: &'a Padded,
    pub to: &'a mut Padded,
    /// Gradient of the logarithm of what enters.
    pub entering: &'a mut PerPosition,
    pub ahead: &'a mut Ahead,
}

impl Tiles for GradC<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::zero();
        tile.add_product_and_ask(
            self.state,
            row,
            self.grad_y,
            vector,
            self.headdim,
            self.ahead,
        );
        let factors = Tile::<V, R, C>::load(self.c, row, vector);
        let mut sum = Tile::<V, R, C>::load(self.to, row, vector);
        for c in 0..C {
            let entered = self.entered.vector::<V>(vector + c);
            let mut total = self.entering.vector::<V>(vector + c);
            for r in 0..R {
                let grad = tile.0[r][c] * entered;
                sum.0[r][c] = sum.0[r][c] + grad;
                total = grad.mul_add(factors.0[r][c], total);
            }
            self.entering.set(vector + c, total);
        }
        sum.store(self.to, row, vector);
    }
}

/// Adds `left_s dt_s grad_state^T x_s` to the gradient of `b`, transposed.
pub struct GradB<'a> {
    pub grad_state: Left<'a>,
    /// `[headdim, positions]`
    pub x: &'a Padded,
    pub headdim: usize,
    pub left: &'a PerPosition,
    pub to: &'a mut Padded,
    pub ahead: &'a mut Ahead,
}

impl Tiles for GradB<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::zero();
        tile.add_product_and_ask(
            self.grad_state,
            row,
            self.x,
            vector,
            self.headdim,
            self.ahead,
        );
        let mut sum = Tile::<V, R, C>::load(self.to, row, vector);
        for c in 0..C {
            let left = self.left.vector::<V>(vector + c);
            for r in 0..R {
                sum.0[r][c] = tile.0[r][c].mul_add(left, sum.0[r][c]);
            }
        }
        sum.store(self.to, row, vector);
    }
}

/// What scores have to do with the gradients of `b` (`after`: a row's positions are those from it on)
/// and of `c` (those up to it).
pub struct SharedGrads<'a> {
    pub grad_scores: Left<'a>,
    pub factor: &'a Padded,
    pub after: bool,
    pub len: usize,
    pub to: &'a mut Padded,
}

impl Tiles for SharedGrads<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::zero();
        let steps = if self.after {
            row..self.len
        } else {
            0..row + R
        };
        tile.add_product(self.grad_scores, row, self.factor, vector, steps);
        tile.store(self.to, row, vector);
    }
}
