//! The scan over one chunk of time from the state before it.
//!
//! - A cube owns a block of channels of one sequence over one chunk of time; a unit one channel and
//!   up to four of its states, in registers from the chunk's first position to its last.
//! - Loop order: tiles of time; within a tile all units load and discretise `u` and `delta` once
//!   into shared memory, then every unit walks the tile's positions, then all units sum the reads
//!   of a channel over its states, add the skip, gate and store.
//! - The next tile's loads are in flight while a tile is computed.
//! - Saved on request: the state before every [`CHECKPOINT_INTERVAL`]-th position. No atomics.
//! - Memory: `u`, `delta`, `z` read once, `y` written once; `b` and `c` once a block of channels.

use cubecl::prelude::*;

use super::CHECKPOINT_INTERVAL;
use super::geometry::{Geometry, UNROLLED};
use super::pointwise::{decay_over, scale_rates, time_step};
use super::tile::{
    channel_value, component_sum, load_rows, load_state, load_vectors, place, stage_resets,
    stage_vectors, store_state,
};
use crate::bits::round_to;
use crate::pointwise::sigmoid;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn scan_kernel<F: Float, I: Int, V: Size>(
    u: &Tensor<F>,                                     // [batch, seq_len, d_inner]
    delta: &Tensor<F>,                                 // [batch, seq_len, d_inner]
    a: &Tensor<f32>,                                   // [d_inner, d_state]
    b: &Tensor<F>,                                     // [batch, seq_len, d_state]
    c: &Tensor<F>,                                     // [batch, seq_len, d_state]
    d: ComptimeOption<&Tensor<f32>>,                   // [d_inner]
    z: ComptimeOption<&Tensor<F>>,                     // [batch, seq_len, d_inner]
    delta_bias: ComptimeOption<&Tensor<f32>>,          // [d_inner]
    seq_idx: ComptimeOption<&Tensor<I>>,               // [batch, seq_len]
    start_states: ComptimeOption<&Tensor<f32>>,        // [batch, chunks, d_state, d_inner]
    y: &mut Tensor<F>,                                 // [batch, seq_len, d_inner]
    final_state: &mut Tensor<f32>,                     // [batch, d_inner, d_state]
    mut checkpoints: ComptimeOption<OwnedTensor<f32>>, // [batch, intervals, d_state, d_inner]
    chunk_len: u32,
    #[comptime] geometry: Geometry,
    #[comptime] _present: u32,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let seq_len = u.shape(1);
    let d_inner = u.shape(2);
    let place = place(seq_len, d_inner, CUBE_POS_Z as usize, chunk_len, geometry);
    let channels = comptime!(geometry.channels);
    let groups = comptime!(geometry.groups);
    let tile = comptime!(geometry.tile);

    let rates = load_state::<V>(a, 0usize, a.stride(0), a.stride(1), &place, geometry);
    let exponents = scale_rates::<V>(rates, geometry);
    let skip_weight = channel_value(d, place.column);
    let bias = channel_value(delta_bias, place.column);
    let mut state = Vector::<f32, V>::new(place.zero);
    #[comptime]
    if let ComptimeOption::Some(starts) = start_states {
        state = load_state::<V>(
            starts,
            place.batch * starts.stride(0) + place.chunk * starts.stride(1),
            starts.stride(3),
            starts.stride(2),
            &place,
            geometry,
        );
    }

    let mut steps = Shared::<[f32]>::new_slice(comptime!(geometry.scalars()));
    let mut inputs = Shared::<[f32]>::new_slice(comptime!(geometry.scalars()));
    let mut writes = Shared::<[Vector<f32, V>]>::new_slice(comptime!(geometry.vectors()));
    let mut readers = Shared::<[Vector<f32, V>]>::new_slice(comptime!(geometry.vectors()));
    let mut reads = Shared::<[f32]>::new_slice(comptime!(geometry.groups * geometry.scalars()));
    let mut resets = Shared::<[u32]>::new_slice(tile);

    let mut next_u = Array::<F>::new(comptime!(geometry.rows()));
    let mut next_delta = Array::<F>::new(comptime!(geometry.rows()));
    let mut next_b = Array::<Vector<F, V>>::new(comptime!(geometry.vectors_per_unit()));
    let mut next_c = Array::<Vector<F, V>>::new(comptime!(geometry.vectors_per_unit()));
    let mut sums = Array::<f32>::new(UNROLLED);
    let mut skips = Array::<f32>::new(comptime!(geometry.rows()));
    let mut gates = Array::<F>::new(comptime!(geometry.rows()));
    load_rows::<F>(u, &mut next_u, &place, place.begin, geometry);
    load_rows::<F>(delta, &mut next_delta, &place, place.begin, geometry);
    load_vectors::<F, V>(b, &mut next_b, &place, place.begin, geometry);
    load_vectors::<F, V>(c, &mut next_c, &place, place.begin, geometry);

    let tiles = (place.end - place.begin).div_ceil(tile);
    for index in 0..tiles {
        let start = place.begin + index * tile;
        #[unroll]
        for i in 0..comptime!(geometry.rows()) {
            let row = place.group + comptime!(i * groups);
            let input = f32::cast_from(next_u[i]);
            skips[i] = skip_weight * input;
            if row < tile {
                let dt = time_step(f32::cast_from(next_delta[i]) + bias, geometry);
                // A step of zero length leaves the state alone, but for an infinite input.
                let inside = start + row < place.end;
                steps[row * channels + place.lane] = select(inside, dt, 0.0f32);
                inputs[row * channels + place.lane] = select(inside, dt * input, 0.0f32);
            }
        }
        stage_vectors::<F, V>(&next_b, &mut writes, geometry);
        stage_vectors::<F, V>(&next_c, &mut readers, geometry);
        #[comptime]
        if let ComptimeOption::Some(seq_idx) = seq_idx {
            stage_resets::<I>(seq_idx, &mut resets, &place, start, geometry);
        }
        sync_cube();

        let after = start + tile;
        load_rows::<F>(u, &mut next_u, &place, after, geometry);
        load_rows::<F>(delta, &mut next_delta, &place, after, geometry);
        load_vectors::<F, V>(b, &mut next_b, &place, after, geometry);
        load_vectors::<F, V>(c, &mut next_c, &place, after, geometry);
        #[comptime]
        if let ComptimeOption::Some(z) = z {
            load_rows::<F>(z, &mut gates, &place, start, geometry);
        }
        #[comptime]
        if let ComptimeOption::Some(checkpoints) = &mut checkpoints {
            if start % CHECKPOINT_INTERVAL == 0 {
                let intervals = checkpoints.shape(1);
                let interval = place.batch * intervals + start / CHECKPOINT_INTERVAL;
                let base = interval * comptime!(geometry.d_state) * d_inner;
                store_state::<V>(checkpoints, state, base, 1usize, d_inner, &place, geometry);
            }
        }

        // Always so. The loads above would be put off until after the walk, but not past a branch.
        if start < place.end {
            #[unroll(geometry.written_out())]
            for block in 0..comptime!(tile / UNROLLED) {
                let first = block * UNROLLED;
                // No load moves up past a store: positions whose reads were stored one by one would wait
                // for each other.
                #[unroll]
                for j in 0..UNROLLED {
                    if comptime!(seq_idx.is_some()) {
                        if resets[first + j] == 1u32 {
                            state = Vector::<f32, V>::new(place.zero);
                        }
                    }
                    let at = (first + j) * channels + place.lane;
                    let at_vector = (first + j) * groups + place.group;
                    let decay = decay_over::<V>(exponents, steps[at], geometry);
                    state = decay * state + Vector::new(inputs[at]) * writes[at_vector];
                    sums[j] = component_sum::<V>(state * readers[at_vector], geometry.width);
                }
                let slot = (place.group * tile + first) * channels + place.lane;
                #[unroll]
                for j in 0..UNROLLED {
                    reads[slot + comptime!(j * channels)] = sums[j];
                }
            }
        }
        sync_cube();

        #[unroll]
        for i in 0..comptime!(geometry.rows()) {
            let row = place.group + comptime!(i * groups);
            let t = start + row;
            if place.owned && row < tile && t < place.end {
                let mut value = skips[i];
                for group in 0..groups {
                    value += reads[(group * tile + row) * channels + place.lane];
                }
                if comptime!(z.is_some()) {
                    let gate = f32::cast_from(gates[i]);
                    value *= gate * sigmoid(gate, comptime!(geometry.ptx));
                }
                y[(place.batch * seq_len + t) * d_inner + place.column] = round_to::<F>(value);
            }
        }
    }

    if place.end == seq_len {
        let d_state = comptime!(geometry.d_state);
        let base = place.batch * d_inner * d_state;
        store_state::<V>(final_state, state, base, d_state, 1usize, &place, geometry);
    }
}
