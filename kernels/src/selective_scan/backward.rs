//! The gradients over one slice of a chunk of time, from the gradient of the state after it.
//!
//! ```text
//! g_t     = dy_t c_t + exp(dt_{t+1} A) g_{t+1}      dy = grad_y silu(z)
//! grad_B  = sum over channels of g dt u             grad_C = sum over channels of dy h
//! grad_dt = sum over states of g (A exp(dt A) h_{t-1} + B u)
//! grad_u  = dt (sum over states of g B) + D dy      grad_A = sum over batch and time of
//!                                                            g dt exp(dt A) h_{t-1}
//! ```
//!
//! - Cubes and units own what they own in the forward scan; the slice is walked from its end, and
//!   the slices of a chunk are launched from its end.
//! - Loop order: intervals between checkpoints, last first. In each, the states before its blocks of
//!   `stage` positions are recomputed from the checkpoint (most often there is one block). A block's
//!   inputs are loaded and discretised once, into shared memory; the states before its tiles are
//!   recomputed; then for each tile, last first: forward, keeping `exp(dt A)` and `exp(dt A) h` of
//!   every position in registers, and backward.
//! - Sums over a channel's states and over the cube's channels go through shared memory, in a fixed
//!   order. What has to be summed over cubes is written out as parts, which
//!   [`sum_parts`](crate::sums::sum_parts) adds in a fixed order. No atomics: two runs agree to
//!   the bit.
//! - Memory: `u`, `delta`, `z`, `grad_y` once and a second time from the cache, the checkpoints
//!   once; writes three gradients of their size, and `2 * d_state` parts a position and block of
//!   channels.

use cubecl::prelude::*;

use super::CHECKPOINT_INTERVAL;
use super::geometry::Geometry;
use super::pointwise::{DROPPED, decay_over, scale_rates, time_step, time_step_slope};
use super::tile::{
    Place, channel_value, component_sum, load_rows, load_state, load_vectors, place, stage_resets,
    stage_vectors, store_state,
};
use crate::bits::{is_negative, round_to};
use crate::pointwise::sigmoid;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn scan_backward_kernel<F: Float, I: Int, V: Size>(
    u: &Tensor<F>,                                    // [batch, seq_len, d_inner]
    delta: &Tensor<F>,                                // [batch, seq_len, d_inner]
    a: &Tensor<f32>,                                  // [d_inner, d_state]
    b: &Tensor<F>,                                    // [batch, seq_len, d_state]
    c: &Tensor<F>,                                    // [batch, seq_len, d_state]
    d: ComptimeOption<&Tensor<f32>>,                  // [d_inner]
    z: ComptimeOption<&Tensor<F>>,                    // [batch, seq_len, d_inner]
    delta_bias: ComptimeOption<&Tensor<f32>>,         // [d_inner]
    seq_idx: ComptimeOption<&Tensor<I>>,              // [batch, seq_len]
    checkpoints: &Tensor<f32>,                        // [batch, intervals, d_state, d_inner]
    grad_y: &Tensor<F>,                               // [batch, seq_len, d_inner]
    end_grads: &Tensor<f32>, // of the state after the slice: [batch, chunks, d_state, d_inner]
    grad_u: &mut Tensor<F>,  // [batch, seq_len, d_inner]
    grad_delta: &mut Tensor<F>, // [batch, seq_len, d_inner]
    mut grad_z: ComptimeOption<OwnedTensor<F>>, // [batch, seq_len, d_inner]
    grad_bc: &mut Tensor<f32>, // [2, blocks, batch, chunks * slice_len, d_state]
    grad_a: &mut Tensor<f32>, // [batch, chunks, d_state, d_inner]
    grad_channels: &mut Tensor<f32>, // [2, batch, chunks, groups, d_inner]
    carry: &mut Tensor<f32>, // of the state before the slice: as `end_grads`, contiguous
    mut grad_start: ComptimeOption<OwnedTensor<f32>>, // [batch, d_inner, d_state]
    chunk_len: u32,
    slice_begin: u32, // in its chunk
    slice_len: u32,
    ends: u32,                // whether there is a gradient after the slice, or it is zero
    resumed: u32, // whether sums over time go on from what `grad_a` and `grad_channels` hold
    #[comptime] ragged: bool, // whether a chunk may end inside a tile
    #[comptime] geometry: Geometry,
    #[comptime] _present: u32,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let seq_len = u.shape(1);
    let d_inner = u.shape(2);
    let chunk = place(seq_len, d_inner, CUBE_POS_Z as usize, chunk_len, geometry);
    let place = slice_of(&chunk, slice_begin, slice_len);
    let channels = comptime!(geometry.channels);
    let groups = comptime!(geometry.groups);
    let tile = comptime!(geometry.tile);
    let stage = comptime!(geometry.stage);
    // A block of positions is loaded as a tile of that length.
    let staging = comptime!(geometry.staging());
    let d_state = comptime!(geometry.d_state);

    let rates = load_state::<V>(a, 0usize, a.stride(0), a.stride(1), &place, geometry);
    let exponents = scale_rates::<V>(rates, geometry);
    let skip_weight = channel_value(d, place.column);
    let bias = channel_value(delta_bias, place.column);
    let mut grad_state = Vector::<f32, V>::new(0.0f32);
    // A channel that does not exist must not add to the sums over channels.
    if ends == 1 && place.owned {
        grad_state = load_state::<V>(
            end_grads,
            place.batch * end_grads.stride(0) + place.chunk * end_grads.stride(1),
            end_grads.stride(3),
            end_grads.stride(2),
            &place,
            geometry,
        );
    }
    let chunk_row = place.batch * grad_a.shape(1) + place.chunk;
    let states = chunk_row * d_state * d_inner;
    let part = (chunk_row * groups + place.group) * d_inner + place.column;
    let half = grad_a.shape(0) * grad_a.shape(1) * groups * d_inner;
    let mut grad_rates = Vector::<f32, V>::new(0.0f32);
    let mut grad_skip = 0.0f32;
    let mut grad_bias = 0.0f32;
    if resumed == 1 {
        grad_rates = load_state::<V>(&*grad_a, states, 1usize, d_inner, &place, geometry);
        grad_skip = grad_channels[part];
        grad_bias = grad_channels[half + part];
    }

    let mut steps = Shared::<[f32]>::new_slice(comptime!(staging.scalars()));
    let mut inputs = Shared::<[f32]>::new_slice(comptime!(staging.scalars()));
    let mut grads = Shared::<[f32]>::new_slice(comptime!(staging.scalars()));
    let mut writes = Shared::<[Vector<f32, V>]>::new_slice(comptime!(staging.vectors()));
    let mut readers = Shared::<[Vector<f32, V>]>::new_slice(comptime!(staging.vectors()));
    let mut resets = Shared::<[u32]>::new_slice(stage);
    let mut reads = Shared::<[f32]>::new_slice(comptime!(groups * geometry.scalars()));
    let mut input_sums = Shared::<[f32]>::new_slice(comptime!(groups * geometry.scalars()));
    let mut step_sums = Shared::<[f32]>::new_slice(comptime!(groups * geometry.scalars()));
    // Of b, then of c: [2, tile, groups, channels and padding].
    let mut products = Shared::<[Vector<f32, V>]>::new_slice(comptime!(geometry.products()));
    let mut partials = Shared::<[Vector<f32, V>]>::new_slice(comptime!(geometry.partials()));

    let mut block_u = Array::<F>::new(comptime!(staging.rows()));
    let mut block_delta = Array::<F>::new(comptime!(staging.rows()));
    let mut block_z = Array::<F>::new(comptime!(staging.rows()));
    let mut block_grad = Array::<F>::new(comptime!(staging.rows()));
    let mut vectors_b = Array::<Vector<F, V>>::new(comptime!(staging.vectors_per_unit()));
    let mut vectors_c = Array::<Vector<F, V>>::new(comptime!(staging.vectors_per_unit()));
    let mut rows_u = Array::<F>::new(comptime!(geometry.rows()));
    let mut rows_delta = Array::<F>::new(comptime!(geometry.rows()));
    let mut rows_z = Array::<F>::new(comptime!(geometry.rows()));
    let mut rows_grad = Array::<F>::new(comptime!(geometry.rows()));
    let mut tile_steps = Array::<f32>::new(tile);
    let mut tile_inputs = Array::<f32>::new(tile);
    let mut tile_grads = Array::<f32>::new(tile);
    let mut tile_writes = Array::<Vector<f32, V>>::new(tile);
    let mut tile_readers = Array::<Vector<f32, V>>::new(tile);
    let mut tile_reads = Array::<f32>::new(tile);
    let mut decays = Array::<Vector<f32, V>>::new(tile);
    let mut carried = Array::<Vector<f32, V>>::new(tile);
    let mut tile_starts = Array::<Vector<f32, V>>::new(comptime!(stage / tile));
    let mut block_starts = Array::<Vector<f32, V>>::new(comptime!(CHECKPOINT_INTERVAL / stage));

    let intervals = (place.end - place.begin).div_ceil(CHECKPOINT_INTERVAL);
    for interval_step in 0..intervals {
        let first = place.begin + (intervals - 1 - interval_step) * CHECKPOINT_INTERVAL;
        let last = first + CHECKPOINT_INTERVAL;
        let last = select(last < place.end, last, place.end);
        let blocks = (last - first).div_ceil(stage);

        let interval = place.batch * checkpoints.shape(1) + first / CHECKPOINT_INTERVAL;
        let base = interval * d_state * d_inner;
        let mut state = load_state::<V>(checkpoints, base, 1usize, d_inner, &place, geometry);
        block_starts[0] = state;
        if comptime!(stage < CHECKPOINT_INTERVAL) {
            for block in 1..blocks {
                let start = first + (block - 1) * stage;
                load_rows::<F>(u, &mut block_u, &place, start, staging);
                load_rows::<F>(delta, &mut block_delta, &place, start, staging);
                load_vectors::<F, V>(b, &mut vectors_b, &place, start, staging);
                sync_cube();
                #[unroll]
                for i in 0..comptime!(staging.rows()) {
                    let row = place.group + comptime!(i * groups);
                    if row < stage {
                        // All of the block lies inside the chunk: another follows it.
                        let dt = time_step(f32::cast_from(block_delta[i]) + bias, geometry);
                        steps[row * channels + place.lane] = dt;
                        inputs[row * channels + place.lane] = dt * f32::cast_from(block_u[i]);
                    }
                }
                stage_vectors::<F, V>(&vectors_b, &mut writes, staging);
                #[comptime]
                if let ComptimeOption::Some(seq_idx) = seq_idx {
                    stage_resets::<I>(seq_idx, &mut resets, &place, start, staging);
                }
                sync_cube();
                for index in 0..comptime!(stage / tile) {
                    state = recompute_tile::<V>(
                        state,
                        exponents,
                        index * tile,
                        &steps,
                        &inputs,
                        &writes,
                        &resets,
                        &place,
                        comptime!(seq_idx.is_some()),
                        geometry,
                    );
                }
                block_starts[block] = state;
            }
            // The units are done with the last of these blocks.
            sync_cube();
        }

        for block_step in 0..blocks {
            let block = blocks - 1 - block_step;
            let start = first + block * stage;
            let stop = select(start + stage < last, start + stage, last);
            load_rows::<F>(u, &mut block_u, &place, start, staging);
            load_rows::<F>(delta, &mut block_delta, &place, start, staging);
            load_rows::<F>(grad_y, &mut block_grad, &place, start, staging);
            load_vectors::<F, V>(b, &mut vectors_b, &place, start, staging);
            load_vectors::<F, V>(c, &mut vectors_c, &place, start, staging);
            #[comptime]
            if let ComptimeOption::Some(z) = z {
                load_rows::<F>(z, &mut block_z, &place, start, staging);
            }
            #[unroll]
            for i in 0..comptime!(staging.rows()) {
                let row = place.group + comptime!(i * groups);
                if row < stage {
                    let inside = start + row < place.end;
                    let dt = time_step(f32::cast_from(block_delta[i]) + bias, geometry);
                    let dt = select(inside, dt, 0.0f32);
                    let mut grad = f32::cast_from(block_grad[i]);
                    if comptime!(z.is_some()) {
                        let gate = f32::cast_from(block_z[i]);
                        grad *= gate * sigmoid(gate, comptime!(geometry.ptx));
                    }
                    let slot = row * channels + place.lane;
                    steps[slot] = dt;
                    // Not by the step alone: the last position's input may be infinite.
                    inputs[slot] = select(inside, dt * f32::cast_from(block_u[i]), 0.0f32);
                    grads[slot] = select(inside && place.owned, grad, 0.0f32);
                }
            }
            stage_vectors::<F, V>(&vectors_b, &mut writes, staging);
            stage_vectors::<F, V>(&vectors_c, &mut readers, staging);
            #[comptime]
            if let ComptimeOption::Some(seq_idx) = seq_idx {
                stage_resets::<I>(seq_idx, &mut resets, &place, start, staging);
            }
            sync_cube();

            let tiles = (stop - start).div_ceil(tile);
            let mut state = block_starts[block];
            tile_starts[0] = state;
            for index in 1..tiles {
                state = recompute_tile::<V>(
                    state,
                    exponents,
                    (index - 1) * tile,
                    &steps,
                    &inputs,
                    &writes,
                    &resets,
                    &place,
                    comptime!(seq_idx.is_some()),
                    geometry,
                );
                tile_starts[index] = state;
            }

            for tile_step in 0..tiles {
                let index = tiles - 1 - tile_step;
                let offset = index * tile;
                // Needed at the end of the tile, in the cache since the block was loaded.
                load_rows::<F>(u, &mut rows_u, &place, start + offset, geometry);
                load_rows::<F>(delta, &mut rows_delta, &place, start + offset, geometry);
                #[comptime]
                if let ComptimeOption::Some(z) = z {
                    load_rows::<F>(grad_y, &mut rows_grad, &place, start + offset, geometry);
                    load_rows::<F>(z, &mut rows_z, &place, start + offset, geometry);
                }

                let mut state = tile_starts[index];
                #[unroll]
                for j in 0..tile {
                    let slot = (offset + j) * channels + place.lane;
                    let vector = (offset + j) * groups + place.group;
                    let decay = decay_over::<V>(exponents, steps[slot], geometry);
                    decays[j] = decay;
                    carried[j] = decay * state;
                    if comptime!(seq_idx.is_some()) {
                        if resets[offset + j] == 1u32 {
                            decays[j] = Vector::<f32, V>::new(DROPPED);
                            carried[j] = decay * Vector::new(place.zero);
                        }
                    }
                    state = carried[j] + Vector::new(inputs[slot]) * writes[vector];
                    if comptime!(z.is_some()) {
                        tile_reads[j] = component_sum::<V>(state * readers[vector], geometry.width);
                    }
                }
                // No step is taken beyond the chunk, but what is NaN is no less so times zero.
                if comptime!(ragged) {
                    #[unroll]
                    for j in 0..tile {
                        if start + offset + j >= place.end {
                            decays[j] = Vector::<f32, V>::new(1.0f32);
                            carried[j] = Vector::<f32, V>::new(0.0f32);
                        }
                    }
                }
                // Always so. The loads above would be put off until after the walk, but not past a branch.
                if start + offset < stop {
                    // No load moves up past a store: a position's come before the stores of the one
                    // behind it.
                    #[unroll]
                    for k in 0..comptime!(tile + 1) {
                        if comptime!(k < tile) {
                            let j = comptime!(tile - 1 - k);
                            let slot = (offset + j) * channels + place.lane;
                            let vector = (offset + j) * groups + place.group;
                            tile_steps[j] = steps[slot];
                            tile_inputs[j] = inputs[slot];
                            tile_grads[j] = grads[slot];
                            tile_writes[j] = writes[vector];
                            tile_readers[j] = readers[vector];
                        }
                        if comptime!(k > 0) {
                            let j = comptime!(tile - k);
                            let (dt, input, grad) = (tile_steps[j], tile_inputs[j], tile_grads[j]);
                            let (write, reader) = (tile_writes[j], tile_readers[j]);
                            let state = carried[j] + Vector::new(input) * write;
                            grad_state += Vector::new(grad) * reader;
                            let product = (comptime!(j * groups) + place.group)
                                * comptime!(geometry.padded())
                                + place.lane;
                            products[product] = grad_state * Vector::new(input);
                            products[product + comptime!(geometry.products() / 2)] =
                                state * Vector::new(grad);
                            let through = grad_state * carried[j];
                            grad_rates += through * Vector::new(dt);
                            let sum = (place.group * tile + j) * channels + place.lane;
                            input_sums[sum] =
                                component_sum::<V>(grad_state * write, geometry.width);
                            step_sums[sum] = component_sum::<V>(through * rates, geometry.width);
                            if comptime!(z.is_some()) {
                                reads[sum] = tile_reads[j];
                            }
                            grad_state *= decays[j];
                            if comptime!(seq_idx.is_some()) {
                                if is_negative(decays[j].extract(0usize)) {
                                    grad_state = Vector::<f32, V>::new(0.0f32);
                                }
                            }
                        }
                    }
                }
                sync_cube();

                #[unroll]
                for i in 0..comptime!(geometry.rows()) {
                    let row = place.group + comptime!(i * groups);
                    let t = start + offset + row;
                    if place.owned && row < tile && t < place.end {
                        let slot = (offset + row) * channels + place.lane;
                        let mut input_sum = 0.0f32;
                        let mut step_sum = 0.0f32;
                        let input = f32::cast_from(rows_u[i]);
                        let mut read = skip_weight * input;
                        for group in 0..groups {
                            let sum = (group * tile + row) * channels + place.lane;
                            input_sum += input_sums[sum];
                            step_sum += step_sums[sum];
                            if comptime!(z.is_some()) {
                                read += reads[sum];
                            }
                        }
                        let out = (place.batch * seq_len + t) * d_inner + place.column;
                        let grad = grads[slot];
                        grad_u[out] = round_to::<F>(steps[slot] * input_sum + skip_weight * grad);
                        let slope = time_step_slope(f32::cast_from(rows_delta[i]) + bias, geometry);
                        let grad_step = (step_sum + input * input_sum) * slope;
                        grad_delta[out] = round_to::<F>(grad_step);
                        grad_bias += grad_step;
                        grad_skip += grad * input;
                        #[comptime]
                        if let ComptimeOption::Some(grad_z) = &mut grad_z {
                            let z = f32::cast_from(rows_z[i]);
                            let gate = sigmoid(z, comptime!(geometry.ptx));
                            let slope = gate * (1.0f32 + z * (1.0f32 - gate));
                            let grad = f32::cast_from(rows_grad[i]) * read * slope;
                            grad_z[out] = round_to::<F>(grad);
                        }
                    }
                }
                sum_channels::<V>(&products, &mut partials, geometry);
                sync_cube();
                write_parts::<V>(
                    &partials,
                    grad_bc,
                    &place,
                    start + offset,
                    slice_len as usize,
                    geometry,
                );
            }
        }
    }

    store_state::<V>(
        grad_a, grad_rates, states, 1usize, d_inner, &place, geometry,
    );
    store_state::<V>(carry, grad_state, states, 1usize, d_inner, &place, geometry);
    if place.owned {
        grad_channels[part] = grad_skip;
        grad_channels[half + part] = grad_bias;
    }
    #[comptime]
    if let ComptimeOption::Some(grad_start) = &mut grad_start {
        if place.chunk == 0 && slice_begin == 0 {
            let base = place.batch * d_inner * d_state;
            store_state::<V>(
                grad_start, grad_state, base, d_state, 1usize, &place, geometry,
            );
        }
    }
}

/// The unit's place in a slice of its chunk: an empty one, where the chunk ends before it.
#[cube]
fn slice_of(chunk: &Place, slice_begin: u32, slice_len: u32) -> Place {
    let begin = chunk.begin + slice_begin as usize;
    let end = begin + slice_len as usize;
    Place {
        batch: chunk.batch,
        chunk: chunk.chunk,
        lane: chunk.lane,
        group: chunk.group,
        column: chunk.column,
        owned: chunk.owned,
        zero: chunk.zero,
        begin: select(begin < chunk.end, begin, chunk.end),
        end: select(end < chunk.end, end, chunk.end),
    }
}

/// The state after a tile that begins at row `first` of what is staged, from the state before it.
#[cube]
fn recompute_tile<V: Size>(
    before: Vector<f32, V>,
    exponents: Vector<f32, V>,
    first: usize,
    steps: &Shared<[f32]>,             // [stage, channels]
    inputs: &Shared<[f32]>,            // [stage, channels]
    writes: &Shared<[Vector<f32, V>]>, // [stage, groups]
    resets: &Shared<[u32]>,            // [stage]
    place: &Place,
    #[comptime] resettable: bool,
    #[comptime] geometry: Geometry,
) -> Vector<f32, V> {
    let mut state = before;
    #[unroll]
    for j in 0..comptime!(geometry.tile) {
        let row = first + j;
        let slot = row * comptime!(geometry.channels) + place.lane;
        if resettable {
            if resets[row] == 1u32 {
                state = Vector::<f32, V>::new(place.zero);
            }
        }
        let decay = decay_over::<V>(exponents, steps[slot], geometry);
        let write = writes[row * comptime!(geometry.groups) + place.group];
        state = decay * state + Vector::new(inputs[slot]) * write;
    }
    state
}

/// Sums of a tile's products over the channels, several units a sum: unit `k` of them adds every
/// channel that leaves the remainder `k`, so that neighbouring units read from different banks.
#[cube]
fn sum_channels<V: Size>(
    products: &Shared<[Vector<f32, V>]>, // [2, tile, groups, channels and padding]
    partials: &mut Shared<[Vector<f32, V>]>, // [2, tile, groups, sharers]
    #[comptime] geometry: Geometry,
) {
    let sharers = comptime!(geometry.sharers());
    let mut job = UNIT_POS as usize;
    while job < comptime!(geometry.partials()) {
        let first = job / sharers * comptime!(geometry.padded()) + job % sharers;
        let mut sum = products[first];
        #[unroll]
        for i in 1..comptime!(geometry.channels / geometry.sharers()) {
            sum += products[first + comptime!(i * sharers)];
        }
        partials[job] = sum;
        job += comptime!(geometry.units());
    }
}

/// The rest of those sums, first unit to last, to this cube's parts of the gradients of `b` and `c`.
#[cube]
fn write_parts<V: Size>(
    partials: &Shared<[Vector<f32, V>]>, // [2, tile, groups, sharers]
    grad_bc: &mut Tensor<f32>,           // [2, blocks, batch, chunks * slice_len, d_state]
    place: &Place,
    start: usize,
    slice_len: usize,
    #[comptime] geometry: Geometry,
) {
    let sharers = comptime!(geometry.sharers());
    let groups = comptime!(geometry.groups);
    let d_state = comptime!(geometry.d_state);
    let blocks = grad_bc.shape(1);
    let rows = grad_bc.shape(3);
    let half_len = blocks * grad_bc.shape(2) * rows * d_state;
    let block = CUBE_POS_X as usize * grad_bc.shape(2) + place.batch;
    let first_row = block * rows + place.chunk * slice_len;
    let mut sum = UNIT_POS as usize;
    while sum < comptime!(geometry.sums()) {
        let mut total = partials[sum * sharers];
        #[unroll]
        for i in 1..sharers {
            total += partials[sum * sharers + i];
        }
        let row = sum / groups;
        let half = row / comptime!(geometry.tile);
        let t = start + row % comptime!(geometry.tile);
        let first = sum % groups * comptime!(geometry.width);
        let target = half * half_len + (first_row + (t - place.begin)) * d_state + first;
        #[unroll]
        for component in 0..comptime!(geometry.width) {
            if t < place.end && first + component < d_state {
                grad_bc[target + component] = total.extract(component);
            }
        }
        sum += comptime!(geometry.units());
    }
}
