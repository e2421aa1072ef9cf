//! The scan over one segment of time on plain units, in f32.
//!
//! - A cube owns a slice of a head's channels over a segment of time, which it walks in chunks of 16 or 32 positions; a
//!   unit owns blocks of 4 x 4 of whatever is computed.
//! - A chunk: slices of the states one after the other, each with its columns of `B` and `C`, adds to `C B^T` and `C h`
//!   and updates its states; then decays and masks make `M`, and `y = M x + exp(..) C h + d x`.
//! - The states stay in shared memory, in f32.
//! - Without `y`, only what the segment does to a state of zero: the states and the decay at its end.
//! - No atomics. What another run or a later position holds is skipped, not multiplied by zero: NaN stays where it is.

use cubecl::prelude::*;

use super::geometry::Geometry;
use super::load::{channel_skip, head_skip, place, rows, stage, stage_steps, state_index};
use super::segments::DROPPED;
use super::tile::{Spot, multiply, spot, zero};
use crate::bits::round_all;
use crate::pointwise::exp;

/// Edge of a unit's block.
const BLOCK: usize = 4;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn units_kernel<F: Float, L: Size, O: Size>(
    x: &Tensor<Vector<F, L>>,              // [batch, seq_len, nheads, headdim]
    b: &Tensor<Vector<F, L>>,              // [batch, seq_len, ngroups, d_state]
    c: &Tensor<Vector<F, L>>,              // [batch, seq_len, ngroups, d_state]
    steps: &Tensor<Vector<f32, Const<4>>>, // [batch, nheads, length]
    sums: &Tensor<Vector<f32, Const<4>>>,  // [batch, nheads, length]
    runs: ComptimeOption<&Tensor<Vector<u32, Const<4>>>>, // [batch, length]
    d: ComptimeOption<&Tensor<f32>>,       // [nheads] or [nheads, headdim]
    starts: ComptimeOption<&Tensor<f32>>,  // [batch, segments, nheads, headdim, d_state]
    mut y: ComptimeOption<OwnedTensor<Vector<F, O>>>, // [batch, seq_len, nheads, headdim]
    ends: &mut Tensor<f32>, // [batch, nheads, headdim, d_state], or [batch, segments, ..]
    mut decays: ComptimeOption<OwnedTensor<f32>>, // [batch, segments, nheads]
    mut checkpoints: ComptimeOption<OwnedTensor<f32>>, // [batch, chunks, nheads, headdim, d_state]
    segment_len: u32,
    #[comptime] geometry: Geometry,
    #[comptime] _present: u32,
    #[define(F)] _dtype: ElemType,
) {
    let seq_len = x.shape(1);
    let nheads = x.shape(2);
    let place = place(x, b, segment_len, geometry);
    let chunk = comptime!(geometry.chunk);
    let size = comptime!(geometry.headdim * geometry.d_state);
    let across = comptime!(geometry.channels / BLOCK);

    let input_tile = comptime!(geometry.inputs());
    let projection_tile = comptime!(geometry.projection());
    let state_tile = comptime!(geometry.state());
    let output_form = comptime!(geometry.output_sums());
    let weight_form = comptime!(geometry.weight_sums());
    let state_form = comptime!(geometry.state_sums());
    let weight_pitch = comptime!(geometry.chunk + BLOCK);

    let mut inputs = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(input_tile.vectors()));
    let mut writes =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(projection_tile.vectors()));
    let mut readers =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(projection_tile.vectors()));
    let mut states = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(state_tile.vectors()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(chunk * weight_pitch));
    let mut chunk_steps = Shared::<[f32]>::new_slice(chunk);
    let mut chunk_sums = Shared::<[f32]>::new_slice(chunk);
    let mut chunk_runs = Shared::<[u32]>::new_slice(chunk);

    let mut slot = UNIT_POS as usize;
    while slot < comptime!(geometry.states * across) {
        let mut vector = Vector::<f32, Const<4>>::new(0.0f32);
        #[comptime]
        if let ComptimeOption::Some(starts) = starts {
            let index = (place.batch * starts.shape(1) + place.segment) * nheads + place.head;
            #[unroll]
            for j in 0..BLOCK {
                let spot = state_spot(slot, j, geometry);
                let (index, inside) = state_index(index * size, &spot, &place, geometry);
                vector.insert(j, select(inside, starts[select(inside, index, 0)], 0.0f32));
            }
        }
        states[slot / across * comptime!(state_tile.pitch()) + slot % across] = vector;
        slot += comptime!(geometry.units);
    }

    let skip = head_skip(d, &place, geometry);
    // What the segment does to the states before it.
    let mut elapsed = 0.0f32;
    let mut dropped = false.runtime();

    let chunks = (place.end - place.begin).div_ceil(chunk);
    for index in 0..chunks {
        let start = place.begin + index * chunk;
        // The units are done with the chunk before.
        sync_cube();
        let channels = comptime!(geometry.headdim) - place.channel;
        let first = place.head * comptime!(geometry.headdim) + place.channel;
        let from = rows(x, &place, start, first, channels);
        stage(x, &from, &mut inputs, 0usize, input_tile, geometry);
        let row = (place.batch * nheads + place.head) * steps.shape(2);
        stage_steps(steps, row, start, &mut chunk_steps, 0usize, geometry);
        stage_steps(sums, row, start, &mut chunk_sums, 0usize, geometry);
        #[comptime]
        if let ComptimeOption::Some(runs) = runs {
            let row = place.batch * runs.shape(1);
            stage_steps(runs, row, start, &mut chunk_runs, 0usize, geometry);
        }
        #[comptime]
        if let ComptimeOption::Some(checkpoints) = &mut checkpoints {
            if start % comptime!(geometry.interval) == 0 {
                let interval =
                    place.batch * checkpoints.shape(1) + start / comptime!(geometry.interval);
                let base = (interval * nheads + place.head) * size;
                let mut slot = UNIT_POS as usize;
                while slot < comptime!(geometry.states * across) {
                    let vector =
                        states[slot / across * comptime!(state_tile.pitch()) + slot % across];
                    #[unroll]
                    for j in 0..BLOCK {
                        let spot = state_spot(slot, j, geometry);
                        let (index, inside) = state_index(base, &spot, &place, geometry);
                        if inside {
                            checkpoints[index] = vector.extract(j);
                        }
                    }
                    slot += comptime!(geometry.units);
                }
            }
        }
        sync_cube();

        let total = chunk_sums[comptime!(chunk - 1)];
        let mut run = 0u32;
        if comptime!(runs.is_some()) {
            run = chunk_runs[comptime!(chunk - 1)];
            if run > 0 {
                dropped = true.runtime();
            }
        }
        elapsed += total;
        let kept = exp(total, geometry.ptx);
        // The first position of the run that the chunk ends in.
        let last_run = select(run > 0, run, 1u32) as usize - 1;

        let mut sums_of_weights = Array::<f32>::new(comptime!(weight_form.values()));
        let mut outputs = Array::<f32>::new(comptime!(output_form.values()));
        zero(&mut sums_of_weights, weight_form);
        zero(&mut outputs, output_form);
        for slice in 0..comptime!(geometry.states / geometry.slice) {
            let first = slice * comptime!(geometry.slice);
            let d_state = comptime!(geometry.d_state).runtime();
            let group = place.group * d_state;
            let written = rows(b, &place, start, group + first, d_state - first);
            stage(b, &written, &mut writes, 0usize, projection_tile, geometry);
            if comptime!(y.is_some()) {
                let read = rows(c, &place, start, group + first, d_state - first);
                stage(c, &read, &mut readers, 0usize, projection_tile, geometry);
            }
            sync_cube();
            if comptime!(y.is_some()) {
                multiply(
                    &readers,
                    0usize,
                    &writes,
                    0usize,
                    &mut sums_of_weights,
                    geometry.slice,
                    comptime!([projection_tile.along(), projection_tile.along()]),
                    weight_form,
                );
                multiply(
                    &readers,
                    0usize,
                    &states,
                    first * comptime!(state_tile.pitch()),
                    &mut outputs,
                    geometry.slice,
                    comptime!([projection_tile.along(), state_tile.across()]),
                    output_form,
                );
                // All units have read the states.
                sync_cube();
            }
            #[unroll]
            for block in 0..comptime!(state_form.values() / (BLOCK * BLOCK)) {
                let spot = spot(comptime!(block * BLOCK * BLOCK), state_form);
                let at = (first + spot.row) * comptime!(state_tile.pitch()) + spot.column / BLOCK;
                let mut state = Array::<Vector<f32, Const<4>>>::new(BLOCK);
                #[unroll]
                for i in 0..BLOCK {
                    let before = states[at + comptime!(i * state_tile.pitch())];
                    let zero = Vector::<f32, Const<4>>::new(0.0f32);
                    state[i] = select(run == 0, Vector::new(kept) * before, zero);
                }
                for s in last_run..chunk {
                    let left = exp(total - chunk_sums[s], geometry.ptx) * chunk_steps[s];
                    let input = inputs[s * comptime!(input_tile.pitch()) + spot.column / BLOCK]
                        * Vector::new(left);
                    let write = writes[s * comptime!(projection_tile.pitch()) + spot.row / BLOCK];
                    #[unroll]
                    for i in 0..BLOCK {
                        state[i] += Vector::new(write.extract(i)) * input;
                    }
                }
                if spot.owned {
                    #[unroll]
                    for i in 0..BLOCK {
                        states[at + comptime!(i * state_tile.pitch())] = state[i];
                    }
                }
            }
            // The next slice takes the projections' memory.
            sync_cube();
        }

        #[comptime]
        if let ComptimeOption::Some(y) = &mut y {
            #[unroll]
            for i in 0..comptime!(weight_form.values()) {
                let spot = spot(i, weight_form);
                let since = exp(chunk_sums[spot.row] - chunk_sums[spot.column], geometry.ptx);
                let mut seen = spot.column <= spot.row;
                if comptime!(runs.is_some()) {
                    seen = seen && spot.column as u32 + 1 >= chunk_runs[spot.row];
                }
                let value = sums_of_weights[i] * since * chunk_steps[spot.column];
                if spot.owned {
                    weights[spot.row * weight_pitch + spot.column] = select(seen, value, 0.0f32);
                }
            }
            sync_cube();
            #[unroll]
            for block in 0..comptime!(output_form.values() / (BLOCK * BLOCK)) {
                let spot = spot(comptime!(block * BLOCK * BLOCK), output_form);
                let mut output = Array::<Vector<f32, Const<4>>>::new(BLOCK);
                let mut begins = Array::<u32>::new(BLOCK);
                #[unroll]
                for i in 0..BLOCK {
                    let row = spot.row + i;
                    let carried = exp(chunk_sums[row], geometry.ptx);
                    let mut begin = 0u32;
                    if comptime!(runs.is_some()) {
                        begin = chunk_runs[row];
                    }
                    let mut vector = Vector::<f32, Const<4>>::empty();
                    #[unroll]
                    for j in 0..BLOCK {
                        let read = outputs[comptime!((block * BLOCK + i) * BLOCK + j)];
                        vector.insert(j, select(begin == 0, carried * read, 0.0f32));
                    }
                    output[i] = vector;
                    begins[i] = begin;
                }
                let first = select(begins[0] > 0, begins[0], 1u32) as usize - 1;
                for s in first..spot.row + BLOCK {
                    let input = inputs[s * comptime!(input_tile.pitch()) + spot.column / BLOCK];
                    #[unroll]
                    for i in 0..BLOCK {
                        let row = spot.row + i;
                        let seen = s <= row && s as u32 + 1 >= begins[i];
                        let weight = Vector::new(weights[row * weight_pitch + s]);
                        let zero = Vector::<f32, Const<4>>::new(0.0f32);
                        output[i] += select(seen, weight * input, zero);
                    }
                }
                #[unroll]
                for i in 0..BLOCK {
                    let row = spot.row + i;
                    let input = inputs[row * comptime!(input_tile.pitch()) + spot.column / BLOCK];
                    let t = start + row;
                    let channel = place.channel + spot.column;
                    let base = ((place.batch * seq_len + t) * nheads + place.head)
                        * comptime!(geometry.headdim)
                        + channel;
                    let width = comptime!(geometry.out_width);
                    #[unroll]
                    for part in 0..comptime!(BLOCK / width) {
                        let first = comptime!(part * width);
                        let mut out = Vector::<f32, O>::empty();
                        #[unroll]
                        for low in 0..width {
                            let mut value = output[i].extract(comptime!(first + low));
                            if comptime!(d.is_some()) {
                                let channel = channel + comptime!(first + low);
                                let weight = channel_skip(d, skip, &place, channel, geometry);
                                value += weight * input.extract(comptime!(first + low));
                            }
                            out.insert(low, value);
                        }
                        let inside = channel + first < comptime!(geometry.headdim);
                        if spot.owned && t < place.end && inside {
                            y[(base + first) / width] = round_all(out);
                        }
                    }
                }
            }
        }
    }

    let mut segment = 0usize.runtime();
    let mut segments = 1usize.runtime();
    #[comptime]
    if let ComptimeOption::Some(decays) = &mut decays {
        segment = place.segment;
        segments = decays.shape(1);
        if UNIT_POS == 0 && place.channel == 0 {
            let decay = select(dropped, DROPPED, exp(elapsed, geometry.ptx));
            decays[(place.batch * segments + segment) * nheads + place.head] = decay;
        }
    }
    if comptime!(decays.is_some()) || place.end == seq_len {
        // The states of the last chunk.
        sync_cube();
        let base = ((place.batch * segments + segment) * nheads + place.head) * size;
        let mut slot = UNIT_POS as usize;
        while slot < comptime!(geometry.states * across) {
            let vector = states[slot / across * comptime!(state_tile.pitch()) + slot % across];
            #[unroll]
            for j in 0..BLOCK {
                let spot = state_spot(slot, j, geometry);
                let (index, inside) = state_index(base, &spot, &place, geometry);
                if inside {
                    ends[index] = vector.extract(j);
                }
            }
            slot += comptime!(geometry.units);
        }
    }
}

/// Where value `j` of vector `slot` of the states belongs.
#[cube]
fn state_spot(slot: usize, #[comptime] j: usize, #[comptime] geometry: Geometry) -> Spot {
    let across = comptime!(geometry.channels / BLOCK);
    Spot {
        row: slot / across,
        column: slot % across * BLOCK + j,
        owned: true.runtime(),
    }
}
