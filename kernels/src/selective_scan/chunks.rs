//! Time in parallel: what a chunk does to the state, and the walk over chunks.
//!
//! Over a chunk the state changes by `h -> decay * h + local`, with `decay = exp(A * sum of dt)`
//! (zero if the state is reset on the way). [`summary_kernel`] computes both for all chunks at
//! once, [`carry_kernel`] walks the few chunks one after the other and leaves the state before
//! each. The gradient of the state obeys the same recurrence backwards in time, with `c` and the
//! gated gradient of `y` in the place of `b` and `dt * u`: both kernels run in either direction.

use cubecl::prelude::*;

use super::geometry::{Geometry, UNROLLED};
use super::pointwise::{decay_over, scale_rates, time_step};
use super::tile::{
    channel_value, load_rows, load_state, load_vectors, place, stage_resets, stage_vectors,
    store_state,
};
use crate::pointwise::sigmoid;

/// One cube a block of channels, sequence and chunk; units as in the scan itself.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn summary_kernel<F: Float, I: Int, V: Size>(
    x: &Tensor<F>,                 // u, or backwards grad_y: [batch, seq_len, d_inner]
    delta: &Tensor<F>,             // [batch, seq_len, d_inner]
    a: &Tensor<f32>,               // [d_inner, d_state]
    projection: &Tensor<F>,        // b, or backwards c: [batch, seq_len, d_state]
    z: ComptimeOption<&Tensor<F>>, // backwards: [batch, seq_len, d_inner]
    delta_bias: ComptimeOption<&Tensor<f32>>, // [d_inner]
    seq_idx: ComptimeOption<&Tensor<I>>, // [batch, seq_len]
    local: &mut Tensor<f32>,       // [batch, chunks, d_state, d_inner]
    total: &mut Tensor<f32>,       // [batch, chunks, d_state, d_inner]
    chunk_len: u32,
    #[comptime] backwards: bool,
    #[comptime] geometry: Geometry,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let d_inner = x.shape(2);
    let place = place(x.shape(1), d_inner, chunk_len, geometry);
    let channels = comptime!(geometry.channels);
    let groups = comptime!(geometry.groups);
    let tile = comptime!(geometry.tile);

    let rates = load_state::<V>(a, 0usize, a.stride(0), a.stride(1), &place, geometry);
    let exponents = scale_rates::<V>(rates, geometry);
    let bias = channel_value(delta_bias, place.column);
    let mut state = Vector::<f32, V>::new(0.0f32);
    let mut elapsed = 0.0f32;
    let mut dropped = false.runtime();

    let mut steps = Shared::<[f32]>::new_slice(comptime!(geometry.scalars()));
    let mut inputs = Shared::<[f32]>::new_slice(comptime!(geometry.scalars()));
    let mut writes = Shared::<[Vector<f32, V>]>::new_slice(comptime!(geometry.vectors()));
    let mut resets = Shared::<[u32]>::new_slice(tile);

    let mut next_x = Array::<f32>::new(comptime!(geometry.rows()));
    let mut next_delta = Array::<f32>::new(comptime!(geometry.rows()));
    let mut next_z = Array::<f32>::new(comptime!(geometry.rows()));
    let mut vectors = Array::<Vector<f32, V>>::new(comptime!(geometry.vectors_per_unit()));

    let tiles = (place.end - place.begin).div_ceil(tile);
    for step in 0..tiles {
        let index = if comptime!(backwards) {
            tiles - 1 - step
        } else {
            step
        };
        let start = place.begin + index * tile;
        load_rows::<F>(x, &mut next_x, &place, start, geometry);
        load_rows::<F>(delta, &mut next_delta, &place, start, geometry);
        load_vectors::<F, V>(projection, &mut vectors, &place, start, geometry);
        #[comptime]
        if let ComptimeOption::Some(z) = z {
            load_rows::<F>(z, &mut next_z, &place, start, geometry);
        }
        // The units are done with the tile before.
        sync_cube();
        #[unroll]
        for i in 0..comptime!(geometry.rows()) {
            let row = place.group + comptime!(i * groups);
            if row < tile {
                let inside = start + row < place.end;
                let dt = time_step(next_delta[i] + bias, geometry);
                let dt = select(inside, dt, 0.0f32);
                let mut input = next_x[i];
                if comptime!(!backwards) {
                    input *= dt;
                } else if comptime!(z.is_some()) {
                    input *= next_z[i] * sigmoid(next_z[i], comptime!(geometry.ptx));
                }
                steps[row * channels + place.lane] = dt;
                inputs[row * channels + place.lane] = select(inside, input, 0.0f32);
            }
        }
        stage_vectors::<V>(&vectors, &mut writes, geometry);
        #[comptime]
        if let ComptimeOption::Some(seq_idx) = seq_idx {
            stage_resets::<I>(seq_idx, &mut resets, &place, start, geometry);
        }
        sync_cube();

        for block in 0..comptime!(tile / UNROLLED) {
            #[unroll]
            for j in 0..UNROLLED {
                let position = block * UNROLLED + j;
                let row = if comptime!(backwards) {
                    tile - 1 - position
                } else {
                    position
                };
                let slot = row * channels + place.lane;
                let dt = steps[slot];
                let decay = decay_over::<V>(exponents, dt, geometry);
                let input = Vector::new(inputs[slot]) * writes[row * groups + place.group];
                elapsed += dt;
                if comptime!(backwards) {
                    state = decay * (state + input);
                } else {
                    state = decay * state;
                }
                if comptime!(seq_idx.is_some()) {
                    if resets[row] == 1u32 {
                        state = Vector::<f32, V>::new(0.0f32);
                        dropped = true.runtime();
                    }
                }
                if comptime!(!backwards) {
                    state += input;
                }
            }
        }
    }

    let mut product = decay_over::<V>(exponents, elapsed, geometry);
    if dropped {
        product = Vector::<f32, V>::new(0.0f32);
    }
    let chunk = place.batch * local.shape(1) + place.chunk;
    let base = chunk * comptime!(geometry.d_state) * d_inner;
    store_state::<V>(local, state, base, 1usize, d_inner, &place, geometry);
    store_state::<V>(total, product, base, 1usize, d_inner, &place, geometry);
}

/// One unit a sequence, state and channel. `local` becomes the state before each chunk, or
/// backwards the gradient of the state after each.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn carry_kernel(
    local: &mut Tensor<f32>, // [batch, chunks, d_state, d_inner]
    decay: &Tensor<f32>,     // [batch, chunks, d_state, d_inner]
    edge_states: ComptimeOption<&Tensor<f32>>, // [batch, 1, d_state, d_inner], any strides
    #[comptime] backwards: bool,
) {
    let chunks = local.shape(1);
    let d_inner = local.shape(3);
    let states = local.shape(2) * d_inner;
    if ABSOLUTE_POS >= local.shape(0) * states {
        terminate!();
    }
    let batch = ABSOLUTE_POS / states;
    let within = ABSOLUTE_POS % states;

    let mut state = 0.0f32;
    #[comptime]
    if let ComptimeOption::Some(edge) = edge_states {
        let n = within / d_inner;
        let channel = within % d_inner;
        state = edge[batch * edge.stride(0) + n * edge.stride(2) + channel * edge.stride(3)];
    }
    for step in 0..chunks {
        let chunk = if comptime!(backwards) {
            chunks - 1 - step
        } else {
            step
        };
        let index = (batch * chunks + chunk) * states + within;
        let change = local[index];
        local[index] = state;
        state = decay[index] * state + change;
    }
}
