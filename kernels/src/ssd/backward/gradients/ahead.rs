//! A head's rows and steps, on their way to shared memory while the head before is computed.
//!
//! For tensor cores without `seq_idx`, where rows are whole vectors and all of it fits ([`Plan::ahead`]). Copies take
//! values as they are, so what [`stage`](super::super::load::stage) does to rows on their way is done here, in place, when
//! they have landed.

use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;

use super::super::load::{Edge, Head, Rows, channel_rows, edge_at};
use super::super::others::{Others, Span, place_of};
use super::super::plan::{LANES, Plan};
use super::positions::Positions;
use super::tiles::Tiles;
use crate::pointwise::exp;

/// Of an interval, for two heads: `[2, interval]`.
#[derive(CubeType)]
pub(super) struct Copied {
    pub steps: Shared<[f32]>,
    pub sums: Shared<[f32]>,
}

#[cube]
pub(super) fn copied(#[comptime] plan: Plan) -> Copied {
    Copied {
        steps: Shared::new_slice(comptime!(plan.copied())),
        sums: Shared::new_slice(comptime!(plan.copied())),
    }
}

/// The edges that a head's decays are counted between.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Edges {
    /// The position before the tile; the beginning of the interval where there is none.
    pub before: Edge,
    /// The tile's last position.
    pub after: Edge,
    /// The interval's last position.
    pub end: Edge,
}

#[cube]
fn no_edge() -> Edge {
    Edge {
        sum: 0.0f32.runtime(),
        run: 0u32.runtime(),
    }
}

#[cube]
pub(super) fn no_edges() -> Edges {
    Edges {
        before: no_edge(),
        after: no_edge(),
        end: no_edge(),
    }
}

/// Reads the edges from memory.
#[cube]
pub(super) fn read_edges(
    edges: &mut Edges,
    sums: &Tensor<f32>, // [batch, nheads, length]
    runs: &Tensor<u32>, // [batch, length], unread without `seq_idx`
    head: &Head,
    span: &Span,
    #[comptime] plan: Plan,
) {
    if span.start > span.first {
        let edge = edge_at(sums, runs, head, span.start - 1, plan.resettable);
        edges.before.sum = edge.sum;
        edges.before.run = edge.run;
    }
    let after = edge_at(sums, runs, head, span.stop - 1, plan.resettable);
    edges.after.sum = after.sum;
    edges.after.run = after.run;
    let end = edge_at(sums, runs, head, span.last - 1, plan.resettable);
    edges.end.sum = end.sum;
    edges.end.run = end.run;
}

/// Asks for a head's rows of the tile and its steps; `turn` says in which half of shared memory.
#[cube]
pub(super) fn request_own<F: Float, L: Size, V: Size>(
    x: &Tensor<Vector<F, L>>,
    grad_y: &Tensor<Vector<F, L>>,
    dt: &Tensor<f32>,
    sums: &Tensor<f32>,
    tiles: &mut Tiles<F, V>,
    copied: &mut Copied,
    head: &Head,
    span: &Span,
    turn: usize,
    #[comptime] plan: Plan,
) {
    let unit = unit_anew(head);
    let at = turn * comptime!(plan.inputs().vectors());
    let rows = channel_rows(head, span.start, span.stop, 0usize, plan);
    request::<F, L, V>(x, &rows, &mut tiles.inputs, at, unit, plan);
    request::<F, L, V>(grad_y, &rows, &mut tiles.grads, at, unit, plan);
    let mut at = UNIT_POS as usize;
    while at < comptime!(plan.interval) {
        let from = head.steps + span.first + at;
        let to = turn * comptime!(plan.interval) + at;
        copy_async(&dt[from..from + 1], &mut copied.steps[to..to + 1], 1u32);
        copy_async(&sums[from..from + 1], &mut copied.sums[to..to + 1], 1u32);
        at += comptime!(plan.units);
    }
}

/// Asks for a head's rows of the interval's other tiles.
#[cube]
pub(super) fn request_others<F: Float, L: Size, V: Size>(
    x: &Tensor<Vector<F, L>>,
    grad_y: &Tensor<Vector<F, L>>,
    others: &mut Others<F, V>,
    head: &Head,
    span: &Span,
    #[comptime] plan: Plan,
) {
    let unit = unit_anew(head);
    #[unroll]
    for slot in 0..comptime!(plan.tiles() - 1) {
        let begin = span.first + place_of(slot, span, plan) * comptime!(plan.positions);
        let end = begin + comptime!(plan.positions);
        let end = select(end < span.last, end, span.last);
        let at = slot * comptime!(plan.inputs().vectors());
        if begin < span.last {
            let rows = channel_rows(head, begin, end, 0usize, plan);
            if begin < span.start {
                request::<F, L, V>(x, &rows, &mut others.rows, at, unit, plan);
            } else {
                request::<F, L, V>(grad_y, &rows, &mut others.rows, at, unit, plan);
            }
        }
    }
}

/// The unit's number, which the compiler cannot know to be the same for every head. It would keep all that follows from it
/// for all heads, in registers that it lacks.
#[cube]
fn unit_anew(head: &Head) -> usize {
    // No tensor has as many heads.
    UNIT_POS as usize + (head.head >> 31)
}

/// Rows that there are not are left as they are.
#[cube]
fn request<F: Float, L: Size, V: Size>(
    source: &Tensor<Vector<F, L>>,
    rows: &Rows,
    target: &mut Shared<[Vector<F, V>]>,
    at: usize,
    unit: usize,
    #[comptime] plan: Plan,
) {
    let tile = comptime!(plan.inputs());
    let across = comptime!(tile.columns / tile.lanes);
    let base = rows.batch * source.stride(0) + rows.start * source.stride(1) + rows.column;
    let count = rows.stop - rows.start;
    #[unroll]
    for step in 0..comptime!(tile.rows * across / plan.units) {
        let slot = unit + comptime!(step * plan.units);
        let row = slot / across;
        let column = slot % across;
        let from = (base + row * source.stride(1)) / comptime!(tile.lanes) + column;
        let to = at + row * comptime!(tile.pitch()) + column;
        if row < count {
            // The tile holds what the tensor does: only then is anything copied ahead.
            let source = source[from..from + 1].downcast::<Vector<F, V>>();
            copy_async(
                source,
                &mut target[to..to + 1],
                comptime!(tile.lanes as u32),
            );
        }
    }
}

/// Waits until what this unit asked for is there. What others asked for is there once they have waited, too.
#[cube]
pub(super) fn landed() {
    gpu_asm!("cp.async.wait_all;");
}

/// Makes of a head's rows and steps that have landed what the products take, and tells the edges. Units see each other's
/// rows after the next barrier.
#[cube]
pub(super) fn settle<F: Float, V: Size>(
    edges: &mut Edges,
    copied: &Copied,
    tiles: &mut Tiles<F, V>,
    others: &mut Others<F, V>,
    tile: &mut Positions,
    span: &Span,
    turn: usize,
    #[comptime] plan: Plan,
) {
    let interval = turn * comptime!(plan.interval);
    let own = span.start - span.first;
    let count = span.stop - span.start;
    let last = copied.sums[interval + own + count - 1];
    let mut first = 0.0f32.runtime();
    if own > 0 {
        first = copied.sums[interval + own - 1];
    }
    let end = copied.sums[interval + (span.last - span.first) - 1];

    let mut row = UNIT_POS as usize;
    while row < comptime!(plan.positions) {
        let inside = row < count;
        let at = interval + own + select(inside, row, count - 1);
        let sum = copied.sums[at];
        tile.steps[row] = select(inside, copied.steps[at], 0.0f32);
        tile.sums[row] = sum;
        tile.kept[row] = select(inside, exp(sum - first, plan.ptx), 0.0f32);
        tile.passed[row] = select(inside, exp(last - sum, plan.ptx), 0.0f32);
        row += comptime!(plan.units);
    }

    // A unit's vectors are of one row, those of its neighbours of the rows around: no two in one bank.
    let form = comptime!(plan.inputs());
    let vectors = comptime!(form.vectors());
    let row = UNIT_POS as usize % comptime!(form.rows);
    let place = row * comptime!(form.pitch()) + UNIT_POS as usize / comptime!(form.rows);
    let stride = comptime!(plan.units / form.rows);
    let steps = comptime!(form.columns / form.lanes / stride);
    #[unroll]
    for slot in 0..comptime!(plan.tiles() - 1) {
        let begin = place_of(slot, span, plan) * comptime!(plan.positions);
        if span.first + begin < span.last {
            let here = interval + begin + row;
            let sum = copied.sums[here];
            let earlier = begin < own;
            let exponent = select(earlier, first - sum, sum - last);
            let scale = select(earlier, copied.steps[here], 1.0f32);
            let inside = span.first + begin + row < span.last;
            let weight = select(inside, exp(exponent, plan.ptx) * scale, 0.0f32);
            #[unroll]
            for step in 0..steps {
                let at = place + comptime!(slot * vectors + step * stride);
                weigh_vector::<F, V>(&mut others.rows, at, weight);
            }
        }
    }
    // Rows that there are not.
    if row >= count {
        #[unroll]
        for step in 0..steps {
            let at = place + turn * vectors + comptime!(step * stride);
            tiles.inputs[at] = Vector::<F, V>::new(F::new(0.0));
            tiles.grads[at] = Vector::<F, V>::new(F::new(0.0));
        }
    }
    edges.before.sum = first;
    edges.after.sum = last;
    edges.end.sum = end;
}

/// A weight of zero leaves nothing, not even of NaN.
#[cube]
fn weigh_vector<F: Float, V: Size>(rows: &mut Shared<[Vector<F, V>]>, place: usize, weight: f32) {
    let values = rows[place];
    let mut vector = Vector::<F, V>::empty();
    #[unroll]
    for i in 0..LANES {
        let value = f32::cast_from(values.extract(i)) * weight;
        vector.insert(i, F::cast_from(select(weight == 0.0f32, 0.0f32, value)));
    }
    rows[place] = vector;
}
