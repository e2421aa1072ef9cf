//! Where a cube works, and how tiles reach shared memory.

use cubecl::prelude::*;

use super::super::tile::{Spot, Sums, Tile, spot};
use super::plan::Plan;
use super::reduce::spot_from;
use crate::bits::{flaw, is_zero, round_to};

/// A head of a sequence, and where its steps lie.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Head {
    pub batch: usize,
    pub head: usize,
    pub group: usize,
    /// First entry in a `[batch, nheads, length]` tensor.
    pub steps: usize,
    /// First entry in a `[batch, length]` tensor.
    pub runs: usize,
}

#[cube]
pub(super) fn head(
    batch: usize,
    head: usize,
    heads_a_group: usize,
    nheads: usize,
    length: usize,
) -> Head {
    Head {
        batch,
        head,
        group: head / heads_a_group,
        steps: (batch * nheads + head) * length,
        runs: batch * length,
    }
}

/// The end of a stretch of positions that decays are counted to or from.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Edge {
    /// The sum of the steps there, as `Steps::sums`.
    pub sum: f32,
    /// The run, as `Steps::runs`.
    pub run: u32,
}

/// The edge that position `t` is; without a position before it, the beginning of its interval.
#[cube]
pub(super) fn edge_at(
    sums: &Tensor<f32>, // [batch, nheads, length]
    runs: &Tensor<u32>, // [batch, length], unread without `seq_idx`
    head: &Head,
    t: usize,
    #[comptime] resettable: bool,
) -> Edge {
    let mut run = 0u32;
    if resettable {
        run = runs[head.runs + t];
    }
    Edge {
        sum: sums[head.steps + t],
        run,
    }
}

/// Rows of a sequence or projection that a tile is filled from.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    pub batch: usize,
    /// First position and the one after the last.
    pub start: usize,
    pub stop: usize,
    /// Of the last two axes together: the first value, and how many there are.
    pub column: usize,
    pub columns: usize,
}

/// A block of a head's channels.
#[cube]
pub(super) fn channel_rows(
    head: &Head,
    start: usize,
    stop: usize,
    block: usize,
    #[comptime] plan: Plan,
) -> Rows {
    let channel = block * comptime!(plan.channels);
    Rows {
        batch: head.batch,
        start,
        stop,
        column: head.head * comptime!(plan.headdim) + channel,
        columns: comptime!(plan.headdim) - channel,
    }
}

/// A slice of a group's states.
#[cube]
pub(super) fn state_rows(
    batch: usize,
    group: usize,
    start: usize,
    stop: usize,
    slice: usize,
    #[comptime] plan: Plan,
) -> Rows {
    let state = slice * comptime!(plan.slice);
    Rows {
        batch,
        start,
        stop,
        column: group * comptime!(plan.d_state) + state,
        columns: comptime!(plan.d_state) - state,
    }
}

/// How rows change on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Staging {
    /// As they are.
    Plain,
    /// Times a weight each. A weight of zero leaves nothing, not even of NaN.
    Weighted,
    /// Without those whose weight is zero.
    Passing,
    /// What is not finite becomes zero, and its row's mark NaN: products with other runs stay clean.
    Marked,
}

/// Fills a tile. Rows and columns that there are not are zeros.
#[cube]
pub(super) fn stage<F: Float, L: Size, V: Size>(
    source: &Tensor<Vector<F, L>>,
    rows: &Rows,
    target: &mut Shared<[Vector<F, V>]>,
    at: usize,
    marks: &mut Shared<[f32]>, // from `mark_at`: weights or marks of the rows
    mark_at: usize,
    #[comptime] staging: Staging,
    #[comptime] tile: Tile,
    #[comptime] plan: Plan,
) {
    let across = comptime!(tile.columns / tile.lanes);
    let lanes = comptime!(tile.lanes);
    let width = comptime!(plan.width);
    let base = rows.batch * source.stride(0) + rows.start * source.stride(1) + rows.column;
    let stride = source.stride(1);
    let vectors = comptime!(tile.rows * across);
    #[unroll]
    for step in 0..comptime!(vectors.div_ceil(plan.units)) {
        let slot = UNIT_POS as usize + comptime!(step * plan.units);
        if comptime!((step + 1) * plan.units <= vectors) || slot < vectors {
            let row = slot / across;
            let column = slot % across * lanes;
            let mut vector = Vector::<F, V>::empty();
            let mut mark = 0.0f32;
            if comptime!(staging == Staging::Weighted || staging == Staging::Passing) {
                mark = marks[mark_at + row];
            }
            #[unroll]
            for i in 0..comptime!(lanes / width) {
                let here = column + comptime!(i * width);
                let mut inside = rows.start + row < rows.stop && here < rows.columns;
                let index = select(inside, base + row * stride + here, base);
                let mut values = source[index / width];
                if comptime!(staging == Staging::Weighted || staging == Staging::Passing) {
                    inside = inside && !is_zero(mark);
                }
                if !inside {
                    values = Vector::new(F::new(0.0));
                }
                #[unroll]
                for j in 0..width {
                    let lane = comptime!(i * width + j);
                    let value = values.extract(j);
                    if comptime!(staging == Staging::Weighted) {
                        vector.insert(lane, round_to::<F>(f32::cast_from(value) * mark));
                    } else if comptime!(staging == Staging::Marked) {
                        let value = f32::cast_from(value);
                        // NaN of an infinity, too.
                        let mark = flaw(value);
                        let finite = is_zero(mark);
                        if !finite {
                            marks[mark_at + row] = mark;
                        }
                        vector.insert(lane, F::cast_from(select(finite, value, 0.0f32)));
                    } else {
                        vector.insert(lane, F::cast_from(value));
                    }
                }
            }
            target[at + row * comptime!(tile.pitch()) + slot % across] = vector;
        }
    }
}

/// Reads a state `[headdim, d_state]` that begins at `base`, times `factor`: zero leaves nothing, not even of NaN.
#[cube]
pub(super) fn read_state<W: Size>(
    source: &Tensor<Vector<f32, W>>,
    base: usize,
    factor: f32,
    block: usize,
    slice: usize,
    state: &mut Array<f32>,
    #[comptime] form: Sums,
    #[comptime] plan: Plan,
) {
    let pair = comptime!(plan.pair);
    let origin = spot(0usize, form);
    #[unroll]
    for i in 0..comptime!(form.values() / plan.pair) {
        let spot = spot_from(&origin, comptime!(i * plan.pair), form);
        let channel = block * comptime!(plan.channels) + spot.row;
        let n = slice * comptime!(plan.slice) + spot.column;
        let inside = channel < comptime!(plan.headdim) && n < comptime!(plan.d_state);
        let index = base + channel * comptime!(plan.d_state) + n;
        let values = source[select(inside, index, base) / pair];
        #[unroll]
        for j in 0..pair {
            let value = values.extract(j) * factor;
            state[comptime!(i * pair + j)] = select(inside && !is_zero(factor), value, 0.0f32);
        }
    }
}

/// The counterpart of [`read_state`].
#[cube]
pub(super) fn write_state<W: Size>(
    target: &mut Tensor<Vector<f32, W>>,
    base: usize,
    block: usize,
    slice: usize,
    state: &Array<f32>,
    #[comptime] form: Sums,
    #[comptime] plan: Plan,
) {
    let pair = comptime!(plan.pair);
    let origin = spot(0usize, form);
    #[unroll]
    for i in 0..comptime!(form.values() / plan.pair) {
        let spot = spot_from(&origin, comptime!(i * plan.pair), form);
        let channel = block * comptime!(plan.channels) + spot.row;
        let n = slice * comptime!(plan.slice) + spot.column;
        let inside = channel < comptime!(plan.headdim) && n < comptime!(plan.d_state);
        if inside {
            let mut values = Vector::<f32, W>::empty();
            #[unroll]
            for j in 0..pair {
                values.insert(j, state[comptime!(i * pair + j)]);
            }
            target[(base + channel * comptime!(plan.d_state) + n) / pair] = values;
        }
    }
}

/// The value of a tile, which begins at the vector `at`, where the unit's sum `i` belongs.
#[cube]
pub(super) fn value_at<F: Float, V: Size>(
    source: &Shared<[Vector<F, V>]>,
    at: usize,
    origin: &Spot,
    #[comptime] i: usize,
    #[comptime] tile: Tile,
    #[comptime] form: Sums,
) -> f32 {
    let spot = spot_from(origin, i, form);
    let row = at + spot.row * comptime!(tile.pitch());
    let scalars = source.with_vector_size::<Const<1>>();
    f32::cast_from(scalars[row * comptime!(tile.lanes) + spot.column].extract(0usize))
}
