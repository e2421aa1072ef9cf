//! The projections of a tile, and their gradients.

use cubecl::prelude::*;

use super::super::super::tile::{Spot, multiply, spot, zero};
use super::super::load::{Rows, state_rows, value_at};
use super::super::plan::Plan;
use super::super::reduce::{add_to_rows, spot_from};
use super::positions::Positions;
use super::tiles::{Tiles, stage_pair};

/// Adds to the gradient of `b` what a slice of the state after the tile takes: `w_s g^T X_s`.
#[cube]
pub(super) fn add_writes<F: Float, V: Size>(
    inputs: &Shared<[Vector<F, V>]>, // [positions, channels], from `at`
    at: usize,
    states: &Shared<[Vector<F, V>]>, // [channels, slice]: `g`
    sums_b: &mut Array<f32>,
    tile: &Positions,
    origin: &Spot,
    #[comptime] slice: usize,
    #[comptime] plan: Plan,
) {
    let form = comptime!(plan.projection_sums());
    let crossing = cross::<F, V>(inputs, at, states, plan);
    #[unroll]
    for i in 0..comptime!(form.values()) {
        let spot = spot_from(origin, i, form);
        let weight = tile.passed[spot.row];
        let value = crossing[i] * (weight * tile.steps[spot.row]);
        sums_b[comptime!(slice * form.values() + i)] += select(weight == 0.0f32, 0.0f32, value);
    }
}

/// Adds to the gradient of `c` what a slice of the state before the tile gives, `e_t h^T gy_t`, and its products with
/// `c` to the sums over rows.
#[cube]
pub(super) fn add_reads<F: Float, V: Size>(
    grads: &Shared<[Vector<F, V>]>, // [positions, channels], from `at`
    at: usize,
    states: &Shared<[Vector<F, V>]>,  // [channels, slice]: `h`
    readers: &Shared<[Vector<F, V>]>, // [positions, slice]
    sums_c: &mut Array<f32>,
    read_rows: &mut Array<f32>,
    tile: &Positions,
    origin: &Spot,
    #[comptime] slice: usize,
    #[comptime] plan: Plan,
) {
    let form = comptime!(plan.projection_sums());
    let mut crossing = cross::<F, V>(grads, at, states, plan);
    #[unroll]
    for i in 0..comptime!(form.values()) {
        let spot = spot_from(origin, i, form);
        let left = tile.kept[spot.row];
        let mut value = crossing[i] * left;
        if comptime!(plan.resettable) {
            value += tile.faults[spot.row];
        }
        let value = select(left == 0.0f32, 0.0f32, value);
        sums_c[comptime!(slice * form.values() + i)] += value;
        crossing[i] = value
            * value_at::<F, V>(
                readers,
                0usize,
                origin,
                i,
                comptime!(plan.projection()),
                form,
            );
    }
    add_to_rows(&crossing, read_rows, form);
}

/// Rows of channels times a slice of a state.
#[cube]
fn cross<F: Float, V: Size>(
    rows: &Shared<[Vector<F, V>]>,
    at: usize,
    states: &Shared<[Vector<F, V>]>,
    #[comptime] plan: Plan,
) -> Array<f32> {
    let form = comptime!(plan.projection_sums());
    let mut crossing = Array::<f32>::new(comptime!(form.values()));
    zero(&mut crossing, form);
    multiply::<F, V>(
        rows,
        at,
        states,
        0usize,
        &mut crossing,
        comptime!(plan.channels),
        comptime!([plan.inputs().along(), plan.state().across()]),
        form,
    );
    crossing
}

/// Writes both gradients: what the heads left in `sums`, and the products of the scores' gradient, in the weights' tile.
#[cube]
pub(super) fn write_projections<F: Float, O: Float, L: Size, V: Size, W: Size>(
    b: &Tensor<Vector<F, L>>,
    c: &Tensor<Vector<F, L>>,
    grad_b: &mut Tensor<Vector<O, W>>, // [parts, batch, seq_len, ngroups, d_state]
    grad_c: &mut Tensor<Vector<O, W>>, // the same
    tiles: &mut Tiles<F, V>,
    sums_b: &Array<f32>,
    sums_c: &Array<f32>,
    positions: &mut Positions,
    batch: usize,
    group: usize,
    part: usize,
    start: usize,
    stop: usize,
    #[comptime] plan: Plan,
) {
    let form = comptime!(plan.projection_sums());
    let weight_tile = comptime!(plan.weights());
    let projection_tile = comptime!(plan.projection());
    #[unroll]
    for slice in 0..comptime!(plan.slices()) {
        if comptime!(plan.slices() > 1) {
            sync_cube();
            let from = state_rows(batch, group, start, stop, slice, plan);
            stage_pair::<F, L, V>(b, c, &from, tiles, positions, plan);
        }
        sync_cube();
        let to = state_rows(part * b.shape(0) + batch, group, start, stop, slice, plan);
        let mut total = Array::<f32>::new(comptime!(form.values()));
        #[unroll]
        for i in 0..comptime!(form.values()) {
            total[i] = sums_c[comptime!(slice * form.values() + i)];
        }
        multiply::<F, V>(
            &tiles.weights,
            0usize,
            &tiles.writes,
            0usize,
            &mut total,
            comptime!(plan.positions),
            comptime!([weight_tile.along(), projection_tile.across()]),
            form,
        );
        write_projection::<O, W>(grad_c, &to, &total, b.shape(1), b.shape(2), plan);
        #[unroll]
        for i in 0..comptime!(form.values()) {
            total[i] = sums_b[comptime!(slice * form.values() + i)];
        }
        multiply::<F, V>(
            &tiles.weights,
            0usize,
            &tiles.readers,
            0usize,
            &mut total,
            comptime!(plan.positions),
            comptime!([weight_tile.across(), projection_tile.across()]),
            form,
        );
        write_projection::<O, W>(grad_b, &to, &total, b.shape(1), b.shape(2), plan);
    }
}

/// Writes a tile of a projection's gradient.
#[cube]
fn write_projection<O: Float, W: Size>(
    target: &mut Tensor<Vector<O, W>>, // [parts, batch, seq_len, ngroups, d_state]
    rows: &Rows,
    values: &Array<f32>,
    seq_len: usize,
    ngroups: usize,
    #[comptime] plan: Plan,
) {
    let form = comptime!(plan.projection_sums());
    let pair = comptime!(plan.pair);
    let origin = spot(0usize, form);
    #[unroll]
    for i in 0..comptime!(form.values() / plan.pair) {
        let spot = spot_from(&origin, comptime!(i * plan.pair), form);
        let t = rows.start + spot.row;
        if t < rows.stop && spot.column < rows.columns {
            let mut vector = Vector::<O, W>::empty();
            #[unroll]
            for j in 0..pair {
                vector.insert(j, O::cast_from(values[comptime!(i * pair + j)]));
            }
            let row = (rows.batch * seq_len + t) * ngroups * comptime!(plan.d_state);
            target[(row + rows.column + spot.column) / pair] = vector;
        }
    }
}
