//! What a cube knows of the positions of its tile, for the head that it is at.

use cubecl::prelude::*;

use super::super::load::{Edge, Head, edge_at};
use super::super::plan::Plan;
use crate::pointwise::exp;

/// A value a position, in shared memory.
#[derive(CubeType)]
pub(super) struct Positions {
    /// `dt`, zero past the end.
    pub steps: Shared<[f32]>,
    /// The sum of the steps, as `Steps::sums`.
    pub sums: Shared<[f32]>,
    /// The run, as `Steps::runs`.
    pub runs: Shared<[u32]>,
    /// What is left of the state before the tile.
    pub kept: Shared<[f32]>,
    /// What is left of a write at the tile's end.
    pub passed: Shared<[f32]>,
    /// NaN where a projection is not finite, else 0.
    pub flaws: Shared<[f32]>,
    /// The same of `grad_y`.
    pub faults: Shared<[f32]>,
}

/// Shared memory for them, without flaws.
#[cube]
pub(super) fn positions_of_tile(#[comptime] plan: Plan) -> Positions {
    let len = comptime!(plan.positions);
    let mut tile = Positions {
        steps: Shared::new_slice(len),
        sums: Shared::new_slice(len),
        runs: Shared::new_slice(len),
        kept: Shared::new_slice(len),
        passed: Shared::new_slice(len),
        flaws: Shared::new_slice(len),
        faults: Shared::new_slice(len),
    };
    let mut row = UNIT_POS as usize;
    while row < len {
        tile.flaws[row] = 0.0f32;
        row += comptime!(plan.units);
    }
    tile
}

/// Fills them for a head, but for the flaws: positions `start` to `stop`, between the edges of the tile.
#[cube]
pub(super) fn read_positions(
    dt: &Tensor<f32>,
    sums: &Tensor<f32>,
    runs: &Tensor<u32>,
    tile: &mut Positions,
    head: &Head,
    start: usize,
    stop: usize,
    before: &Edge,
    after: &Edge,
    #[comptime] plan: Plan,
) {
    let mut row = UNIT_POS as usize;
    while row < comptime!(plan.positions) {
        let inside = start + row < stop;
        let t = select(inside, start + row, stop - 1);
        let here = edge_at(sums, runs, head, t, plan.resettable);
        tile.steps[row] = select(inside, dt[head.steps + t], 0.0f32);
        tile.sums[row] = here.sum;
        if comptime!(plan.resettable) {
            tile.runs[row] = here.run;
        }
        let left = exp(here.sum - before.sum, plan.ptx);
        tile.kept[row] = select(inside && here.run == before.run, left, 0.0f32);
        let left = exp(after.sum - here.sum, plan.ptx);
        tile.passed[row] = select(inside && here.run == after.run, left, 0.0f32);
        tile.faults[row] = 0.0f32;
        row += comptime!(plan.units);
    }
}
