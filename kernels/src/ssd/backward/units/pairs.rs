//! What is for pairs of positions of a tile: rows read, columns write.
//!
//! ```text
//! S_ts  = C_t . B_s
//! gG_ts = (gy_t . x_s) dt_s exp(sums_t - sums_s)   for s <= t of the same run
//! R_ts  = gG_ts S_ts                               s < t alone
//! ```
//!
//! - A cube owns a tile and a part of a group's heads, one after the other; a unit owns 4 x 4 pairs.
//! - `S` and the sum of `gG` over the heads go to memory, and what is left of states and writes at every position, and
//!   the sums of `R` over rows less those over columns.

use cubecl::prelude::*;

use super::super::load::{edge_at, head};
use super::plan::{BLOCK, Plan};
use super::positions::{ENTER, LEAVE, READS, STEP, WRITES, edge_before, span, write_sheet};
use super::states::value_source;
use super::tiles::{
    Region, block_rows, multiply, origin, put_columns, put_row, row_of, set_row, slot_sum, stage,
    write_block, zeros,
};
use crate::pointwise::exp;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn pairs_kernel<F: Float>(
    x: &Tensor<F>,           // [batch, seq_len, nheads, headdim]
    b: &Tensor<F>,           // [batch, seq_len, ngroups, d_state]
    c: &Tensor<F>,           // [batch, seq_len, ngroups, d_state]
    grad_y: &Tensor<F>,      // [batch, seq_len, nheads, headdim]
    dt: &Tensor<f32>,        // [batch, nheads, length]
    sums: &Tensor<f32>,      // [batch, nheads, length]
    runs: &Tensor<u32>,      // [batch, length], unread without `seq_idx`
    pairs: &mut Tensor<f32>, // S, and gG of every part: [1 + parts, batch, tiles, ngroups, edge * edge]
    sheet: &mut Tensor<f32>, // [PLANES, batch, seq_len, nheads]
    first_interval: u32,
    interval_len: u32,
    heads_a_part: u32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let edge = comptime!(plan.edge);
    let inner = comptime!(plan.inner());
    let nheads = x.shape(2);
    let headdim = x.shape(3);
    let ngroups = b.shape(2);
    let d_state = b.shape(3);
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
    let span = span(
        CUBE_POS_X as usize,
        first_interval,
        interval_len,
        x.shape(1),
        plan,
    );
    let (start, stop) = (span.start, span.stop);
    let (first_row, first_column) = origin(plan);

    let mut reads = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.factor_vectors()));
    let mut writes = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.factor_vectors()));
    let mut slots = Shared::<[f32]>::new_slice(comptime!(plan.slots()));
    let mut tile_sums = Shared::<[f32]>::new_slice(edge);
    let mut tile_steps = Shared::<[f32]>::new_slice(edge);
    let mut tile_runs = Shared::<[u32]>::new_slice(edge);

    let mut scores = zeros();
    let place = head(
        batch,
        group * heads_a_group,
        heads_a_group,
        nheads,
        dt.shape(2),
    );
    for step in 0..d_state.div_ceil(inner) {
        let n = step * inner;
        let first = group * d_state + n;
        sync_cube();
        let from = value_source(c, &place, start, stop, first, d_state - n);
        stage(c, &from, &mut reads, plan);
        let from = value_source(b, &place, start, stop, first, d_state - n);
        stage(b, &from, &mut writes, plan);
        sync_cube();
        multiply(&reads, &writes, &mut scores, d_state - n, false, plan);
    }
    let tile = (batch * pairs.shape(2) + CUBE_POS_X as usize) * ngroups + group;
    let plane = pairs.shape(1) * pairs.shape(2) * ngroups;
    let mut region = Region {
        base: tile * comptime!(edge * edge),
        stride: edge.runtime(),
        rows: edge.runtime(),
        columns: edge.runtime(),
    };
    if part == 0 {
        write_block(pairs, &region, &scores, plan);
    }

    let mut grad_scores = zeros();
    for index in begin..end {
        let head = head(
            batch,
            group * heads_a_group + index,
            heads_a_group,
            nheads,
            dt.shape(2),
        );
        let mut products = zeros();
        for step in 0..headdim.div_ceil(inner) {
            let channel = step * inner;
            let first = head.head * headdim + channel;
            sync_cube();
            let from = value_source(grad_y, &head, start, stop, first, headdim - channel);
            stage(grad_y, &from, &mut reads, plan);
            let from = value_source(x, &head, start, stop, first, headdim - channel);
            stage(x, &from, &mut writes, plan);
            sync_cube();
            multiply(
                &reads,
                &writes,
                &mut products,
                headdim - channel,
                false,
                plan,
            );
        }

        // The units have passed a barrier since they used the positions of the head before.
        let row = UNIT_POS as usize;
        if row < edge {
            let inside = start + row < stop;
            let t = select(inside, start + row, stop - 1);
            let before = edge_before(sums, runs, &head, start, span.first, plan);
            let after = edge_at(sums, runs, &head, stop - 1, plan.resettable);
            let here = edge_at(sums, runs, &head, t, plan.resettable);
            let step = dt[head.steps + t];
            tile_sums[row] = here.sum;
            tile_steps[row] = step;
            tile_runs[row] = here.run;
            if inside {
                let enter = exp(here.sum - before.sum, plan.ptx);
                let leave = exp(after.sum - here.sum, plan.ptx);
                let enter = select(here.run == before.run, enter, 0.0f32);
                let leave = select(here.run == after.run, leave, 0.0f32);
                write_sheet(sheet, ENTER, batch, t, head.head, enter);
                write_sheet(sheet, LEAVE, batch, t, head.head, leave);
                write_sheet(sheet, STEP, batch, t, head.head, step);
                write_sheet(sheet, WRITES, batch, t, head.head, 0.0f32.runtime());
            }
        }
        sync_cube();

        let mut column_terms = Vector::<f32, Const<4>>::new(0.0f32);
        for i in 0..block_rows(first_row, stop - start) {
            let row = first_row + i;
            let row_sum = tile_sums[row];
            let row_run = tile_runs[row];
            let (product, score) = (row_of(&products, i), row_of(&scores, i));
            let mut grads = Vector::<f32, Const<4>>::empty();
            let mut terms = Vector::<f32, Const<4>>::empty();
            #[unroll]
            for j in 0..BLOCK {
                let column = first_column + j;
                let seen = column <= row && row_run == tile_runs[column];
                let decay = exp(row_sum - tile_sums[column], plan.ptx);
                let value = product.extract(j) * (decay * tile_steps[column]);
                let value = select(seen, value, 0.0f32);
                grads.insert(j, value);
                let term = value * score.extract(j);
                terms.insert(j, select(seen && column < row, term, 0.0f32));
            }
            let sum = row_of(&grad_scores, i) + grads;
            set_row(&mut grad_scores, i, sum);
            column_terms += terms;
            put_row(terms, &mut slots, row, first_column, plan);
        }
        sync_cube();
        let mut sum = 0.0f32;
        if row < edge && start + row < stop {
            sum = slot_sum(&slots, row, plan);
        }
        sync_cube();
        put_columns(column_terms, &mut slots, plan);
        sync_cube();
        if row < edge && start + row < stop {
            sum -= slot_sum(&slots, row, plan);
            write_sheet(sheet, READS, batch, start + row, head.head, sum);
        }
    }
    region.base = ((1 + part) * plane + tile) * comptime!(edge * edge);
    write_block(pairs, &region, &grad_scores, plan);
}
