//! The gradient of a tile's `c`, or of its `b`: the same with reads and writes exchanged.
//!
//! ```text
//! gC_t = sum_heads e_t h^T gy_t        + sum_s gG_ts B_s
//! gB_s = sum_heads w_s dt_s g^T x_s    + sum_t gG_ts C_t
//! ```
//!
//! - A cube owns a tile and a part of a group's heads; slices of the states one after the other, heads within. A unit owns
//!   4 x 4 of the gradient.
//! - The first summand times `C_t` or `B_s` is what a head's steps need, summed over the states: `reads` and `writes`.
//!   Of the last position's reads is also what the tile's decay makes of the state before it, `h . g`.

use cubecl::prelude::*;

use super::super::load::head;
use super::plan::{BLOCK, Plan};
use super::positions::{ENTER, LEAVE, READS, STEP, WRITES, read_sheet, span, write_sheet};
use super::states::{time_source, value_source};
use super::tiles::{
    Region, Source, block_rows, multiply, origin, place_in_factor, put_row, read_block,
    read_vector, row_of, set_row, slot_sum, stage, weighted, write_block, zeros,
};
use crate::bits::is_zero;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn projections_kernel<F: Float, O: Float>(
    rows: &Tensor<F>,        // grad_y, or x: [batch, seq_len, nheads, headdim]
    own: &Tensor<F>,         // c, or b: [batch, seq_len, ngroups, d_state]
    other: &Tensor<F>,       // b, or c: the same
    states: &Tensor<f32>, // before tiles, or gradients after them: [batch, tiles, nheads, headdim, d_state]
    duals: &Tensor<f32>,  // gradients after tiles: the same; unread for `b`
    pairs: &Tensor<f32>,  // [1 + parts, batch, tiles, ngroups, edge * edge]
    sheet: &mut Tensor<f32>, // [PLANES, batch, seq_len, nheads]
    out: &mut Tensor<O>,  // [parts, batch, seq_len, ngroups, d_state]
    first_interval: u32,
    interval_len: u32,
    heads_a_part: u32,
    writing: u32,
    #[comptime] plan: Plan,
    #[define(F, O)] _dtypes: [ElemType; 2],
) {
    let edge = comptime!(plan.edge);
    let inner = comptime!(plan.inner());
    let across = comptime!(plan.across());
    let seq_len = rows.shape(1);
    let nheads = rows.shape(2);
    let headdim = rows.shape(3);
    let ngroups = own.shape(2);
    let d_state = own.shape(3);
    let writing = writing == 1;
    let heads_a_group = nheads / ngroups;
    let heads_a_part = heads_a_part as usize;
    let parts = heads_a_group.div_ceil(heads_a_part);
    let batch = CUBE_POS_Y as usize;
    let group = CUBE_POS_Z as usize / parts;
    let part = CUBE_POS_Z as usize % parts;
    let begin = part * heads_a_part;
    let end = select(
        begin + heads_a_part < heads_a_group,
        begin + heads_a_part,
        heads_a_group,
    );
    let tile = CUBE_POS_X as usize;
    let span = span(tile, first_interval, interval_len, seq_len, plan);
    let (start, stop) = (span.start, span.stop);
    let (first_row, first_column) = origin(plan);
    let row = UNIT_POS as usize;

    let mut row_factor =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.factor_vectors()));
    let mut state_factor =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.factor_vectors()));
    let mut slots = Shared::<[f32]>::new_slice(comptime!(plan.slots()));
    let mut shares = Shared::<[f32]>::new_slice(comptime!(plan.units()));
    let mut weights = Shared::<[f32]>::new_slice(edge);

    for slice in 0..d_state.div_ceil(edge) {
        let n = slice * edge;
        let columns = group * d_state + n;
        let mut total = zeros();
        let values = read_block(
            own,
            &Region {
                base: batch * own.stride(0) + start * own.stride(1) + columns,
                stride: own.stride(1),
                rows: stop - start,
                columns: d_state - n,
            },
            plan,
        );
        for index in begin..end {
            let head = head(
                batch,
                group * heads_a_group + index,
                heads_a_group,
                nheads,
                0,
            );
            let size = headdim * d_state;
            let state_base = ((batch * states.shape(1) + tile) * nheads + head.head) * size + n;
            let mut sums = zeros();
            // The unit's share of `h . g`.
            let mut share = 0.0f32;
            for step in 0..headdim.div_ceil(inner) {
                let channel = step * inner;
                let first = head.head * headdim + channel;
                sync_cube();
                let from = value_source(rows, &head, start, stop, first, headdim - channel);
                stage(rows, &from, &mut row_factor, plan);
                let from = Source {
                    base: state_base + channel * d_state,
                    inner_stride: d_state,
                    column_stride: 1usize.runtime(),
                    inners: headdim - channel,
                    columns: d_state - n,
                };
                stage(states, &from, &mut state_factor, plan);
                if !writing {
                    share += product_with(duals, &from, &state_factor, plan);
                }
                sync_cube();
                multiply(
                    &row_factor,
                    &state_factor,
                    &mut sums,
                    headdim - channel,
                    false,
                    plan,
                );
            }

            // The units have passed a barrier since they used those of the head before.
            shares[row] = share;
            if row < edge {
                let t = select(start + row < stop, start + row, stop - 1);
                let enter = read_sheet(&*sheet, ENTER, batch, t, head.head);
                let leave = read_sheet(&*sheet, LEAVE, batch, t, head.head);
                let step = read_sheet(&*sheet, STEP, batch, t, head.head);
                weights[row] = select(writing, leave * step, enter);
            }
            sync_cube();
            for i in 0..block_rows(first_row, stop - start) {
                let weight = weights[first_row + i];
                let value = weighted(row_of(&sums, i), weight);
                let sum = row_of(&total, i) + value;
                set_row(&mut total, i, sum);
                let zero = Vector::<f32, Const<4>>::new(0.0f32);
                let terms = select(is_zero(weight), zero, value * row_of(&values, i));
                put_row(terms, &mut slots, first_row + i, first_column, plan);
            }
            // A few units add the shares, the last position's unit what they have.
            if row < across {
                let mut sum = 0.0f32;
                for k in 0..across {
                    sum += shares[row * across + k];
                }
                slots[row * comptime!(plan.pitch()) + across] = sum;
            }
            sync_cube();
            if row < edge && start + row < stop {
                let mut sum = slot_sum(&slots, row, plan);
                if start + row + 1 == stop && !writing {
                    let mut product = 0.0f32;
                    for k in 0..across {
                        product += slots[k * comptime!(plan.pitch()) + across];
                    }
                    let left = weights[row];
                    sum += select(is_zero(left), 0.0f32, left * product);
                }
                let plane = select(writing, WRITES, READS);
                let sum = sum + read_sheet(&*sheet, plane, batch, start + row, head.head);
                write_sheet(sheet, plane, batch, start + row, head.head, sum);
            }
        }

        let plane = pairs.shape(1) * pairs.shape(2) * ngroups;
        let tile = (batch * pairs.shape(2) + tile) * ngroups + group;
        let base = ((1 + part) * plane + tile) * comptime!(edge * edge);
        let place = head(batch, 0, 1, 0, 0);
        for step in 0..(stop - start).div_ceil(inner) {
            let at = step * inner;
            sync_cube();
            let from = Source {
                base: base + at * select(writing, edge, 1),
                inner_stride: select(writing, edge, 1),
                column_stride: select(writing, 1, edge),
                inners: inner.runtime(),
                columns: edge.runtime(),
            };
            stage(pairs, &from, &mut row_factor, plan);
            let from = time_source(other, &place, start + at, stop, columns, d_state - n);
            stage(other, &from, &mut state_factor, plan);
            sync_cube();
            multiply(
                &row_factor,
                &state_factor,
                &mut total,
                stop - start - at,
                plan.resettable,
                plan,
            );
        }
        let region = Region {
            base: (((part * sheet.shape(1) + batch) * seq_len + start) * ngroups + group) * d_state
                + n,
            stride: ngroups * d_state,
            rows: stop - start,
            columns: d_state - n,
        };
        write_block(out, &region, &total, plan);
    }
}

/// The products of what the unit staged of a factor and its counterparts in another tensor.
#[cube]
fn product_with(
    source: &Tensor<f32>,
    from: &Source,
    factor: &Shared<[Vector<f32, Const<4>>]>,
    #[comptime] plan: Plan,
) -> f32 {
    let (inner, place) = place_in_factor(from.inner_stride == 1, plan);
    let staged = factor[inner * comptime!(plan.pitch()) + place];
    let products = staged * read_vector(source, from, inner, place);
    let mut sum = products.extract(0usize);
    #[unroll]
    for j in 1..BLOCK {
        sum += products.extract(j);
    }
    sum
}
