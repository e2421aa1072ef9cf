//! What a chunk's outputs are where infinities and NaN meet weights of zero: only what a position sees counts.

use cubecl::prelude::*;

use super::geometry::Geometry;
use super::stages::{Stage, Staged, step_value};
use super::tile::spot;
use crate::pointwise::exp;

/// Computes a plane's outputs anew, position by position. Slow, and hardly ever called for.
#[cube]
pub(super) fn repair<F: Float>(
    staged: &Staged<F>,
    stage: &Stage,
    outputs: &mut Array<f32>,
    #[comptime] has_runs: bool,
    #[comptime] geometry: Geometry,
) {
    let form = comptime!(geometry.output_sums());
    let input_tile = comptime!(geometry.inputs());
    let projection_tile = comptime!(geometry.projection());
    let state_tile = comptime!(geometry.state());
    #[unroll]
    for half in 0..2usize {
        let row = spot(comptime!(2 * half), form).row;
        let reader = stage.projections + row * comptime!(projection_tile.pitch());
        let sum = step_value(&staged.sums, stage.steps + row);
        let mut run = 0u32;
        if has_runs {
            run = step_value(&staged.runs, stage.steps + row);
        }
        #[unroll]
        for i in 0..comptime!(form.values() / 4 * 2) {
            let slot = comptime!(i / 2 * 4 + 2 * half + i % 2);
            let column = spot(slot, form).column;
            let mut read = 0.0f32;
            if run == 0 {
                for n in 0..comptime!(geometry.states) {
                    let state = value(&staged.states, n * comptime!(state_tile.pitch()), column);
                    read += value(&staged.readers, reader, n) * state;
                }
                read *= exp(sum, geometry.ptx);
            }
            outputs[slot] = read;
        }
        let first = select(run > 0, run, 1u32) as usize - 1;
        for s in first..row + 1 {
            let write = stage.projections + s * comptime!(projection_tile.pitch());
            let mut weight = 0.0f32;
            for n in 0..comptime!(geometry.states) {
                weight += value(&staged.readers, reader, n) * value(&staged.writes, write, n);
            }
            let since = exp(
                sum - step_value(&staged.sums, stage.steps + s),
                geometry.ptx,
            );
            weight *= since * step_value(&staged.steps, stage.steps + s);
            #[unroll]
            for i in 0..comptime!(form.values() / 4 * 2) {
                let slot = comptime!(i / 2 * 4 + 2 * half + i % 2);
                let column = spot(slot, form).column;
                let row = stage.inputs + s * comptime!(input_tile.pitch());
                outputs[slot] += weight * value(&staged.inputs, row, column);
            }
        }
    }
}

/// A value of a tile, in the row that begins at a vector.
#[cube]
fn value<F: Float>(tile: &Shared<[Vector<F, Const<8>>]>, row: usize, column: usize) -> f32 {
    let scalars = tile.with_vector_size::<Const<1>>();
    f32::cast_from(scalars[row * 8 + column].extract(0usize))
}
