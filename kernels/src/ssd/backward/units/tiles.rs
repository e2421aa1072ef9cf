//! What the kernels are made of: factors in shared memory, their products, blocks of values and sums over rows and columns.
//!
//! A factor is `[inner, edge]`, the inner axis of the product first whichever way it lies in memory; so one loop multiplies
//! all. Loads are of single values: no stride or alignment asks for a kernel of its own.
//!
//! What a compiler makes of these kernels is mostly the code of loads and stores, of which a driver that runs them on the CPU
//! writes every lane's: loops over a block's rows and over the inner axis end where the problem does, at a number that no
//! compiler knows and unrolls.

use cubecl::prelude::*;

use super::plan::{BLOCK, Plan};
use crate::bits::{is_zero, round_to};

/// Where a factor's values lie: value `[inner, column]` at `base + inner * inner_stride + column * column_stride`.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Source {
    /// Of the first value, which there is.
    pub base: usize,
    pub inner_stride: usize,
    pub column_stride: usize,
    /// How many there are; the others are zeros.
    pub inners: usize,
    pub columns: usize,
}

/// The unit's place in a factor: on the inner axis, and which vector. Neighbouring units take neighbours in memory.
#[cube]
pub(super) fn place_in_factor(along: bool, #[comptime] plan: Plan) -> (usize, usize) {
    let across = comptime!(plan.across());
    let (high, low) = (UNIT_POS as usize / across, UNIT_POS as usize % across);
    (select(along, low, high), select(along, high, low))
}

/// Fills a factor.
#[cube]
pub(super) fn stage<F: Float>(
    source: &Tensor<F>,
    from: &Source,
    target: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] plan: Plan,
) {
    let (inner, place) = place_in_factor(from.inner_stride == 1, plan);
    target[inner * comptime!(plan.pitch()) + place] = read_vector(source, from, inner, place);
}

/// The same, times the weight of their place on the inner axis. A weight of zero leaves nothing, not even of NaN.
#[cube]
pub(super) fn stage_weighted<F: Float>(
    source: &Tensor<F>,
    from: &Source,
    target: &mut Shared<[Vector<f32, Const<4>>]>,
    weights: &Shared<[f32]>, // from `at`
    at: usize,
    #[comptime] plan: Plan,
) {
    let (inner, place) = place_in_factor(from.inner_stride == 1, plan);
    let vector = read_vector(source, from, inner, place);
    target[inner * comptime!(plan.pitch()) + place] = weighted(vector, weights[at + inner]);
}

/// Zero for a weight of zero, whatever the vector.
#[cube]
pub(super) fn weighted(vector: Vector<f32, Const<4>>, weight: f32) -> Vector<f32, Const<4>> {
    let zero = Vector::<f32, Const<4>>::new(0.0f32);
    select(is_zero(weight), zero, Vector::new(weight) * vector)
}

/// Vector `place` of a factor's row.
#[cube]
pub(super) fn read_vector<F: Float>(
    source: &Tensor<F>,
    from: &Source,
    inner: usize,
    place: usize,
) -> Vector<f32, Const<4>> {
    let mut vector = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for j in 0..BLOCK {
        let column = place * BLOCK + j;
        let inside = inner < from.inners && column < from.columns;
        let index = from.base + inner * from.inner_stride + column * from.column_stride;
        let value = f32::cast_from(source[select(inside, index, from.base)]);
        vector.insert(j, select(inside, value, 0.0f32));
    }
    vector
}

/// The unit's block of sums of zero.
#[cube]
pub(super) fn zeros() -> Array<Vector<f32, Const<4>>> {
    let mut values = Array::<Vector<f32, Const<4>>>::new(BLOCK);
    #[unroll]
    for i in 0..BLOCK {
        values[i] = Vector::new(0.0f32);
    }
    values
}

/// First row and column of the unit's block.
#[cube]
pub(super) fn origin(#[comptime] plan: Plan) -> (usize, usize) {
    let across = comptime!(plan.across());
    (
        UNIT_POS as usize / across * BLOCK,
        UNIT_POS as usize % across * BLOCK,
    )
}

/// Adds to the block of sums `[rows, columns]` the product of factors `[inner, rows]` and `[inner, columns]`, of which the first
/// `inners` are taken, if there are more.
///
/// Where `masked`, zeros among `rows` are pairs that do not see each other, and leave nothing, not even of NaN.
#[cube]
pub(super) fn multiply(
    rows: &Shared<[Vector<f32, Const<4>>]>,
    columns: &Shared<[Vector<f32, Const<4>>]>,
    sums: &mut Array<Vector<f32, Const<4>>>,
    inners: usize,
    #[comptime] masked: bool,
    #[comptime] plan: Plan,
) {
    let across = comptime!(plan.across());
    let pitch = comptime!(plan.pitch());
    let row = UNIT_POS as usize / across;
    let column = UNIT_POS as usize % across;
    for inner in 0..at_most(inners, plan.inner()) {
        let left = rows[inner * pitch + row];
        let right = columns[inner * pitch + column];
        #[unroll]
        for i in 0..BLOCK {
            let weight = left.extract(i);
            if masked {
                sums[i] += weighted(right, weight);
            } else {
                sums[i] += Vector::new(weight) * right;
            }
        }
    }
}

/// `len`, or `most` if that is less.
#[cube]
pub(super) fn at_most(len: usize, #[comptime] most: usize) -> usize {
    select(len < most, len, most.runtime())
}

/// How many of a block's rows there are, from row `first` on, of `rows`.
#[cube]
pub(super) fn block_rows(first: usize, rows: usize) -> usize {
    let left = select(first < rows, rows - first, 0usize);
    at_most(left, BLOCK)
}

/// Row `i` of a block.
#[cube]
pub(super) fn row_of(values: &Array<Vector<f32, Const<4>>>, i: usize) -> Vector<f32, Const<4>> {
    let mut row = values[0];
    #[unroll]
    for k in 1..BLOCK {
        row = select(i == k, values[k], row);
    }
    row
}

/// Makes `row` row `i` of a block.
#[cube]
pub(super) fn set_row(
    values: &mut Array<Vector<f32, Const<4>>>,
    i: usize,
    row: Vector<f32, Const<4>>,
) {
    #[unroll]
    for k in 0..BLOCK {
        values[k] = select(i == k, row, values[k]);
    }
}

/// A block of values in memory: `[row, column]` at `base + row * stride + column`, for rows and columns below the last.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Region {
    pub base: usize,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

/// Four values of a region's row; what there is not is zero.
#[cube]
pub(super) fn read_row<F: Float>(
    source: &Tensor<F>,
    from: &Region,
    row: usize,
    column: usize,
) -> Vector<f32, Const<4>> {
    let from = Source {
        base: from.base,
        inner_stride: from.stride,
        column_stride: 1usize.runtime(),
        inners: from.rows,
        columns: from.columns,
    };
    read_vector(source, &from, row, column / BLOCK)
}

/// Writes four values of a region's row, those that there are.
#[cube]
pub(super) fn write_row<F: Float>(
    target: &mut Tensor<F>,
    to: &Region,
    row: usize,
    column: usize,
    values: Vector<f32, Const<4>>,
) {
    #[unroll]
    for j in 0..BLOCK {
        if column + j < to.columns {
            target[to.base + row * to.stride + column + j] = round_to::<F>(values.extract(j));
        }
    }
}

/// The unit's block of a region; what there is not is zero.
#[cube]
pub(super) fn read_block<F: Float>(
    source: &Tensor<F>,
    from: &Region,
    #[comptime] plan: Plan,
) -> Array<Vector<f32, Const<4>>> {
    let (row, column) = origin(plan);
    let mut values = zeros();
    for i in 0..block_rows(row, from.rows) {
        let read = read_row(source, from, row + i, column);
        set_row(&mut values, i, read);
    }
    values
}

/// The counterpart of [`read_block`].
#[cube]
pub(super) fn write_block<F: Float>(
    target: &mut Tensor<F>,
    to: &Region,
    values: &Array<Vector<f32, Const<4>>>,
    #[comptime] plan: Plan,
) {
    let (row, column) = origin(plan);
    for i in 0..block_rows(row, to.rows) {
        write_row(target, to, row + i, column, row_of(values, i));
    }
}

/// Puts the unit's values of a row where [`slot_sum`] finds them, added.
#[cube]
pub(super) fn put_row(
    values: Vector<f32, Const<4>>,
    slots: &mut Shared<[f32]>,
    row: usize,
    column: usize,
    #[comptime] plan: Plan,
) {
    let mut sum = values.extract(0usize);
    #[unroll]
    for j in 1..BLOCK {
        sum += values.extract(j);
    }
    slots[row * comptime!(plan.pitch()) + column / BLOCK] = sum;
}

/// Puts the unit's sums over its columns there.
#[cube]
pub(super) fn put_columns(
    sums: Vector<f32, Const<4>>,
    slots: &mut Shared<[f32]>,
    #[comptime] plan: Plan,
) {
    let (row, column) = origin(plan);
    #[unroll]
    for j in 0..BLOCK {
        slots[(column + j) * comptime!(plan.pitch()) + row / BLOCK] = sums.extract(j);
    }
}

/// A row's or column's sum, in the order of the units' blocks.
#[cube]
pub(super) fn slot_sum(slots: &Shared<[f32]>, at: usize, #[comptime] plan: Plan) -> f32 {
    let mut sum = 0.0f32;
    for k in 0..comptime!(plan.across()) {
        sum += slots[at * comptime!(plan.pitch()) + k];
    }
    sum
}
