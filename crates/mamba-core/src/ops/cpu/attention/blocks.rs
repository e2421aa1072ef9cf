//! Blocks of queries and of the keys that they see, and their scores.
//!
//! Lanes are queries, so that the softmax never crosses lanes; scores are `[keys, queries]`.

use super::super::simd::{Kernel, LANES, Lanes, Vector};
use super::super::ssd::padded::Padded;
use super::super::ssd::tile::{Left, Tile, Tiles};
use super::AttentionDims;
use std::ops::Range;

/// Queries of a block: four vectors, whose sums of four rows fill the registers of AVX-512.
pub const QUERIES: usize = 64;
/// Vectors of a block of queries.
pub const VECTORS: usize = QUERIES / LANES;
/// Keys of a block. With two or four vectors a key (`dim` 32, 64), the scores, the keys and the values of a block take 32 or 48 KiB.
pub const KEYS: usize = 64;

/// What a masked score is: far below any other, and no infinity, whose differences are NaN.
pub const MASKED: f32 = -1e30;

/// Keys that a block of queries reads at once.
#[derive(Clone, Debug)]
pub struct KeyBlock {
    pub keys: Range<usize>,
    /// Vectors of queries of which one sees one of the keys.
    pub vectors: Range<usize>,
    /// Whether a query among those vectors does not see all of them.
    pub masked: bool,
}

/// All keys that `queries` see, in order: whole blocks where all queries see all, and vectors of keys along the diagonal. Blocks begin
/// at whole vectors of keys.
pub fn key_blocks(dims: AttentionDims, queries: &Range<usize>) -> impl Iterator<Item = KeyBlock> {
    let first = dims.past() + queries.start;
    let (all, end) = (first + 1, dims.past() + queries.end);
    let vectors = queries.len().div_ceil(LANES);
    let mut start = 0;
    std::iter::from_fn(move || {
        let seen_by_all = all.saturating_sub(start) / LANES * LANES;
        let len = match seen_by_all {
            0 => LANES.min(end.checked_sub(start).filter(|left| *left > 0)?),
            len => len.min(KEYS),
        };
        let keys = start..start + len;
        start += len;
        Some(KeyBlock {
            vectors: keys.start.saturating_sub(first) / LANES..vectors,
            masked: seen_by_all == 0,
            keys,
        })
    })
}

/// The places of a block's queries among the keys, a lane a query.
pub fn positions(dims: AttentionDims, queries: &Range<usize>) -> [Lanes; VECTORS] {
    let first = dims.past() + queries.start;
    let mut positions = [Lanes::ZERO; VECTORS];
    for (i, place) in Lanes::values_mut(&mut positions).iter_mut().enumerate() {
        // Exact below 2^24, beyond which no list of scores would fit a machine.
        *place = (first + i) as f32;
    }
    positions
}

/// `score` in the lanes whose query sees `key`.
#[inline(always)]
pub fn mask<V: Vector>(score: V, positions: V, key: usize) -> V {
    let distance = positions - V::splat(key as f32);
    distance.select_negative(V::splat(MASKED), score)
}

/// The first vectors of all rows by one factor.
pub struct Scale<'a> {
    pub factor: f32,
    pub vectors: usize,
    pub matrix: &'a mut Padded,
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let factor = V::splat(self.factor);
        for row in 0..self.matrix.rows() {
            for values in &mut self.matrix.row_mut(row)[..self.vectors] {
                (V::load(values) * factor).store(values);
            }
        }
    }
}

/// `to = left right` over all steps of a row of `left`.
pub struct Product<'a> {
    pub left: Left<'a>,
    pub right: &'a Padded,
    pub steps: usize,
    pub to: &'a mut Padded,
}

impl Tiles for Product<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::zero();
        tile.add_product(self.left, row, self.right, vector, 0..self.steps);
        tile.store(self.to, row, vector);
    }
}

/// `to = to + left right` over some steps, in rows of `to` from `offset` on.
pub struct AddProduct<'a> {
    pub left: Left<'a>,
    pub right: &'a Padded,
    pub steps: Range<usize>,
    pub to: &'a mut Padded,
    pub offset: usize,
}

impl Tiles for AddProduct<'_> {
    #[inline(always)]
    fn tile<V: Vector, const R: usize, const C: usize>(&mut self, row: usize, vector: usize) {
        let mut tile = Tile::<V, R, C>::load(self.to, self.offset + row, vector);
        tile.add_product(self.left, row, self.right, vector, self.steps.clone());
        tile.store(self.to, self.offset + row, vector);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_sees_the_keys_up_to_its_own_once() {
        for (len, seen) in [(1, 1), (17, 17), (130, 130), (70, 203), (64, 64), (5, 90)] {
            let dims = AttentionDims {
                batch: 1,
                len,
                seen,
                heads: 1,
                kv_heads: 1,
                dim: 1,
            };
            for first in (0..len).step_by(QUERIES) {
                let queries = first..len.min(first + QUERIES);
                let mut next = 0;
                for block in key_blocks(dims, &queries) {
                    assert_eq!(block.keys.start, next);
                    assert!(next.is_multiple_of(LANES));
                    next = block.keys.end;
                    for (lane, query) in queries.clone().enumerate() {
                        let own = dims.past() + query;
                        let here = block.vectors.contains(&(lane / LANES));
                        let sees = block.keys.clone().any(|key| key <= own);
                        assert!(here || !sees, "{query} of {dims:?} in {block:?}");
                        let all = block.keys.clone().all(|key| key <= own);
                        assert!(block.masked || all);
                    }
                }
                assert_eq!(next, dims.past() + queries.end);
            }
        }
    }
}
