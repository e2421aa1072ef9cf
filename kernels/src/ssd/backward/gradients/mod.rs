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

mod ahead;
mod inputs;
mod kept;
mod pairs;
mod positions;
mod projections;
mod sums;
mod tiles;

use cubecl::prelude::*;

use super::super::tile::{multiply, spot, store, zero};
use super::load::{head as head_of, read_state, state_rows, value_at};
use super::others::{Span, add_others, others_of_interval, stage_projections, weigh};
use super::plan::Plan;
use super::reduce::zeros;
use crate::pointwise::exp;
use ahead::{copied, landed, no_edges, read_edges, request_others, request_own, settle};
use inputs::{pass_writes, write_inputs};
use kept::{Kept, keep, kept_pairs, recall};
use pairs::{grad_pairs, mixing};
use positions::{positions_of_tile, read_positions};
use projections::{add_reads, add_writes, write_projections};
use sums::{head_sums, write_channel_skips, write_sums};
use tiles::{stage_head, stage_pair, tiles_of_cube};

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn gradients_kernel<F: Float, O: Float, L: Size, V: Size, W: Size>(
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
    #[comptime] _present: u32,
    #[define(F, O)] _dtypes: [ElemType; 2],
) {
    let seq_len = x.shape(1);
    let nheads = x.shape(2);
    let heads_a_group = nheads / b.shape(2);
    let batch = CUBE_POS_Y as usize;
    let positions = comptime!(plan.positions);
    let interval = CUBE_POS_X as usize / comptime!(plan.tiles());
    let first = interval * comptime!(plan.interval);
    let last = first + comptime!(plan.interval);
    let last = select(last < seq_len, last, seq_len);
    let start = first + CUBE_POS_X as usize % comptime!(plan.tiles()) * positions;
    let stop = select(start + positions < last, start + positions, last);
    let span = Span {
        first,
        last,
        start,
        stop,
    };
    let heads_a_part = heads_a_part as usize;
    let parts = heads_a_group.div_ceil(heads_a_part);
    let group = CUBE_POS_Z as usize / parts;
    let part = CUBE_POS_Z as usize % parts;
    let heads = heads_a_group - part * heads_a_part;
    let heads = select(heads < heads_a_part, heads, heads_a_part);
    let first_head = group * heads_a_group + part * heads_a_part;

    let input_tile = comptime!(plan.inputs());
    let projection_tile = comptime!(plan.projection());
    let state_tile = comptime!(plan.state());
    let weight_tile = comptime!(plan.weights());
    let input_form = comptime!(plan.input_sums());
    let state_form = comptime!(plan.state_sums());
    let weight_form = comptime!(plan.weight_sums());
    let guarded = comptime!(plan.guarded());
    let mut tiles = tiles_of_cube::<F, V>(plan);
    let mut others = others_of_interval::<F, V>(plan);
    let mut tile = positions_of_tile(plan);
    let mut copied = copied(plan);
    let mut kept = kept_pairs(plan);
    let mut slots = Shared::<[f32]>::new_slice(comptime!(plan.part_values()));

    let input_origin = spot(0usize, input_form);
    let projection_origin = spot(0usize, comptime!(plan.projection_sums()));
    let state_origin = spot(0usize, state_form);
    let weight_origin = spot(0usize, weight_form);

    let projection_values = comptime!(plan.slices() * plan.projection_sums().values());
    let mut sums_b = Array::<f32>::new(projection_values);
    let mut sums_c = Array::<f32>::new(projection_values);
    zeros(&mut sums_b, projection_values);
    zeros(&mut sums_c, projection_values);
    // C B^T, and the sum of its gradients over the heads.
    let mut scores = Array::<f32>::new(comptime!(weight_form.values()));
    let mut grad_scores = Array::<f32>::new(comptime!(weight_form.values()));
    zero(&mut scores, weight_form);
    zero(&mut grad_scores, weight_form);

    #[unroll]
    for slice in 0..comptime!(plan.slices()) {
        sync_cube();
        let from = state_rows(batch, group, start, stop, slice, plan);
        stage_pair::<F, L, V>(b, c, &from, &mut tiles, &mut tile, plan);
        sync_cube();
        multiply::<F, V>(
            &tiles.readers,
            0usize,
            &tiles.writes,
            0usize,
            &mut scores,
            comptime!(plan.slice),
            comptime!([projection_tile.along(), projection_tile.along()]),
            weight_form,
        );
    }
    if comptime!(plan.resident) {
        stage_projections::<F, L, V>(b, c, &mut others, batch, group, &span, guarded, plan);
    }

    if comptime!(plan.ahead) {
        let head = head_of(batch, first_head, heads_a_group, nheads, dt.shape(2));
        request_own::<F, L, V>(
            x,
            grad_y,
            dt,
            sums,
            &mut tiles,
            &mut copied,
            &head,
            &span,
            0usize,
            plan,
        );
        request_others::<F, L, V>(x, grad_y, &mut others, &head, &span, plan);
        keep(&mut kept, &scores, Kept::Scores, plan);
        keep(&mut kept, &grad_scores, Kept::Gradients, plan);
    }

    for index in 0..heads {
        let length = dt.shape(2);
        let head = head_of(batch, first_head + index, heads_a_group, nheads, length);
        let next = head_of(batch, first_head + index + 1, heads_a_group, nheads, length);
        let turn = index % comptime!(plan.turns());
        let rows_at = turn * comptime!(input_tile.vectors());
        let size = comptime!(plan.headdim * plan.d_state);
        let state_at = ((batch * checkpoints.shape(1) + interval) * nheads + head.head) * size;
        let mut state = Array::<f32>::new(comptime!(state_form.values()));
        let mut edges = no_edges();
        if comptime!(plan.ahead) {
            landed();
        } else {
            read_edges(&mut edges, sums, runs, &head, &span, plan);
        }

        // The units are done with the head before, and their copies are here.
        sync_cube();
        if comptime!(plan.ahead) {
            if index + 1 < heads {
                request_own::<F, L, V>(
                    x,
                    grad_y,
                    dt,
                    sums,
                    &mut tiles,
                    &mut copied,
                    &next,
                    &span,
                    1 - turn,
                    plan,
                );
            }
            settle::<F, V>(
                &mut edges,
                &copied,
                &mut tiles,
                &mut others,
                &mut tile,
                &span,
                turn,
                plan,
            );
        } else {
            read_positions(
                dt,
                sums,
                runs,
                &mut tile,
                &head,
                start,
                stop,
                &edges.before,
                &edges.after,
                plan,
            );
        }
        let before = &edges.before;
        let after = &edges.after;
        let end = &edges.end;
        if comptime!(plan.resident && !plan.ahead) {
            weigh::<F, V>(
                dt,
                sums,
                runs,
                &mut others,
                &head,
                &span,
                before,
                after,
                plan,
            );
        }

        let mut head_sums = head_sums(plan);
        // gy . x
        let mut products = Array::<f32>::new(comptime!(weight_form.values()));
        zero(&mut products, weight_form);

        for block in 0..comptime!(plan.blocks()) {
            let end_left = exp(end.sum - after.sum, plan.ptx);
            let end_left = select(end.run == after.run, end_left, 0.0f32);
            if comptime!(!plan.ahead) {
                sync_cube();
                stage_head::<F, L, V>(
                    x,
                    grad_y,
                    &mut tiles,
                    &mut others,
                    &mut tile,
                    &head,
                    &span,
                    block,
                    plan,
                );
            }
            // The gradient of the state after the interval, on its way while tiles come in.
            read_state::<W>(
                grad_states,
                state_at,
                end_left,
                block,
                0usize,
                &mut state,
                state_form,
                plan,
            );
            sync_cube();
            multiply::<F, V>(
                &tiles.grads,
                rows_at,
                &tiles.inputs,
                rows_at,
                &mut products,
                comptime!(plan.channels),
                comptime!([input_tile.along(), input_tile.along()]),
                weight_form,
            );
            if comptime!(plan.ahead) {
                recall(&kept, &mut scores, Kept::Scores, plan);
            }
            let mixing = mixing(&scores, &tile, &weight_origin, start, stop, plan);
            store::<F, V>(
                &mixing,
                &mut tiles.weights,
                0usize,
                weight_tile,
                weight_form,
            );

            let mut grad_inputs = Array::<f32>::new(comptime!(input_form.values()));
            zero(&mut grad_inputs, input_form);
            #[unroll]
            for slice in 0..comptime!(plan.slices()) {
                if comptime!(plan.slices() > 1) {
                    sync_cube();
                    let from = state_rows(batch, group, start, stop, slice, plan);
                    stage_pair::<F, L, V>(b, c, &from, &mut tiles, &mut tile, plan);
                }
                // The gradient of the state after the tile.
                if comptime!(slice > 0) {
                    read_state::<W>(
                        grad_states,
                        state_at,
                        end_left,
                        block,
                        slice,
                        &mut state,
                        state_form,
                        plan,
                    );
                }
                add_others::<F, L, V>(
                    grad_y,
                    c,
                    dt,
                    sums,
                    runs,
                    &mut others,
                    &mut state,
                    &head,
                    &span,
                    after,
                    block,
                    slice,
                    true,
                    plan,
                );
                sync_cube();
                store::<F, V>(&state, &mut tiles.states, 0usize, state_tile, state_form);
                // The state before the interval, on its way while the gradient is used.
                let factor = exp(before.sum, plan.ptx);
                let factor = select(before.run == 0, factor, 0.0f32);
                read_state::<W>(
                    checkpoints,
                    state_at,
                    factor,
                    block,
                    slice,
                    &mut state,
                    state_form,
                    plan,
                );
                sync_cube();
                multiply::<F, V>(
                    &tiles.writes,
                    0usize,
                    &tiles.states,
                    0usize,
                    &mut grad_inputs,
                    comptime!(plan.slice),
                    comptime!([projection_tile.along(), state_tile.along()]),
                    input_form,
                );
                add_writes::<F, V>(
                    &tiles.inputs,
                    rows_at,
                    &tiles.states,
                    &mut sums_b,
                    &tile,
                    &projection_origin,
                    slice,
                    plan,
                );

                // The state before the tile.
                add_others::<F, L, V>(
                    x,
                    b,
                    dt,
                    sums,
                    runs,
                    &mut others,
                    &mut state,
                    &head,
                    &span,
                    before,
                    block,
                    slice,
                    false,
                    plan,
                );
                #[unroll]
                for i in 0..comptime!(state_form.values()) {
                    let grad = value_at::<F, V>(
                        &tiles.states,
                        0usize,
                        &state_origin,
                        i,
                        state_tile,
                        state_form,
                    );
                    head_sums.state += state[i] * grad;
                }
                sync_cube();
                // The units are done with the other tiles' rows.
                if comptime!(plan.ahead) {
                    if index + 1 < heads {
                        request_others::<F, L, V>(x, grad_y, &mut others, &next, &span, plan);
                    }
                }
                store::<F, V>(&state, &mut tiles.states, 0usize, state_tile, state_form);
                sync_cube();
                add_reads::<F, V>(
                    &tiles.grads,
                    rows_at,
                    &tiles.states,
                    &tiles.readers,
                    &mut sums_c,
                    &mut head_sums.reads,
                    &tile,
                    &projection_origin,
                    slice,
                    plan,
                );
            }

            // What the state after takes of a position's input, then what later positions of the tile take.
            pass_writes::<F, V>(
                &tiles.inputs,
                rows_at,
                &mut grad_inputs,
                &mut head_sums.writes,
                &tile,
                &input_origin,
                plan,
            );
            multiply::<F, V>(
                &tiles.weights,
                0usize,
                &tiles.grads,
                rows_at,
                &mut grad_inputs,
                positions,
                comptime!([weight_tile.across(), input_tile.across()]),
                input_form,
            );
            let mut skips = Array::<f32>::new(comptime!(input_form.values()));
            write_inputs::<F, V, W>(
                &tiles.inputs,
                &tiles.grads,
                rows_at,
                &grad_inputs,
                d,
                grad_x,
                &mut head_sums.inputs,
                &mut skips,
                &tile,
                &input_origin,
                &head,
                start,
                stop,
                block,
                plan,
            );
            #[comptime]
            if let ComptimeOption::Some(grad_d) = &mut grad_d {
                if comptime!(plan.skips_channels) {
                    write_channel_skips(&skips, &mut slots, grad_d, &head, nheads, block, plan);
                } else {
                    #[unroll]
                    for i in 0..comptime!(input_form.values()) {
                        head_sums.skip += skips[i];
                    }
                }
            }
        }

        if comptime!(plan.ahead) {
            recall(&kept, &mut scores, Kept::Scores, plan);
            recall(&kept, &mut grad_scores, Kept::Gradients, plan);
        }
        let terms = grad_pairs(
            &products,
            &scores,
            &mut grad_scores,
            &tile,
            &weight_origin,
            start,
            stop,
            plan,
        );
        if comptime!(plan.ahead) {
            keep(&mut kept, &grad_scores, Kept::Gradients, plan);
        }
        write_sums(
            &head_sums,
            &terms,
            &mut slots,
            grad_steps,
            &mut grad_d,
            &tile,
            &head,
            start,
            stop,
            plan,
        );
    }

    sync_cube();
    if comptime!(plan.ahead) {
        recall(&kept, &mut grad_scores, Kept::Gradients, plan);
    }
    store::<F, V>(
        &grad_scores,
        &mut tiles.weights,
        0usize,
        weight_tile,
        weight_form,
    );
    write_projections::<F, O, L, V, W>(
        b, c, grad_b, grad_c, &mut tiles, &sums_b, &sums_c, &mut tile, batch, group, part, start,
        stop, plan,
    );
}
