//! The gradient of a tile's `x`, and what it brings to the sums over its rows.

use cubecl::prelude::*;

use super::super::super::tile::Spot;
use super::super::load::{Head, value_at};
use super::super::plan::Plan;
use super::super::reduce::{add_to_rows, spot_from};
use super::positions::Positions;

/// Leaves of what the state after the tile takes, `g B_s`, what passes to its end, and adds its products with `X` to the
/// sums over rows.
#[cube]
pub(super) fn pass_writes<F: Float, V: Size>(
    inputs: &Shared<[Vector<F, V>]>, // [positions, channels], from `at`
    at: usize,
    grad_inputs: &mut Array<f32>,
    write_rows: &mut Array<f32>,
    tile: &Positions,
    origin: &Spot,
    #[comptime] plan: Plan,
) {
    let form = comptime!(plan.input_sums());
    let mut terms = Array::<f32>::new(comptime!(form.values()));
    #[unroll]
    for i in 0..comptime!(form.values()) {
        let spot = spot_from(origin, i, form);
        let weight = tile.passed[spot.row];
        let value = select(weight == 0.0f32, 0.0f32, grad_inputs[i] * weight);
        grad_inputs[i] = value;
        let input = value_at::<F, V>(inputs, at, origin, i, comptime!(plan.inputs()), form);
        let product = value * input * tile.steps[spot.row];
        terms[i] = select(weight == 0.0f32, 0.0f32, product);
    }
    add_to_rows(&terms, write_rows, form);
}

/// Writes the gradient of `x` from that of `X` and adds their products to the sums over rows. Leaves the products of `x`
/// and `grad_y`, the gradient of `d`, in `skips`.
#[cube]
pub(super) fn write_inputs<F: Float, V: Size, W: Size>(
    inputs: &Shared<[Vector<F, V>]>, // [positions, channels], from `rows_at`
    grads: &Shared<[Vector<F, V>]>,  // the same: `grad_y`
    rows_at: usize,
    grad_inputs: &Array<f32>,
    d: ComptimeOption<&Tensor<f32>>, // [nheads] or [nheads, headdim]
    grad_x: &mut Tensor<Vector<F, W>>, // [batch, seq_len, nheads, headdim]
    input_rows: &mut Array<f32>,
    skips: &mut Array<f32>,
    tile: &Positions,
    origin: &Spot,
    head: &Head,
    start: usize,
    stop: usize,
    block: usize,
    #[comptime] plan: Plan,
) {
    let form = comptime!(plan.input_sums());
    let input_tile = comptime!(plan.inputs());
    let pair = comptime!(plan.pair);
    let mut terms = Array::<f32>::new(comptime!(form.values()));
    #[unroll]
    for i in 0..comptime!(form.values() / plan.pair) {
        let spot = spot_from(origin, comptime!(i * plan.pair), form);
        let t = start + spot.row;
        let channel = block * comptime!(plan.channels) + spot.column;
        let exists = t < stop && channel < comptime!(plan.headdim);
        let step = tile.steps[spot.row];
        let mut values = Vector::<F, W>::empty();
        #[unroll]
        for j in 0..pair {
            let at = comptime!(i * plan.pair + j);
            let input = value_at::<F, V>(inputs, rows_at, origin, at, input_tile, form);
            let grad = value_at::<F, V>(grads, rows_at, origin, at, input_tile, form);
            terms[at] = select(exists, input * grad_inputs[at], 0.0f32);
            skips[at] = input * grad;
            if comptime!(plan.resettable) {
                skips[at] += tile.faults[spot.row];
            }
            let mut value = step * grad_inputs[at];
            #[comptime]
            if let ComptimeOption::Some(d) = d {
                let skip = if comptime!(plan.skips_channels) {
                    let channel = select(exists, channel + j, 0);
                    d[head.head * comptime!(plan.headdim) + channel]
                } else {
                    d[head.head]
                };
                value += skip * grad;
            }
            values.insert(j, F::cast_from(value));
        }
        if exists {
            let nheads = grad_x.shape(2);
            let place = (head.batch * grad_x.shape(1) + t) * nheads + head.head;
            grad_x[(place * comptime!(plan.headdim) + channel) / pair] = values;
        }
    }
    add_to_rows(&terms, input_rows, form);
}
