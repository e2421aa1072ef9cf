//! The gradients of a tile of positions, for some heads of a group.
//!
//! ```text
//! M_ts  = (C_t . B_s) exp(sums_t - sums_s)  for s <= t of the same run     X_s = dt_s x_s
//! gX_s  = sum_t M_ts gy_t + w_s g B_s       gx_s = dt_s gX_s + d gy_s
//! gG_ts = (gy_t . X_s) exp(sums_t - sums_s) R_ts = gG_ts (C_t . B_s)       s < t alone
//! gC_t  = sum_s gG_ts B_s + e_t h^T gy_t    gB_s = sum_t gG_ts C_t + w_s g^T X_s
//! ```
//!
//! with `h` the state before the tile, `g` the gradient of the state after it, `e` what is left of `h` at a position and
//! `w` what is left of a position's write at the tile's end.
//!
//! - A cube owns a tile and a part of a group's heads, one after the other. `C B^T` is computed once; the gradients of
//!   `b` and `c` and the sum of `gG` over heads stay in registers, so that what would be two products a head is two a
//!   cube.
//! - `h` comes from the checkpoint before the tile's interval and the positions between, `g` from the gradient of the
//!   state after the interval and the positions between: neither is stored for every tile.
//! - What the exponents' gradients are made of is left as sums over rows and columns, three values a position and head,
//!   for `steps.rs`. The diagonal of `R` is in none of them: it would have to cancel.
//! - Sums over units go through shared memory in a fixed order; no atomics.
//! - NaN: what is masked is selected, not multiplied. Where runs end inside a tile, values that are not finite are
//!   zeros in the tiles whose products cross runs, and mark their positions instead.

use cubecl::prelude::*;

use super::super::tile::{multiply, spot, store, zero};
use super::load::{
    Edge, Rows, Staging, channel_rows, edge, head, read_state, stage, state_rows, value_at,
};
use super::others::{Span, add_others, stage_projections, stage_rows, weigh};
use super::plan::Plan;
use super::reduce::{
    add_to_columns, add_to_rows, spot_from, sum_slots, write_columns, write_rows, write_total,
    zeros,
};
use super::states::add_outer_products;
use crate::pointwise::exp;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn gradients_kernel<F: Float, E: Float, O: Float, L: Size, V: Size, W: Size>(
    x: &Tensor<Vector<F, L>>,             // [batch, seq_len, nheads, headdim]
    b: &Tensor<Vector<F, L>>,             // [batch, seq_len, ngroups, d_state]
    c: &Tensor<Vector<F, L>>,             // [batch, seq_len, ngroups, d_state]
    grad_y: &Tensor<Vector<F, L>>,        // [batch, seq_len, nheads, headdim]
    dt: &Tensor<f32>,                     // [batch, nheads, length]
    sums: &Tensor<f32>,                   // [batch, nheads, length]
    runs: &Tensor<u32>,                   // [batch, length], unread without `seq_idx`
    d: ComptimeOption<&Tensor<f32>>,      // [nheads] or [nheads, headdim]
    checkpoints: &Tensor<Vector<f32, W>>, // [batch, intervals, nheads, headdim, d_state]
    grad_states: &Tensor<Vector<f32, W>>, // the same shape, of the states after
    grad_x: &mut Tensor<Vector<F, W>>,    // [batch, seq_len, nheads, headdim]
    grad_b: &mut Tensor<Vector<O, W>>,    // [parts, batch, seq_len, ngroups, d_state]
    grad_c: &mut Tensor<Vector<O, W>>,    // [parts, batch, seq_len, ngroups, d_state]
    grad_steps: &mut Tensor<f32>,         // [3, batch, seq_len, nheads]
    mut grad_d: ComptimeOption<OwnedTensor<f32>>, // [batch, tiles, nheads] or [.., nheads, headdim]
    heads_a_part: u32,
    #[comptime] plan: Plan,
    #[define(F, E, O)] _dtypes: [ElemType; 3],
) {
    let batches = x.shape(0);
    let seq_len = x.shape(1);
    let nheads = x.shape(2);
    let ngroups = b.shape(2);
    let batch = CUBE_POS_Y as usize;
    let positions = comptime!(plan.positions);
    let interval = CUBE_POS_X as usize / comptime!(plan.tiles());
    let first = interval * comptime!(plan.interval);
    let last = first + comptime!(plan.interval);
    let last = select(last < seq_len, last, seq_len);
    let start = first + CUBE_POS_X as usize % comptime!(plan.tiles()) * positions;
    let stop = select(start + positions < last, start + positions, last);
    let heads_a_part = heads_a_part as usize;
    let parts = (heads_a_part + comptime!(plan.heads_a_group - 1)) / heads_a_part;
    let group = CUBE_POS_Z as usize / parts;
    let part = CUBE_POS_Z as usize % parts;
    let heads = comptime!(plan.heads_a_group) - part * heads_a_part;
    let heads = select(heads < heads_a_part, heads, heads_a_part);
    let first_head = group * comptime!(plan.heads_a_group) + part * heads_a_part;

    let input_tile = comptime!(plan.inputs());
    let projection_tile = comptime!(plan.projection());
    let state_tile = comptime!(plan.state());
    let weight_tile = comptime!(plan.weights());
    let input_form = comptime!(plan.input_sums());
    let projection_form = comptime!(plan.projection_sums());
    let state_form = comptime!(plan.state_sums());
    let weight_form = comptime!(plan.weight_sums());
    let mut inputs =
        Shared::<[Vector<E, V>]>::new_aligned_slice(comptime!(input_tile.vectors()), 16usize);
    let mut grads =
        Shared::<[Vector<E, V>]>::new_aligned_slice(comptime!(input_tile.vectors()), 16usize);
    let mut other_rows = Shared::<[Vector<E, V>]>::new_aligned_slice(
        comptime!(plan.others() * input_tile.vectors()),
        16usize,
    );
    let mut writes =
        Shared::<[Vector<E, V>]>::new_aligned_slice(comptime!(projection_tile.vectors()), 16usize);
    let mut readers =
        Shared::<[Vector<E, V>]>::new_aligned_slice(comptime!(projection_tile.vectors()), 16usize);
    let mut other_states = Shared::<[Vector<E, V>]>::new_aligned_slice(
        comptime!(plan.others() * projection_tile.vectors()),
        16usize,
    );
    let mut states =
        Shared::<[Vector<E, V>]>::new_aligned_slice(comptime!(state_tile.vectors()), 16usize);
    let mut weights =
        Shared::<[Vector<E, V>]>::new_aligned_slice(comptime!(weight_tile.vectors()), 16usize);
    let mut other_weights = Shared::<[f32]>::new_slice(comptime!(plan.weighted()));
    let mut other_flaws = Shared::<[f32]>::new_slice(comptime!(plan.weighted()));
    let mut tile_steps = Shared::<[f32]>::new_slice(positions);
    let mut tile_sums = Shared::<[f32]>::new_slice(positions);
    let mut tile_runs = Shared::<[u32]>::new_slice(positions);
    // What is left of the state before, and of a write at the end.
    let mut kept = Shared::<[f32]>::new_slice(positions);
    let mut passed = Shared::<[f32]>::new_slice(positions);
    // NaN where a projection or `grad_y` is not finite, else 0.
    let mut flaws = Shared::<[f32]>::new_slice(positions);
    let mut faults = Shared::<[f32]>::new_slice(positions);
    let mut slots = Shared::<[f32]>::new_slice(comptime!(plan.part_values()));
    let read_at = 0usize;
    let write_at = comptime!(positions * projection_form.row_slots());
    let input_at = comptime!(write_at + positions * input_form.row_slots());
    let row_at = comptime!(input_at + positions * input_form.row_slots());
    let column_at = comptime!(row_at + positions * weight_form.row_slots());
    let skip_at = comptime!(column_at + positions * weight_form.column_slots());
    let total_at = comptime!(skip_at + plan.channels * input_form.column_slots());

    let input_origin = spot(0usize, input_form);
    let projection_origin = spot(0usize, projection_form);
    let state_origin = spot(0usize, state_form);
    let weight_origin = spot(0usize, weight_form);

    let projection_values = comptime!(projection_form.values());
    let mut sums_b = Array::<f32>::new(comptime!(plan.slices() * projection_values));
    let mut sums_c = Array::<f32>::new(comptime!(plan.slices() * projection_values));
    zeros(&mut sums_b, comptime!(plan.slices() * projection_values));
    zeros(&mut sums_c, comptime!(plan.slices() * projection_values));
    // C B^T, and the sum of its gradients over the heads.
    let mut scores = Array::<f32>::new(comptime!(weight_form.values()));
    let mut grad_scores = Array::<f32>::new(comptime!(weight_form.values()));
    zero(&mut scores, weight_form);
    zero(&mut grad_scores, weight_form);

    let mut row = UNIT_POS as usize;
    while row < positions {
        flaws[row] = 0.0f32;
        row += comptime!(plan.units);
    }
    let mut row = UNIT_POS as usize;
    while row < comptime!(plan.weighted()) {
        other_flaws[row] = 0.0f32;
        row += comptime!(plan.units);
    }
    let span = Span {
        first,
        last,
        start,
        stop,
    };
    let guarded = comptime!(match plan.resettable {
        true => Staging::Marked,
        false => Staging::Plain,
    });
    #[unroll]
    for slice in 0..comptime!(plan.slices()) {
        sync_cube();
        let from = state_rows(batch, group, start, stop, slice, plan);
        stage::<F, L, E, V>(
            b,
            &from,
            &mut writes,
            0usize,
            &mut flaws,
            0usize,
            guarded,
            projection_tile,
            plan,
        );
        stage::<F, L, E, V>(
            c,
            &from,
            &mut readers,
            0usize,
            &mut flaws,
            0usize,
            guarded,
            projection_tile,
            plan,
        );
        sync_cube();
        multiply::<E, V>(
            &readers,
            0usize,
            &writes,
            0usize,
            &mut scores,
            comptime!(plan.slice),
            comptime!([projection_tile.along(), projection_tile.along()]),
            weight_form,
        );
    }

    if comptime!(plan.resident) {
        stage_projections::<F, L, E, V>(
            b,
            c,
            &mut other_states,
            &mut other_flaws,
            batch,
            group,
            &span,
            guarded,
            plan,
        );
    }

    for index in 0..heads {
        let head = head(batch, first_head + index, nheads, dt.shape(2), plan);
        // The edges of the tile and its interval's end, as decays are counted.
        let mut before = Edge {
            sum: 0.0f32.runtime(),
            run: 0u32.runtime(),
        };
        if start > first {
            let edge = edge(sums, runs, &head, start - 1, plan);
            before.sum = edge.sum;
            before.run = edge.run;
        }
        let after = edge(sums, runs, &head, stop - 1, plan);
        let end = edge(sums, runs, &head, last - 1, plan);

        // The units are done with the head before.
        sync_cube();
        let mut row = UNIT_POS as usize;
        while row < positions {
            let inside = start + row < stop;
            let t = select(inside, start + row, stop - 1);
            let here = edge(sums, runs, &head, t, plan);
            tile_steps[row] = select(inside, dt[head.steps + t], 0.0f32);
            tile_sums[row] = here.sum;
            if comptime!(plan.resettable) {
                tile_runs[row] = here.run;
            }
            let left = exp(here.sum - before.sum, plan.ptx);
            kept[row] = select(inside && here.run == before.run, left, 0.0f32);
            let left = exp(after.sum - here.sum, plan.ptx);
            passed[row] = select(inside && here.run == after.run, left, 0.0f32);
            faults[row] = 0.0f32;
            row += comptime!(plan.units);
        }
        if comptime!(plan.resident) {
            weigh(
                dt,
                sums,
                runs,
                &other_flaws,
                &mut other_weights,
                &head,
                &span,
                &before,
                &after,
                plan,
            );
        }

        let mut read_rows = Array::<f32>::new(comptime!(projection_form.held_rows()));
        let mut write_row_sums = Array::<f32>::new(comptime!(input_form.held_rows()));
        let mut input_rows = Array::<f32>::new(comptime!(input_form.held_rows()));
        zeros(&mut read_rows, comptime!(projection_form.held_rows()));
        zeros(&mut write_row_sums, comptime!(input_form.held_rows()));
        zeros(&mut input_rows, comptime!(input_form.held_rows()));
        let mut state_product = 0.0f32;
        let mut skip_total = 0.0f32;
        // gy . x
        let mut products = Array::<f32>::new(comptime!(weight_form.values()));
        zero(&mut products, weight_form);

        for block in 0..comptime!(plan.blocks()) {
            sync_cube();
            let from = channel_rows(&head, start, stop, block, plan);
            stage::<F, L, E, V>(
                x,
                &from,
                &mut inputs,
                0usize,
                &mut faults,
                0usize,
                Staging::Plain,
                input_tile,
                plan,
            );
            stage::<F, L, E, V>(
                grad_y,
                &from,
                &mut grads,
                0usize,
                &mut faults,
                0usize,
                guarded,
                input_tile,
                plan,
            );
            if comptime!(plan.resident) {
                stage_rows::<F, L, E, V>(
                    x,
                    grad_y,
                    &mut other_rows,
                    &mut other_weights,
                    &head,
                    &span,
                    block,
                    plan,
                );
            }
            // The gradient of the state after the interval, on its way while tiles come in.
            let size = comptime!(plan.headdim * plan.d_state);
            let at = ((batch * checkpoints.shape(1) + interval) * nheads + head.head) * size;
            let end_left = exp(end.sum - after.sum, plan.ptx);
            let end_left = select(end.run == after.run, end_left, 0.0f32);
            let mut state = Array::<f32>::new(comptime!(state_form.values()));
            read_state::<W>(
                grad_states,
                at,
                end_left,
                block,
                0usize,
                &mut state,
                state_form,
                plan,
            );
            sync_cube();
            multiply::<E, V>(
                &grads,
                0usize,
                &inputs,
                0usize,
                &mut products,
                comptime!(plan.channels),
                comptime!([input_tile.along(), input_tile.along()]),
                weight_form,
            );
            // M.
            let mut masked = Array::<f32>::new(comptime!(weight_form.values()));
            #[unroll]
            for i in 0..comptime!(weight_form.values()) {
                let spot = spot_from(&weight_origin, i, weight_form);
                let decay = exp(tile_sums[spot.row] - tile_sums[spot.column], plan.ptx);
                let mut value = scores[i] * decay;
                let mut inside = spot.column <= spot.row && start + spot.row < stop;
                if comptime!(plan.resettable) {
                    inside = inside && tile_runs[spot.row] == tile_runs[spot.column];
                    value += flaws[spot.row] + flaws[spot.column] + faults[spot.row];
                }
                masked[i] = select(inside, value, 0.0f32);
            }
            store::<E, V>(&masked, &mut weights, 0usize, weight_tile, weight_form);

            let mut grad_inputs = Array::<f32>::new(comptime!(input_form.values()));
            zero(&mut grad_inputs, input_form);
            #[unroll]
            for slice in 0..comptime!(plan.slices()) {
                if comptime!(plan.slices() > 1) {
                    sync_cube();
                    let from = state_rows(batch, group, start, stop, slice, plan);
                    stage::<F, L, E, V>(
                        b,
                        &from,
                        &mut writes,
                        0usize,
                        &mut flaws,
                        0usize,
                        guarded,
                        projection_tile,
                        plan,
                    );
                    stage::<F, L, E, V>(
                        c,
                        &from,
                        &mut readers,
                        0usize,
                        &mut flaws,
                        0usize,
                        guarded,
                        projection_tile,
                        plan,
                    );
                }
                // The gradient of the state after the tile.
                if comptime!(slice > 0) {
                    read_state::<W>(
                        grad_states,
                        at,
                        end_left,
                        block,
                        slice,
                        &mut state,
                        state_form,
                        plan,
                    );
                }
                if comptime!(plan.resident) {
                    add_others::<E, V>(&other_rows, &other_states, &mut state, &span, true, plan);
                } else {
                    add_outer_products::<F, L, E, V>(
                        grad_y,
                        c,
                        dt,
                        sums,
                        runs,
                        &mut other_rows,
                        &mut other_states,
                        &mut other_weights,
                        &mut state,
                        &head,
                        stop,
                        last,
                        &after,
                        block,
                        slice,
                        true,
                        plan,
                    );
                }
                sync_cube();
                store::<E, V>(&state, &mut states, 0usize, state_tile, state_form);
                // The state before the interval, on its way while the gradient is used.
                let factor = exp(before.sum, plan.ptx);
                let factor = select(before.run == 0, factor, 0.0f32);
                read_state::<W>(
                    checkpoints,
                    at,
                    factor,
                    block,
                    slice,
                    &mut state,
                    state_form,
                    plan,
                );
                sync_cube();
                multiply::<E, V>(
                    &writes,
                    0usize,
                    &states,
                    0usize,
                    &mut grad_inputs,
                    comptime!(plan.slice),
                    comptime!([projection_tile.along(), state_tile.along()]),
                    input_form,
                );
                let mut crossing = Array::<f32>::new(projection_values);
                zero(&mut crossing, projection_form);
                multiply::<E, V>(
                    &inputs,
                    0usize,
                    &states,
                    0usize,
                    &mut crossing,
                    comptime!(plan.channels),
                    comptime!([input_tile.along(), state_tile.across()]),
                    projection_form,
                );
                #[unroll]
                for i in 0..projection_values {
                    let spot = spot_from(&projection_origin, i, projection_form);
                    let weight = passed[spot.row];
                    let value = crossing[i] * (weight * tile_steps[spot.row]);
                    sums_b[comptime!(slice * projection_values + i)] +=
                        select(weight == 0.0f32, 0.0f32, value);
                }

                // The state before the tile.
                if comptime!(plan.resident) {
                    add_others::<E, V>(&other_rows, &other_states, &mut state, &span, false, plan);
                } else {
                    add_outer_products::<F, L, E, V>(
                        x,
                        b,
                        dt,
                        sums,
                        runs,
                        &mut other_rows,
                        &mut other_states,
                        &mut other_weights,
                        &mut state,
                        &head,
                        first,
                        start,
                        &before,
                        block,
                        slice,
                        false,
                        plan,
                    );
                }
                #[unroll]
                for i in 0..comptime!(state_form.values()) {
                    let spot = spot_from(&state_origin, i, state_form);
                    let product = state[i]
                        * value_at::<E, V>(&states, &state_origin, i, state_tile, state_form);
                    state_product += select(spot.owned, product, 0.0f32);
                }
                sync_cube();
                store::<E, V>(&state, &mut states, 0usize, state_tile, state_form);
                sync_cube();
                zero(&mut crossing, projection_form);
                multiply::<E, V>(
                    &grads,
                    0usize,
                    &states,
                    0usize,
                    &mut crossing,
                    comptime!(plan.channels),
                    comptime!([input_tile.along(), state_tile.across()]),
                    projection_form,
                );
                #[unroll]
                for i in 0..projection_values {
                    let spot = spot_from(&projection_origin, i, projection_form);
                    let left = kept[spot.row];
                    let mut value = crossing[i] * left;
                    if comptime!(plan.resettable) {
                        value += faults[spot.row];
                    }
                    let value = select(left == 0.0f32, 0.0f32, value);
                    sums_c[comptime!(slice * projection_values + i)] += value;
                    crossing[i] = value
                        * value_at::<E, V>(
                            &readers,
                            &projection_origin,
                            i,
                            projection_tile,
                            projection_form,
                        );
                }
                add_to_rows(&crossing, &mut read_rows, projection_form);
            }

            // What the state after takes of a position's input, then what later positions of the tile take.
            let mut terms = Array::<f32>::new(comptime!(input_form.values()));
            #[unroll]
            for i in 0..comptime!(input_form.values()) {
                let spot = spot_from(&input_origin, i, input_form);
                let weight = passed[spot.row];
                let value = select(weight == 0.0f32, 0.0f32, grad_inputs[i] * weight);
                grad_inputs[i] = value;
                let input = value_at::<E, V>(&inputs, &input_origin, i, input_tile, input_form);
                let product = value * input * tile_steps[spot.row];
                terms[i] = select(weight == 0.0f32, 0.0f32, product);
            }
            add_to_rows(&terms, &mut write_row_sums, input_form);
            multiply::<E, V>(
                &weights,
                0usize,
                &grads,
                0usize,
                &mut grad_inputs,
                positions,
                comptime!([weight_tile.across(), input_tile.across()]),
                input_form,
            );
            let mut skips = Array::<f32>::new(comptime!(input_form.values()));
            let pair = comptime!(plan.pair);
            #[unroll]
            for i in 0..comptime!(input_form.values() / plan.pair) {
                let spot = spot_from(&input_origin, comptime!(i * plan.pair), input_form);
                let t = start + spot.row;
                let channel = block * comptime!(plan.channels) + spot.column;
                let exists = t < stop && channel < comptime!(plan.headdim);
                let row = tile_steps[spot.row];
                let mut values = Vector::<F, W>::empty();
                #[unroll]
                for j in 0..pair {
                    let at = comptime!(i * plan.pair + j);
                    let input =
                        value_at::<E, V>(&inputs, &input_origin, at, input_tile, input_form);
                    let grad = value_at::<E, V>(&grads, &input_origin, at, input_tile, input_form);
                    terms[at] = select(exists, input * grad_inputs[at], 0.0f32);
                    skips[at] = input * grad;
                    if comptime!(plan.resettable) {
                        skips[at] += faults[spot.row];
                    }
                    let mut value = row * grad_inputs[at];
                    #[comptime]
                    if let ComptimeOption::Some(d) = d {
                        let skip = if comptime!(plan.skips_channels) {
                            let channel = select(exists, channel + j, 0);
                            d[head.head * comptime!(plan.headdim) + channel]
                        } else {
                            d[head.head]
                        };
                        value += skip * grad;
                    }
                    values.insert(j, F::cast_from(value));
                }
                if spot.owned && exists {
                    let place = (batch * seq_len + t) * nheads + head.head;
                    grad_x[(place * comptime!(plan.headdim) + channel) / pair] = values;
                }
            }
            add_to_rows(&terms, &mut input_rows, input_form);
            #[comptime]
            if let ComptimeOption::Some(grad_d) = &mut grad_d {
                if comptime!(plan.skips_channels) {
                    let mut columns = Array::<f32>::new(comptime!(input_form.held_columns()));
                    zeros(&mut columns, comptime!(input_form.held_columns()));
                    add_to_columns(&skips, &mut columns, input_form);
                    write_columns(&columns, &mut slots, skip_at, input_form);
                    sync_cube();
                    let tile = batch * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
                    let mut column = UNIT_POS as usize;
                    while column < comptime!(plan.channels) {
                        let channel = block * comptime!(plan.channels) + column;
                        if channel < comptime!(plan.headdim) {
                            let sum = sum_slots(
                                &slots,
                                skip_at,
                                column,
                                comptime!(input_form.column_slots()),
                            );
                            let row = (tile * nheads + head.head) * comptime!(plan.headdim);
                            grad_d[row + channel] = sum;
                        }
                        column += comptime!(plan.units);
                    }
                } else {
                    #[unroll]
                    for i in 0..comptime!(input_form.values()) {
                        let spot = spot_from(&input_origin, i, input_form);
                        skip_total += select(spot.owned, skips[i], 0.0f32);
                    }
                }
            }
        }

        // R, and the gradient of C B^T.
        let mut terms = Array::<f32>::new(comptime!(weight_form.values()));
        #[unroll]
        for i in 0..comptime!(weight_form.values()) {
            let spot = spot_from(&weight_origin, i, weight_form);
            let decay = exp(tile_sums[spot.row] - tile_sums[spot.column], plan.ptx);
            let mut value = products[i] * (decay * tile_steps[spot.column]);
            let mut inside = spot.column <= spot.row && start + spot.row < stop;
            if comptime!(plan.resettable) {
                inside = inside && tile_runs[spot.row] == tile_runs[spot.column];
                value += flaws[spot.row] + flaws[spot.column] + faults[spot.row];
            }
            let value = select(inside, value, 0.0f32);
            grad_scores[i] += value;
            let term = select(inside && spot.column < spot.row, value * scores[i], 0.0f32);
            terms[i] = term;
        }
        let mut rows = Array::<f32>::new(comptime!(weight_form.held_rows()));
        zeros(&mut rows, comptime!(weight_form.held_rows()));
        add_to_rows(&terms, &mut rows, weight_form);
        let mut columns = Array::<f32>::new(comptime!(weight_form.held_columns()));
        zeros(&mut columns, comptime!(weight_form.held_columns()));
        add_to_columns(&terms, &mut columns, weight_form);

        write_rows(&read_rows, &mut slots, read_at, projection_form);
        write_rows(&write_row_sums, &mut slots, write_at, input_form);
        write_rows(&input_rows, &mut slots, input_at, input_form);
        write_rows(&rows, &mut slots, row_at, weight_form);
        write_columns(&columns, &mut slots, column_at, weight_form);
        write_total(state_product, &mut slots, total_at, plan.tensor);
        if comptime!(grad_d.is_some() && !plan.skips_channels) {
            let at = comptime!(total_at + plan.totals());
            write_total(skip_total, &mut slots, at, plan.tensor);
        }
        sync_cube();
        let mut row = UNIT_POS as usize;
        while row < positions {
            let t = start + row;
            if t < stop {
                let mut reads =
                    sum_slots(&slots, read_at, row, comptime!(projection_form.row_slots()));
                reads += sum_slots(&slots, row_at, row, comptime!(weight_form.row_slots()));
                let columns = comptime!(weight_form.column_slots());
                reads -= sum_slots(&slots, column_at, row, columns);
                if t == stop - 1 {
                    // The state's own decay, over the whole tile.
                    let total = sum_slots(&slots, total_at, 0usize, comptime!(plan.totals()));
                    let left = kept[row];
                    reads += select(left == 0.0f32, 0.0f32, left * total);
                }
                let inputs = comptime!(input_form.row_slots());
                let place = (batch * seq_len + t) * nheads + head.head;
                let plane = batches * seq_len * nheads;
                grad_steps[place] = reads;
                grad_steps[plane + place] = sum_slots(&slots, write_at, row, inputs);
                grad_steps[2 * plane + place] = sum_slots(&slots, input_at, row, inputs);
            }
            row += comptime!(plan.units);
        }
        #[comptime]
        if let ComptimeOption::Some(grad_d) = &mut grad_d {
            if comptime!(!plan.skips_channels) {
                if UNIT_POS == 0 {
                    let at = comptime!(total_at + plan.totals());
                    let tile = batch * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
                    let total = sum_slots(&slots, at, 0usize, comptime!(plan.totals()));
                    grad_d[tile * nheads + head.head] = total;
                }
            }
        }
    }

    sync_cube();
    store::<E, V>(&grad_scores, &mut weights, 0usize, weight_tile, weight_form);
    #[unroll]
    for slice in 0..comptime!(plan.slices()) {
        if comptime!(plan.slices() > 1) {
            sync_cube();
            let from = state_rows(batch, group, start, stop, slice, plan);
            stage::<F, L, E, V>(
                b,
                &from,
                &mut writes,
                0usize,
                &mut flaws,
                0usize,
                guarded,
                projection_tile,
                plan,
            );
            stage::<F, L, E, V>(
                c,
                &from,
                &mut readers,
                0usize,
                &mut flaws,
                0usize,
                guarded,
                projection_tile,
                plan,
            );
        }
        sync_cube();
        let mut total = Array::<f32>::new(projection_values);
        #[unroll]
        for i in 0..projection_values {
            total[i] = sums_c[comptime!(slice * projection_values + i)];
        }
        multiply::<E, V>(
            &weights,
            0usize,
            &writes,
            0usize,
            &mut total,
            positions,
            comptime!([weight_tile.along(), projection_tile.across()]),
            projection_form,
        );
        let to = state_rows(part * batches + batch, group, start, stop, slice, plan);
        write_projection::<O, W>(grad_c, &to, &total, seq_len, ngroups, plan);
        #[unroll]
        for i in 0..projection_values {
            total[i] = sums_b[comptime!(slice * projection_values + i)];
        }
        multiply::<E, V>(
            &weights,
            0usize,
            &readers,
            0usize,
            &mut total,
            positions,
            comptime!([weight_tile.across(), projection_tile.across()]),
            projection_form,
        );
        write_projection::<O, W>(grad_b, &to, &total, seq_len, ngroups, plan);
    }
}

/// Writes a tile of a projection's gradient.
#[cube]
fn write_projection<O: Float, W: Size>(
    target: &mut Tensor<Vector<O, W>>, // [parts, batch, seq_len, ngroups, d_state]
    rows: &Rows,
    values: &Array<f32>,
    seq_len: usize,
    ngroups: usize,
    #[comptime] plan: Plan,
) {
    let form = comptime!(plan.projection_sums());
    let pair = comptime!(plan.pair);
    let origin = spot(0usize, form);
    #[unroll]
    for i in 0..comptime!(form.values() / plan.pair) {
        let spot = spot_from(&origin, comptime!(i * plan.pair), form);
        let t = rows.start + spot.row;
        if spot.owned && t < rows.stop && spot.column < rows.columns {
            let mut vector = Vector::<O, W>::empty();
            #[unroll]
            for j in 0..pair {
                vector.insert(j, O::cast_from(values[comptime!(i * pair + j)]));
            }
            let row = (rows.batch * seq_len + t) * ngroups * comptime!(plan.d_state);
            target[(row + rows.column + spot.column) / pair] = vector;
        }
    }
}
