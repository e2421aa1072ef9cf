//! What planes share of a segment: two chunks in shared memory, the one that is computed and the next, and the states.

use cubecl::prelude::*;

use super::geometry::Geometry;
use super::load::{Place, clear, request, request_steps, rows, stage};

/// Chunks in shared memory.
pub(super) const STAGES: usize = 2;

/// Shared memory of a cube.
#[derive(CubeType)]
pub(super) struct Staged<F: Float> {
    /// `[chunk, channels]`, twice.
    pub inputs: Shared<[Vector<F, Const<8>>]>,
    /// `[chunk, states]` of `B`, twice.
    pub writes: Shared<[Vector<F, Const<8>>]>,
    /// The same of `C`.
    pub readers: Shared<[Vector<F, Const<8>>]>,
    /// `[states, channels]`, before the chunk that is computed.
    pub states: Shared<[Vector<F, Const<8>>]>,
    /// `[chunk]`, twice.
    pub steps: Shared<[Vector<f32, Const<4>>]>,
    pub sums: Shared<[Vector<f32, Const<4>>]>,
    pub runs: Shared<[Vector<u32, Const<4>>]>,
}

/// Where a chunk lies in it.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Stage {
    /// The vector that its inputs begin at.
    pub inputs: usize,
    /// The same of its projections.
    pub projections: usize,
    /// The value that its steps begin at.
    pub steps: usize,
}

#[cube]
pub(super) fn stage_of(index: usize, #[comptime] geometry: Geometry) -> Stage {
    let place = index % STAGES;
    Stage {
        inputs: place * comptime!(geometry.inputs().vectors()),
        projections: place * comptime!(geometry.projection().vectors()),
        steps: place * comptime!(geometry.chunk),
    }
}

#[cube]
pub(super) fn staged<F: Float>(#[comptime] geometry: Geometry) -> Staged<F> {
    let inputs = comptime!(STAGES * geometry.inputs().vectors());
    let projections = comptime!(STAGES * geometry.projection().vectors());
    let steps = comptime!(STAGES * geometry.chunk / 4);
    let states = comptime!(geometry.state().vectors());
    let mut staged = Staged::<F> {
        inputs: Shared::new_aligned_slice(inputs, 16usize),
        writes: Shared::new_aligned_slice(projections, 16usize),
        readers: Shared::new_aligned_slice(projections, 16usize),
        states: Shared::new_aligned_slice(states, 16usize),
        steps: Shared::new_aligned_slice(steps, 16usize),
        sums: Shared::new_aligned_slice(steps, 16usize),
        runs: Shared::new_aligned_slice(steps, 16usize),
    };
    if comptime!(geometry.is_padded()) {
        clear(&mut staged.inputs, inputs, geometry);
        clear(&mut staged.writes, projections, geometry);
        clear(&mut staged.readers, projections, geometry);
    }
    staged
}

/// Asks for the chunk from position `start` on.
#[cube]
pub(super) fn fetch<F: Float, L: Size>(
    staged: &mut Staged<F>,
    stage_at: &Stage,
    x: &Tensor<Vector<F, L>>,
    b: &Tensor<Vector<F, L>>,
    c: &Tensor<Vector<F, L>>,
    steps: &Tensor<Vector<f32, Const<4>>>,
    sums: &Tensor<Vector<f32, Const<4>>>,
    runs: ComptimeOption<&Tensor<Vector<u32, Const<4>>>>,
    place: &Place,
    start: usize,
    #[comptime] reads: bool,
    #[comptime] geometry: Geometry,
) {
    let headdim = comptime!(geometry.headdim);
    let d_state = comptime!(geometry.d_state).runtime();
    let first = place.head * headdim + place.channel;
    let group = place.group * d_state;
    let input = rows(x, place, start, first, headdim - place.channel);
    let write = rows(b, place, start, group, d_state);
    let read = rows(c, place, start, group, d_state);
    let tile = comptime!(geometry.projection());
    let at = stage_at.projections;
    if comptime!(geometry.width == geometry.lanes()) {
        let input_tile = comptime!(geometry.inputs());
        request(
            x,
            &input,
            &mut staged.inputs,
            stage_at.inputs,
            input_tile,
            geometry,
        );
        request(b, &write, &mut staged.writes, at, tile, geometry);
        if reads {
            request(c, &read, &mut staged.readers, at, tile, geometry);
        }
    } else {
        let input_tile = comptime!(geometry.inputs());
        stage(
            x,
            &input,
            &mut staged.inputs,
            stage_at.inputs,
            input_tile,
            geometry,
        );
        stage(b, &write, &mut staged.writes, at, tile, geometry);
        if reads {
            stage(c, &read, &mut staged.readers, at, tile, geometry);
        }
    }
    let row = (place.batch * x.shape(2) + place.head) * steps.shape(2);
    let at = stage_at.steps;
    request_steps(steps, row, start, &mut staged.steps, at, geometry);
    request_steps(sums, row, start, &mut staged.sums, at, geometry);
    #[comptime]
    if let ComptimeOption::Some(runs) = runs {
        let row = place.batch * runs.shape(1);
        request_steps(runs, row, start, &mut staged.runs, at, geometry);
    }
}

/// One of the values of a chunk's steps.
#[cube]
pub(super) fn step_value<T: Numeric>(values: &Shared<[Vector<T, Const<4>>]>, at: usize) -> T {
    let scalars = values.with_vector_size::<Const<1>>();
    scalars[at].extract(0usize)
}
