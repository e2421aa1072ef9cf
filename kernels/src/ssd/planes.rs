//! The scan over one segment of time on tensor cores.
//!
//! - A cube owns up to 64 channels of a head, over a segment of time, which it walks in chunks of up to 64 positions; a
//!   plane owns 16 positions of a chunk and a share of the states.
//! - The next chunk's `x`, `B`, `C` and steps are on their way to shared memory while a chunk is computed.
//! - A chunk: `C B^T` and `C h` from the same fragments of `C`; decays and masks on the sums in registers, which are
//!   then the left factor of the next product; `M x` and the states' update from the same fragments of `x`.
//! - The states stay in registers in f32, and lie in shared memory in the sequences' type as a factor.
//! - Without `y`, only what the segment does to a state of zero: the states and the decay at its end.
//! - No atomics. Memory: `x` read once, `y` written once, `B` and `C` once a head and slice of channels, mostly from the
//!   second-level cache.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::geometry::Geometry;
use super::load::{Place, channel_skip, head_skip, place, state_index};
use super::repair::repair;
use super::segments::DROPPED;
use super::stages::{Stage, Staged, fetch, stage_of, staged, step_value};
use super::tile::{
    EDGE, PLANE, add_products, left_fragment, right_fragments, rounded_fragment, spot, store, zero,
};
use crate::bits::round_all;
use crate::pointwise::exp;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn planes_kernel<F: Float, L: Size, O: Size>(
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
    let lane = UNIT_POS as usize % PLANE;

    let input_tile = comptime!(geometry.inputs());
    let projection_tile = comptime!(geometry.projection());
    let state_tile = comptime!(geometry.state());
    let output_form = comptime!(geometry.output_sums());
    let weight_form = comptime!(geometry.weight_sums());
    let state_form = comptime!(geometry.state_sums());

    let mut staged = staged::<F>(geometry);
    let landed = Barrier::shared(CUBE_DIM, UNIT_POS == 0);

    let skip = head_skip(d, &place, geometry);
    let mut state = Array::<f32>::new(comptime!(state_form.values()));
    zero(&mut state, state_form);
    #[comptime]
    if let ComptimeOption::Some(starts) = starts {
        let index = (place.batch * starts.shape(1) + place.segment) * nheads + place.head;
        let base = index * comptime!(geometry.headdim * geometry.d_state);
        #[unroll]
        for i in 0..comptime!(state_form.values()) {
            let (index, inside) = state_index(base, &spot(i, state_form), &place, geometry);
            state[i] = select(inside, starts[select(inside, index, base)], 0.0f32);
        }
    }
    if comptime!(y.is_some()) {
        store(&state, &mut staged.states, 0usize, state_tile, state_form);
    }

    // What the segment does to the states before it.
    let mut elapsed = 0.0f32;
    let mut dropped = false.runtime();

    let chunks = (place.end - place.begin).div_ceil(chunk);
    for ahead in 0..chunks + 1 {
        // A chunk late: the loads of chunk `ahead` are issued before chunk `ahead - 1` is computed.
        if ahead > 0 {
            landed.wait_parity((ahead as u32 - 1) % 2);
        }
        // All units are done with the chunk before, whose memory the next loads take.
        sync_cube();
        if ahead < chunks {
            let start = place.begin + ahead * chunk;
            let stage = stage_of(ahead, geometry);
            let reads = comptime!(y.is_some());
            fetch(
                &mut staged,
                &stage,
                x,
                b,
                c,
                steps,
                sums,
                runs,
                &place,
                start,
                reads,
                geometry,
            );
            landed.commit_copy_async();
            landed.arrive();
        }
        if ahead > 0 {
            let start = place.begin + (ahead - 1) * chunk;
            let stage = stage_of(ahead - 1, geometry);
            let step_at = stage.steps;
            let last = step_at + chunk - 1;
            #[comptime]
            if let ComptimeOption::Some(checkpoints) = &mut checkpoints {
                if start % comptime!(geometry.interval) == 0 {
                    let interval =
                        place.batch * checkpoints.shape(1) + start / comptime!(geometry.interval);
                    let base = (interval * nheads + place.head)
                        * comptime!(geometry.headdim * geometry.d_state);
                    #[unroll]
                    for i in 0..comptime!(state_form.values()) {
                        let (index, inside) =
                            state_index(base, &spot(i, state_form), &place, geometry);
                        if inside {
                            checkpoints[index] = state[i];
                        }
                    }
                }
            }

            // The plane's rows of M, and of y.
            let mut weights = Array::<f32>::new(comptime!(weight_form.values()));
            let mut outputs = Array::<f32>::new(comptime!(output_form.values()));
            zero(&mut weights, weight_form);
            zero(&mut outputs, output_form);
            if comptime!(y.is_some()) {
                #[unroll]
                for step in 0..comptime!(geometry.states / EDGE) {
                    let left = left_fragment(
                        &staged.readers,
                        stage.projections,
                        0usize,
                        step,
                        projection_tile.along(),
                        weight_form,
                    );
                    #[unroll]
                    for pair in 0..comptime!(weight_form.across() / 2) {
                        let right = right_fragments(
                            &staged.writes,
                            stage.projections,
                            pair,
                            step,
                            projection_tile.along(),
                            weight_form,
                        );
                        add_products(&left, &right, &mut weights, comptime!(pair * 8));
                    }
                    #[unroll]
                    for pair in 0..comptime!(output_form.across() / 2) {
                        let right = right_fragments(
                            &staged.states,
                            0usize,
                            pair,
                            step,
                            state_tile.across(),
                            output_form,
                        );
                        add_products(&left, &right, &mut outputs, comptime!(pair * 8));
                    }
                }
                // Rows `lane / 4` and 8 below it.
                #[unroll]
                for half in 0..2usize {
                    let row = spot(comptime!(2 * half), weight_form).row;
                    let sum = step_value(&staged.sums, step_at + row);
                    let mut run = 0u32;
                    if comptime!(runs.is_some()) {
                        run = step_value(&staged.runs, step_at + row);
                    }
                    let carried = exp(sum, geometry.ptx);
                    #[unroll]
                    for i in 0..comptime!(output_form.values() / 4) {
                        #[unroll]
                        for low in 0..2usize {
                            let slot = comptime!(4 * i + 2 * half + low);
                            let value = carried * outputs[slot];
                            outputs[slot] = select(run == 0, value, 0.0f32);
                        }
                    }
                    #[unroll]
                    for i in 0..comptime!(weight_form.values() / 4) {
                        #[unroll]
                        for low in 0..2usize {
                            let slot = comptime!(4 * i + 2 * half + low);
                            let column = lane % 4 * 2 + comptime!(8 * i + low);
                            let since = exp(
                                sum - step_value(&staged.sums, step_at + column),
                                geometry.ptx,
                            );
                            let value =
                                weights[slot] * since * step_value(&staged.steps, step_at + column);
                            let seen = column <= row && column as u32 + 1 >= run;
                            weights[slot] = select(seen, value, 0.0f32);
                        }
                    }
                }
            }

            let total = step_value(&staged.sums, last);
            let mut run = 0u32;
            if comptime!(runs.is_some()) {
                run = step_value(&staged.runs, last);
                if run > 0 {
                    dropped = true.runtime();
                }
            }
            elapsed += total;
            let kept = exp(total, geometry.ptx);
            #[unroll]
            for i in 0..comptime!(state_form.values()) {
                state[i] = select(run == 0, kept * state[i], 0.0f32);
            }
            #[unroll]
            for step in 0..comptime!(chunk / EDGE) {
                // How much of an input is left at the chunk's end: of the four that the unit's fragments hold.
                let mut scales = Array::<f32>::new(4usize);
                #[unroll]
                for i in 0..4usize {
                    let row = lane % 4 * 2 + comptime!(step * EDGE + i / 2 * 8 + i % 2);
                    let left = exp(
                        total - step_value(&staged.sums, step_at + row),
                        geometry.ptx,
                    );
                    let value = left * step_value(&staged.steps, step_at + row);
                    scales[i] = select(row as u32 + 1 >= run, value, 0.0f32);
                }
                let mut written =
                    Array::<Vector<F, Const<2>>>::new(comptime!(4 * state_form.down()));
                #[unroll]
                for down in 0..comptime!(state_form.down()) {
                    let plain = left_fragment(
                        &staged.writes,
                        stage.projections,
                        down,
                        step,
                        projection_tile.across(),
                        state_form,
                    );
                    #[unroll]
                    for i in 0..4usize {
                        let mut pair = Vector::<f32, Const<2>>::cast_from(plain[i]);
                        #[unroll]
                        for low in 0..2usize {
                            let scale = scales[comptime!(i / 2 * 2 + low)];
                            // Zero times NaN would not do.
                            let value = select(scale == 0.0f32, 0.0f32, scale * pair.extract(low));
                            pair.insert(low, value);
                        }
                        written[comptime!(4 * down + i)] = round_all(pair);
                    }
                }
                let weight = rounded_fragment::<F>(&weights, step);
                #[unroll]
                for pair in 0..comptime!(output_form.across() / 2) {
                    let right = right_fragments(
                        &staged.inputs,
                        stage.inputs,
                        pair,
                        step,
                        input_tile.across(),
                        output_form,
                    );
                    if comptime!(y.is_some()) {
                        add_products(&weight, &right, &mut outputs, comptime!(pair * 8));
                    }
                    let right = if comptime!(runs.is_some()) {
                        kept_inputs::<F>(&right, &scales)
                    } else {
                        right
                    };
                    #[unroll]
                    for down in 0..comptime!(state_form.down()) {
                        let mut left = Array::<Vector<F, Const<2>>>::new(4usize);
                        #[unroll]
                        for i in 0..4usize {
                            left[i] = written[comptime!(4 * down + i)];
                        }
                        let to = comptime!((down * state_form.across() + 2 * pair) * 4);
                        add_products(&left, &right, &mut state, to);
                    }
                }
            }

            #[comptime]
            if let ComptimeOption::Some(y) = &mut y {
                // Weights of zero do not keep NaN and infinities of later positions and other runs out.
                let mut magnitude = 0.0f32;
                #[unroll]
                for i in 0..comptime!(output_form.values()) {
                    magnitude += outputs[i].abs();
                }
                let finite = magnitude <= f32::MAX;
                if plane_any(!finite) {
                    repair::<F>(&staged, &stage, &mut outputs, runs.is_some(), geometry);
                }
                write_outputs::<F, O>(
                    y, &staged, &stage, &outputs, d, skip, &place, start, geometry,
                );
                // All planes have read the states.
                sync_cube();
                store(&state, &mut staged.states, 0usize, state_tile, state_form);
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
        let index = (place.batch * segments + segment) * nheads + place.head;
        let base = index * comptime!(geometry.headdim * geometry.d_state);
        #[unroll]
        for i in 0..comptime!(state_form.values()) {
            let (index, inside) = state_index(base, &spot(i, state_form), &place, geometry);
            if inside {
                ends[index] = state[i];
            }
        }
    }
}

/// Writes a chunk's outputs, with the skip.
#[cube]
fn write_outputs<F: Float, O: Size>(
    y: &mut Tensor<Vector<F, O>>, // [batch, seq_len, nheads, headdim]
    staged: &Staged<F>,
    stage: &Stage,
    outputs: &Array<f32>,
    d: ComptimeOption<&Tensor<f32>>, // [nheads] or [nheads, headdim]
    skip: f32,
    place: &Place,
    start: usize,
    #[comptime] geometry: Geometry,
) {
    let form = comptime!(geometry.output_sums());
    let width = comptime!(geometry.out_width);
    let headdim = comptime!(geometry.headdim);
    let pairs = staged.inputs.with_vector_size::<Const<2>>();
    let origin = spot(0usize, form);
    let channel = place.channel + origin.column;
    // Rows `lane / 4` and 8 below it: a branch each.
    #[unroll]
    for half in 0..2usize {
        let row = origin.row + comptime!(8 * half);
        let t = start + row;
        if t < place.end {
            let base =
                ((place.batch * y.shape(1) + t) * y.shape(2) + place.head) * headdim + channel;
            let input_at =
                (stage.inputs + row * comptime!(geometry.inputs().pitch())) * 4 + origin.column / 2;
            #[unroll]
            for i in 0..comptime!(form.values() / 4) {
                let input = Vector::<f32, Const<2>>::cast_from(pairs[input_at + comptime!(4 * i)]);
                #[unroll]
                for part in 0..comptime!(2 / width) {
                    let first = comptime!(8 * i + part * width);
                    let mut out = Vector::<f32, O>::empty();
                    #[unroll]
                    for low in 0..width {
                        let j = comptime!(part * width + low);
                        let mut value = outputs[comptime!(4 * i + 2 * half + j)];
                        if comptime!(d.is_some()) {
                            let own = channel + comptime!(8 * i + j);
                            let weight = channel_skip(d, skip, place, own, geometry);
                            value += weight * input.extract(j);
                        }
                        out.insert(low, value);
                    }
                    if comptime!(geometry.headdim.is_multiple_of(geometry.channels)) {
                        y[(base + first) / width] = round_all(out);
                    } else if channel + first < headdim {
                        y[(base + first) / width] = round_all(out);
                    }
                }
            }
        }
    }
}

/// Right fragments of the inputs, without those of which nothing is left: zero times NaN would not do.
#[cube]
fn kept_inputs<F: Float>(
    inputs: &Array<Vector<F, Const<2>>>,
    scales: &Array<f32>,
) -> Array<Vector<F, Const<2>>> {
    let mut kept = Array::<Vector<F, Const<2>>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        let mut pair = inputs[i];
        #[unroll]
        for low in 0..2usize {
            let gone = scales[comptime!(i % 2 * 2 + low)] == 0.0f32;
            pair.insert(low, select(gone, F::new(0.0), pair.extract(low)));
        }
        kept[i] = pair;
    }
    kept
}
