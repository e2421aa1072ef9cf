//! A cube's tiles in shared memory, and how they are filled.

use cubecl::prelude::*;

use super::super::load::{Head, Rows, Staging, channel_rows, stage};
use super::super::others::{Others, Span, stage_rows};
use super::super::plan::Plan;
use super::positions::Positions;

/// Of a cube's own positions.
#[derive(CubeType)]
pub(super) struct Tiles<F: Float, V: Size> {
    /// Of `x`: `[turns, positions, channels]`.
    pub inputs: Shared<[Vector<F, V>]>,
    /// The same of `grad_y`.
    pub grads: Shared<[Vector<F, V>]>,
    /// Of `b`: `[positions, slice]`.
    pub writes: Shared<[Vector<F, V>]>,
    /// The same of `c`.
    pub readers: Shared<[Vector<F, V>]>,
    /// The state before the tile or the gradient of the state after it: `[channels, slice]`.
    pub states: Shared<[Vector<F, V>]>,
    /// What is for pairs of positions: `[positions, positions]`.
    pub weights: Shared<[Vector<F, V>]>,
}

/// Shared memory for them.
#[cube]
pub(super) fn tiles_of_cube<F: Float, V: Size>(#[comptime] plan: Plan) -> Tiles<F, V> {
    let rows = comptime!(plan.turns() * plan.inputs().vectors());
    let projection = comptime!(plan.projection().vectors());
    Tiles::<F, V> {
        inputs: Shared::new_aligned_slice(rows, 16usize),
        grads: Shared::new_aligned_slice(rows, 16usize),
        writes: Shared::new_aligned_slice(projection, 16usize),
        readers: Shared::new_aligned_slice(projection, 16usize),
        states: Shared::new_aligned_slice(comptime!(plan.state().vectors()), 16usize),
        weights: Shared::new_aligned_slice(comptime!(plan.weights().vectors()), 16usize),
    }
}

impl Plan {
    /// How rows are staged whose products may cross runs.
    pub(super) fn guarded(&self) -> Staging {
        match self.resettable {
            true => Staging::Marked,
            false => Staging::Plain,
        }
    }
}

/// A slice of the tile's rows of `b` and `c`.
#[cube]
pub(super) fn stage_pair<F: Float, L: Size, V: Size>(
    b: &Tensor<Vector<F, L>>,
    c: &Tensor<Vector<F, L>>,
    rows: &Rows,
    tiles: &mut Tiles<F, V>,
    positions: &mut Positions,
    #[comptime] plan: Plan,
) {
    let staging = comptime!(plan.guarded());
    let tile = comptime!(plan.projection());
    stage::<F, L, V>(
        b,
        rows,
        &mut tiles.writes,
        0usize,
        &mut positions.flaws,
        0usize,
        staging,
        tile,
        plan,
    );
    stage::<F, L, V>(
        c,
        rows,
        &mut tiles.readers,
        0usize,
        &mut positions.flaws,
        0usize,
        staging,
        tile,
        plan,
    );
}

/// A block of a head's channels: the tile's rows of `x` and `grad_y`, and the weighted ones of the other tiles where those
/// stay.
#[cube]
pub(super) fn stage_head<F: Float, L: Size, V: Size>(
    x: &Tensor<Vector<F, L>>,
    grad_y: &Tensor<Vector<F, L>>,
    tiles: &mut Tiles<F, V>,
    others: &mut Others<F, V>,
    positions: &mut Positions,
    head: &Head,
    span: &Span,
    block: usize,
    #[comptime] plan: Plan,
) {
    let guarded = comptime!(plan.guarded());
    let tile = comptime!(plan.inputs());
    let from = channel_rows(head, span.start, span.stop, block, plan);
    stage::<F, L, V>(
        x,
        &from,
        &mut tiles.inputs,
        0usize,
        &mut positions.faults,
        0usize,
        Staging::Plain,
        tile,
        plan,
    );
    stage::<F, L, V>(
        grad_y,
        &from,
        &mut tiles.grads,
        0usize,
        &mut positions.faults,
        0usize,
        guarded,
        tile,
        plan,
    );
    if comptime!(plan.resident) {
        stage_rows::<F, L, V>(x, grad_y, others, head, span, block, plan);
    }
}
