//! What a tile takes from its interval's other tiles: the state before it, and the gradient of the state after it, beyond
//! what the interval begins and ends with.
//!
//! All of them at once in shared memory: the projections for all heads, the weighted rows of `x` and `grad_y` a head.
//! Where that does not fit, [`add_outer_products`] takes one after the other.

use cubecl::prelude::*;

use super::super::tile::multiply;
use super::load::{Edge, Head, Staging, channel_rows, edge_at, stage, state_rows};
use super::plan::Plan;
use super::states::add_outer_products;
use crate::pointwise::exp;

/// Shared memory for the other tiles: for all of them at once, or for one.
#[derive(CubeType)]
pub(super) struct Others<F: Float, V: Size> {
    /// Of `x` or `grad_y`: `[others, positions, channels]`.
    pub rows: Shared<[Vector<F, V>]>,
    /// Of `b` or `c`: `[others, positions, slice]`.
    pub projections: Shared<[Vector<F, V>]>,
    /// What is left of a row: `[weighted]`.
    pub weights: Shared<[f32]>,
    /// NaN where a projection is not finite: `[weighted]`.
    pub flaws: Shared<[f32]>,
}

/// Shared memory for them, without flaws.
#[cube]
pub(super) fn others_of_interval<F: Float, V: Size>(#[comptime] plan: Plan) -> Others<F, V> {
    let mut others = Others::<F, V> {
        rows: Shared::new_aligned_slice(
            comptime!(plan.others() * plan.inputs().vectors()),
            16usize,
        ),
        projections: Shared::new_aligned_slice(
            comptime!(plan.others() * plan.projection().vectors()),
            16usize,
        ),
        weights: Shared::new_slice(comptime!(plan.weighted())),
        flaws: Shared::new_slice(comptime!(plan.weighted())),
    };
    let mut row = UNIT_POS as usize;
    while row < comptime!(plan.weighted()) {
        others.flaws[row] = 0.0f32;
        row += comptime!(plan.units);
    }
    others
}

/// Where a cube's tile lies in its interval.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Span {
    /// Of the interval: the first position and the one after the last.
    pub first: usize,
    pub last: usize,
    /// Of the tile.
    pub start: usize,
    pub stop: usize,
}

/// The place among the interval's tiles of the one in slot `slot`: the cube's own has none.
#[cube]
pub(super) fn place_of(slot: usize, span: &Span, #[comptime] plan: Plan) -> usize {
    let own = (span.start - span.first) / comptime!(plan.positions);
    select(slot < own, slot, slot + 1)
}

/// `b` of earlier tiles and `c` of later ones.
#[cube]
pub(super) fn stage_projections<F: Float, L: Size, V: Size>(
    b: &Tensor<Vector<F, L>>,
    c: &Tensor<Vector<F, L>>,
    others: &mut Others<F, V>,
    batch: usize,
    group: usize,
    span: &Span,
    #[comptime] staging: Staging,
    #[comptime] plan: Plan,
) {
    let tile = comptime!(plan.projection());
    for slot in 0..comptime!(plan.tiles() - 1) {
        let place = place_of(slot, span, plan);
        let begin = span.first + place * comptime!(plan.positions);
        let end = begin + comptime!(plan.positions);
        let end = select(end < span.last, end, span.last);
        let at = slot * comptime!(tile.vectors());
        let mark_at = place * comptime!(plan.positions);
        if begin < span.last {
            let rows = state_rows(batch, group, begin, end, 0usize, plan);
            if begin < span.start {
                stage::<F, L, V>(
                    b,
                    &rows,
                    &mut others.projections,
                    at,
                    &mut others.flaws,
                    mark_at,
                    staging,
                    tile,
                    plan,
                );
            } else {
                stage::<F, L, V>(
                    c,
                    &rows,
                    &mut others.projections,
                    at,
                    &mut others.flaws,
                    mark_at,
                    staging,
                    tile,
                    plan,
                );
            }
        }
    }
}

/// What is left of an earlier position's write before the tile, times its step; what is left after the tile at a later
/// position. NaN where a projection is not finite.
#[cube]
pub(super) fn weigh<F: Float, V: Size>(
    dt: &Tensor<f32>,   // [batch, nheads, length]
    sums: &Tensor<f32>, // [batch, nheads, length]
    runs: &Tensor<u32>, // [batch, length]
    others: &mut Others<F, V>,
    head: &Head,
    span: &Span,
    before: &Edge,
    after: &Edge,
    #[comptime] plan: Plan,
) {
    let mut at = UNIT_POS as usize;
    while at < comptime!(plan.weighted()) {
        let t = span.first + at;
        let inside = t < span.last;
        let t = select(inside, t, span.last - 1);
        let here = edge_at(sums, runs, head, t, plan.resettable);
        let earlier = t < span.start;
        let exponent = select(earlier, before.sum - here.sum, here.sum - after.sum);
        let run = select(earlier, before.run, after.run);
        let step = select(earlier, dt[head.steps + t], 1.0f32);
        let mut weight = exp(exponent, plan.ptx) * step;
        if comptime!(plan.resettable) {
            weight += others.flaws[at];
        }
        let other = inside && (earlier || t >= span.stop);
        others.weights[at] = select(other && here.run == run, weight, 0.0f32);
        at += comptime!(plan.units);
    }
}

/// `x` of earlier tiles and `grad_y` of later ones, weighted.
#[cube]
pub(super) fn stage_rows<F: Float, L: Size, V: Size>(
    x: &Tensor<Vector<F, L>>,
    grad_y: &Tensor<Vector<F, L>>,
    others: &mut Others<F, V>,
    head: &Head,
    span: &Span,
    block: usize,
    #[comptime] plan: Plan,
) {
    let tile = comptime!(plan.inputs());
    let staging = Staging::Weighted;
    for slot in 0..comptime!(plan.tiles() - 1) {
        let place = place_of(slot, span, plan);
        let begin = span.first + place * comptime!(plan.positions);
        let end = begin + comptime!(plan.positions);
        let end = select(end < span.last, end, span.last);
        let at = slot * comptime!(tile.vectors());
        let mark_at = place * comptime!(plan.positions);
        if begin < span.last {
            let rows = channel_rows(head, begin, end, block, plan);
            if begin < span.start {
                stage::<F, L, V>(
                    x,
                    &rows,
                    &mut others.rows,
                    at,
                    &mut others.weights,
                    mark_at,
                    staging,
                    tile,
                    plan,
                );
            } else {
                stage::<F, L, V>(
                    grad_y,
                    &rows,
                    &mut others.rows,
                    at,
                    &mut others.weights,
                    mark_at,
                    staging,
                    tile,
                    plan,
                );
            }
        }
    }
}

/// Adds to `state` what earlier tiles write, or backwards to its gradient what later ones read.
#[cube]
pub(super) fn add_others<F: Float, L: Size, V: Size>(
    rows: &Tensor<Vector<F, L>>,       // x, or backwards grad_y
    projection: &Tensor<Vector<F, L>>, // b, or backwards c
    dt: &Tensor<f32>,                  // [batch, nheads, length]
    sums: &Tensor<f32>,                // [batch, nheads, length]
    runs: &Tensor<u32>,                // [batch, length]
    others: &mut Others<F, V>,
    state: &mut Array<f32>,
    head: &Head,
    span: &Span,
    border: &Edge, // of the cube's tile
    block: usize,
    slice: usize,
    #[comptime] backwards: bool,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.resident) {
        add_resident::<F, V>(&*others, state, span, backwards, plan);
    } else {
        let (from, to) = if comptime!(backwards) {
            (span.stop, span.last)
        } else {
            (span.first, span.start)
        };
        add_outer_products::<F, L, V>(
            rows,
            projection,
            dt,
            sums,
            runs,
            &mut others.rows,
            &mut others.projections,
            &mut others.weights,
            state,
            head,
            from,
            to,
            border,
            block,
            slice,
            backwards,
            plan,
        );
    }
}

#[cube]
fn add_resident<F: Float, V: Size>(
    others: &Others<F, V>,
    state: &mut Array<f32>,
    span: &Span,
    #[comptime] backwards: bool,
    #[comptime] plan: Plan,
) {
    let row_tile = comptime!(plan.inputs());
    let tile = comptime!(plan.projection());
    for slot in 0..comptime!(plan.tiles() - 1) {
        let place = place_of(slot, span, plan);
        let begin = span.first + place * comptime!(plan.positions);
        let wanted = if comptime!(backwards) {
            begin > span.start && begin < span.last
        } else {
            begin < span.start
        };
        if wanted {
            multiply::<F, V>(
                &others.rows,
                slot * comptime!(row_tile.vectors()),
                &others.projections,
                slot * comptime!(tile.vectors()),
                state,
                comptime!(plan.positions),
                comptime!([row_tile.across(), tile.across()]),
                comptime!(plan.state_sums()),
            );
        }
    }
}
