//! Products that both directions make.

use super::super::simd::{Kernel, Lanes, Vector};
use super::ahead::Ahead;
use super::padded::Padded;
use super::tile::{Left, Tile, Tiles};
use std::ops::Range;

/// `scores_st = b_s . c_t`, where `t` is not in a vector before that of `s`.
pub struct Scores<'a> {
    pub b: Left<'a>,
    /// `[d_state, positions]`
    pub c: &'a Padded,
    pub d_state: usize,
    pub to: &'a mut Padded,
}

impl Tiles for Scores<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::zero();
        tile.add_product(self.b, row, self.c, vector, 0..self.d_state);
        tile.store(self.to, row, vector);
    }
}

/// Those of some channels, given one a channel or a single one; zero without them.
#[inline(always)]
pub fn skip_weights<V: Vector>(skip: Option<&[f32]>, columns: &Range<usize>) -> V {
    match skip {
        None => V::zero(),
        Some(&[single]) => V::splat(single),
        Some(skip) => V::load_padded(&skip[columns.clone()]),
    }
}

/// Each row times its factor.
pub struct ScaleRows<'a> {
    pub from: &'a Padded,
    pub factors: &'a [f32],
    pub to: &'a mut Padded,
}

impl Kernel for ScaleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for (row, &factor) in self.factors.iter().enumerate() {
            let to: &mut [Lanes] = self.to.row_mut(row);
            for (from, to) in self.from.row(row).iter().zip(to) {
                (V::load(from) * V::splat(factor)).store(to);
            }
        }
    }
}

/// `state = through state + left parts`
pub struct States<'a> {
    pub left: Left<'a>,
    pub parts: &'a Padded,
    pub len: usize,
    pub through: f32,
    pub state: &'a mut Padded,
    pub ahead: &'a mut Ahead,
}

impl Tiles for States<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::load(self.state, row, vector);
        for r in 0..R {
            for c in 0..C {
                tile.0[r][c] = tile.0[r][c] * V::splat(self.through);
            }
        }
        tile.add_product_and_ask(self.left, row, self.parts, vector, self.len, self.ahead);
        tile.store(self.state, row, vector);
    }
}
