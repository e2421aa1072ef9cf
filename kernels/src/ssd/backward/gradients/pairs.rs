//! What is for pairs of positions of a tile: rows read, columns write.

use cubecl::prelude::*;

use super::super::super::tile::Spot;
use super::super::plan::Plan;
use super::super::reduce::spot_from;
use super::positions::Positions;
use crate::pointwise::exp;

/// `exp(sums_t - sums_s)`.
#[cube]
fn decay(tile: &Positions, pair: &Spot, #[comptime] plan: Plan) -> f32 {
    exp(tile.sums[pair.row] - tile.sums[pair.column], plan.ptx)
}

/// Whether the row's position, if it is before `stop`, sees what the column's wrote.
#[cube]
fn sees(tile: &Positions, pair: &Spot, start: usize, stop: usize, #[comptime] plan: Plan) -> bool {
    let mut inside = pair.column <= pair.row && start + pair.row < stop;
    if comptime!(plan.resettable) {
        inside = inside && tile.runs[pair.row] == tile.runs[pair.column];
    }
    inside
}

/// NaN where the value of a pair is not to be had, else 0.
#[cube]
fn flaw(tile: &Positions, pair: &Spot) -> f32 {
    tile.flaws[pair.row] + tile.flaws[pair.column] + tile.faults[pair.row]
}

/// `M` from `C B^T`.
#[cube]
pub(super) fn mixing(
    scores: &Array<f32>,
    tile: &Positions,
    origin: &Spot,
    start: usize,
    stop: usize,
    #[comptime] plan: Plan,
) -> Array<f32> {
    let form = comptime!(plan.weight_sums());
    let mut masked = Array::<f32>::new(comptime!(form.values()));
    #[unroll]
    for i in 0..comptime!(form.values()) {
        let pair = spot_from(origin, i, form);
        let mut value = scores[i] * decay(tile, &pair, plan);
        let inside = sees(tile, &pair, start, stop, plan);
        if comptime!(plan.resettable) {
            value += flaw(tile, &pair);
        }
        masked[i] = select(inside, value, 0.0f32);
    }
    masked
}

/// `R` from `gy x^T` and `C B^T`, without its diagonal; the gradient of `C B^T` is added to `grad_scores`.
#[cube]
pub(super) fn grad_pairs(
    products: &Array<f32>,
    scores: &Array<f32>,
    grad_scores: &mut Array<f32>,
    tile: &Positions,
    origin: &Spot,
    start: usize,
    stop: usize,
    #[comptime] plan: Plan,
) -> Array<f32> {
    let form = comptime!(plan.weight_sums());
    let mut terms = Array::<f32>::new(comptime!(form.values()));
    #[unroll]
    for i in 0..comptime!(form.values()) {
        let pair = spot_from(origin, i, form);
        let mut value = products[i] * (decay(tile, &pair, plan) * tile.steps[pair.column]);
        let inside = sees(tile, &pair, start, stop, plan);
        if comptime!(plan.resettable) {
            value += flaw(tile, &pair);
        }
        let value = select(inside, value, 0.0f32);
        grad_scores[i] += value;
        terms[i] = select(inside && pair.column < pair.row, value * scores[i], 0.0f32);
    }
    terms
}
