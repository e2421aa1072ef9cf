//! Where a tile lies in time, and what is known of its positions.

use cubecl::prelude::*;

use super::super::load::{Edge, Head, edge_at};
use super::plan::Plan;

/// What is kept of every position and head: `[PLANES, batch, seq_len, nheads]` in f32. The first three are what
/// `grad_steps_kernel` reads.
pub(super) const PLANES: usize = 6;
pub(super) const READS: usize = 0;
pub(super) const WRITES: usize = 1;
pub(super) const INPUTS: usize = 2;
/// What is left at a position of the state before its tile.
pub(super) const ENTER: usize = 3;
/// What is left of a position's write at its tile's end.
pub(super) const LEAVE: usize = 4;
/// `dt`
pub(super) const STEP: usize = 5;

/// A tile of an interval.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Span {
    /// The interval's first position.
    pub first: usize,
    /// The tile's first position and the one after its last.
    pub start: usize,
    pub stop: usize,
}

/// Tile `index` of those from the interval `first_interval` on.
#[cube]
pub(super) fn span(
    index: usize,
    first_interval: u32,
    interval_len: u32,
    seq_len: usize,
    #[comptime] plan: Plan,
) -> Span {
    let edge = comptime!(plan.edge);
    let interval_len = interval_len as usize;
    let tiles = interval_len.div_ceil(edge);
    let interval = first_interval as usize + index / tiles;
    let first = interval * interval_len;
    let last = first + interval_len;
    let last = select(last < seq_len, last, seq_len);
    let start = first + index % tiles * edge;
    let stop = select(start + edge < last, start + edge, last);
    Span { first, start, stop }
}

/// A position's and head's entry of a plane.
#[cube]
fn place(sheet: &Tensor<f32>, plane: usize, batch: usize, t: usize, head: usize) -> usize {
    ((plane * sheet.shape(1) + batch) * sheet.shape(2) + t) * sheet.shape(3) + head
}

#[cube]
pub(super) fn read_sheet(
    sheet: &Tensor<f32>, // [PLANES, batch, seq_len, nheads]
    plane: usize,
    batch: usize,
    t: usize,
    head: usize,
) -> f32 {
    sheet[place(sheet, plane, batch, t, head)]
}

#[cube]
pub(super) fn write_sheet(
    sheet: &mut Tensor<f32>, // [PLANES, batch, seq_len, nheads]
    plane: usize,
    batch: usize,
    t: usize,
    head: usize,
    value: f32,
) {
    let place = place(&*sheet, plane, batch, t, head);
    sheet[place] = value;
}

/// The edge before position `start`: the beginning of its interval, or the position before.
#[cube]
pub(super) fn edge_before(
    sums: &Tensor<f32>, // [batch, nheads, length]
    runs: &Tensor<u32>, // [batch, length], unread without `seq_idx`
    head: &Head,
    start: usize,
    first: usize,
    #[comptime] plan: Plan,
) -> Edge {
    let inside = start > first;
    let edge = edge_at(
        sums,
        runs,
        head,
        select(inside, start, 1) - 1,
        plan.resettable,
    );
    Edge {
        sum: select(inside, edge.sum, 0.0f32),
        run: select(inside, edge.run, 0u32),
    }
}
