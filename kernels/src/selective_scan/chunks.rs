//! Time in parallel: what a chunk does to the state, and the walk over chunks.
//!
//! Over a chunk the state changes by `h -> decay * h + local`, with `decay = exp(A * sum of dt)`
//! ([`DROPPED`] if the state is reset on the way). [`summary_kernel`] computes both for all chunks at
//! once, [`carry_kernel`] walks the few chunks one after the other and leaves the state before
//! each. The gradient of the state obeys the same recurrence backwards in time, with `c` and the
//! gated gradient of `y` in the place of `b` and `dt * u`: both kernels run in either direction.

use cubecl::prelude::*;

use super::geometry::{Geometry, UNROLLED};
use super::pointwise::{DROPPED, decay_over, scale_rates, time_step};
use super::tile::{
    channel_value, load_rows, load_state, load_vectors, place, stage_resets, stage_vectors,
    store_state,
};
use crate::bits::is_negative;
use crate::pointwise::sigmoid;

/// One cube a block of channels, sequence and chunk, but for the chunk that nothing comes after (backwards:
/// before); units as in the scan itself. The next tile's loads are in flight while a tile is computed.
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
    #[comptime] _present: u32,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let d_inner = x.shape(2);
    let chunk = CUBE_POS_Z as usize + comptime!(backwards as usize);
    let place = place(x.shape(1), d_inner, chunk, chunk_len, geometry);
    let channels = comptime!(geometry.channels);
    let groups = comptime!(geometry.groups);
    let tile = comptime!(geometry.tile);

    let rates = load_state::<V>(a, 0usize, a.stride(0), a.stride(1), &place, geometry);
    let exponents = scale_rates::<V>(rates, geometry);
    let bias = channel_value(delta_bias, place.column);
    let mut state = Vector::<f32, V>::new(place.zero);
    let mut elapsed = 0.0f32;
    let mut dropped = false.runtime();

    // dt and the input of a position and channel.
    let mut steps = Shared::<[Vector<f32, Const<2>>]>::new_slice(comptime!(geometry.scalars()));
    let mut writes = Shared::<[Vector<f32, V>]>::new_slice(comptime!(geometry.vectors()));
    let mut resets = Shared::<[u32]>::new_slice(tile);

    let mut next_x = Array::<F>::new(comptime!(geometry.rows()));
    let mut next_delta = Array::<F>::new(comptime!(geometry.rows()));
    let mut next_z = Array::<F>::new(comptime!(geometry.rows()));
    let mut next_vectors = Array::<Vector<F, V>>::new(comptime!(geometry.vectors_per_unit()));

    let tiles = (place.end - place.begin).div_ceil(tile);
    let first = place.begin + comptime!(backwards as usize) * (tiles - 1) * tile;
    load_rows::<F>(x, &mut next_x, &place, first, geometry);
    load_rows::<F>(delta, &mut next_delta, &place, first, geometry);
    load_vectors::<F, V>(projection, &mut next_vectors, &place, first, geometry);
    #[comptime]
    if let ComptimeOption::Some(z) = z {
        load_rows::<F>(z, &mut next_z, &place, first, geometry);
    }
    for step in 0..tiles {
        let index = if comptime!(backwards) {
            tiles - 1 - step
        } else {
            step
        };
        let start = place.begin + index * tile;
        // The units are done with the tile before.
        sync_cube();
        #[unroll]
        for i in 0..comptime!(geometry.rows()) {
            let row = place.group + comptime!(i * groups);
            if row < tile {
                let inside = start + row < place.end;
                let dt = time_step(f32::cast_from(next_delta[i]) + bias, geometry);
                let dt = select(inside, dt, 0.0f32);
                let mut input = f32::cast_from(next_x[i]);
                if comptime!(!backwards) {
                    input *= dt;
                } else if comptime!(z.is_some()) {
                    let gate = f32::cast_from(next_z[i]);
                    input *= gate * sigmoid(gate, comptime!(geometry.ptx));
                }
                let mut step = Vector::<f32, Const<2>>::empty();
                step.insert(0usize, dt);
                step.insert(1usize, select(inside, input, 0.0f32));
                steps[row * channels + place.lane] = step;
            }
        }
        stage_vectors::<F, V>(&next_vectors, &mut writes, geometry);
        #[comptime]
        if let ComptimeOption::Some(seq_idx) = seq_idx {
            stage_resets::<I>(seq_idx, &mut resets, &place, start, geometry);
        }
        sync_cube();

        // After the last tile the same one again, for nothing.
        let after = if comptime!(backwards) {
            place.begin + select(index > 0, index - 1, 0) * tile
        } else {
            start + tile
        };
        load_rows::<F>(x, &mut next_x, &place, after, geometry);
        load_rows::<F>(delta, &mut next_delta, &place, after, geometry);
        load_vectors::<F, V>(projection, &mut next_vectors, &place, after, geometry);
        #[comptime]
        if let ComptimeOption::Some(z) = z {
            load_rows::<F>(z, &mut next_z, &place, after, geometry);
        }

        // Always so. The loads above would be put off until after the walk, but not past a branch.
        if start < place.end {
            #[unroll(geometry.written_out())]
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
                    let step = steps[slot];
                    let dt = step.extract(0usize);
                    let decay = decay_over::<V>(exponents, dt, geometry);
                    let input =
                        Vector::new(step.extract(1usize)) * writes[row * groups + place.group];
                    elapsed += dt;
                    if comptime!(backwards) {
                        state = decay * (state + input);
                    } else {
                        state = decay * state;
                    }
                    if comptime!(seq_idx.is_some()) {
                        if resets[row] == 1u32 {
                            state = Vector::<f32, V>::new(place.zero);
                            dropped = true.runtime();
                        }
                    }
                    if comptime!(!backwards) {
                        state += input;
                    }
                }
            }
        }
    }

    let mut product = decay_over::<V>(exponents, elapsed, geometry);
    if dropped {
        product = Vector::<f32, V>::new(DROPPED);
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
        // What the last chunk does to the state nobody computed.
        let last = step + 1 == chunks;
        let change = if last { 0.0f32.runtime() } else { local[index] };
        let factor = if last { 0.0f32.runtime() } else { decay[index] };
        local[index] = state;
        state = select(is_negative(factor), 0.0f32, factor * state) + change;
    }
}
