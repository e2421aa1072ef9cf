//! States and their gradients from tile to tile of an interval.
//!
//! ```text
//! h = e h + sum_t w_t dt_t x_t B_t^T      forward
//! g = e g + sum_t e_t gy_t C_t^T          backwards
//! ```
//!
//! - A cube owns a block of a head's channels and states over an interval, which it walks tile by tile; a unit owns 4 x 4
//!   of it, in registers.
//! - Forward from a checkpoint it leaves the state before each tile; backwards from the gradient of the state after
//!   the interval that of the state after each tile. Backwards from zero it leaves what the interval adds to the gradient
//!   of the state before it.
//! - Reads a row of channels and one of states a position, writes a block a tile.

use cubecl::prelude::*;

use super::super::load::{Head, edge_at, head};
use super::plan::{BLOCK, Plan};
use super::positions::edge_before;
use super::tiles::{
    Region, Source, multiply, read_block, stage, stage_weighted, weighted, write_block, zeros,
};
use crate::pointwise::exp;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn states_kernel<F: Float>(
    rows: &Tensor<F>,       // x or grad_y: [batch, seq_len, nheads, headdim]
    projection: &Tensor<F>, // b or c: [batch, seq_len, ngroups, d_state]
    dt: &Tensor<f32>,       // [batch, nheads, length]
    sums: &Tensor<f32>,     // [batch, nheads, length]
    runs: &Tensor<u32>,     // [batch, length], unread without `seq_idx`
    starts: ComptimeOption<&Tensor<f32>>, // [batch, intervals, nheads, headdim, d_state]
    mut states: ComptimeOption<OwnedTensor<f32>>, // [batch, tiles, nheads, headdim, d_state]
    mut ends: ComptimeOption<OwnedTensor<f32>>, // [batch, intervals, nheads, headdim, d_state]
    first_interval: u32,
    interval_len: u32,
    backwards: u32,
    #[comptime] plan: Plan,
    #[comptime] _present: u32,
    #[define(F)] _dtype: ElemType,
) {
    let edge = comptime!(plan.edge);
    let inner = comptime!(plan.inner());
    let seq_len = rows.shape(1);
    let nheads = rows.shape(2);
    let headdim = rows.shape(3);
    let ngroups = projection.shape(2);
    let d_state = projection.shape(3);
    let backwards = backwards == 1;
    let blocks = headdim.div_ceil(edge);
    let slices = d_state.div_ceil(edge);
    let slice = CUBE_POS_X as usize % slices;
    let block = CUBE_POS_X as usize / slices % blocks;
    let head = head(
        CUBE_POS_Y as usize,
        CUBE_POS_X as usize / slices / blocks,
        nheads / ngroups,
        nheads,
        dt.shape(2),
    );
    let interval_len = interval_len as usize;
    let interval = first_interval as usize + CUBE_POS_Z as usize;
    let first = interval * interval_len;
    let last = first + interval_len;
    let last = select(last < seq_len, last, seq_len);
    let tiles = (last - first).div_ceil(edge);

    let mut row_factor =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.factor_vectors()));
    let mut state_factor =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.factor_vectors()));
    let mut weights = Shared::<[f32]>::new_slice(edge);

    let channel = block * edge;
    let n = slice * edge;
    let size = headdim * d_state;
    let corner = channel * d_state + n;
    let mut region = Region {
        base: 0usize.runtime(),
        stride: d_state,
        rows: headdim - channel,
        columns: d_state - n,
    };
    let mut state = zeros();
    #[comptime]
    if let ComptimeOption::Some(starts) = starts {
        let place = (head.batch * starts.shape(1) + interval) * nheads + head.head;
        region.base = place * size + corner;
        state = read_block(starts, &region, plan);
    }
    for step in 0..tiles {
        let index = select(backwards, tiles - 1 - step, step);
        #[comptime]
        if let ComptimeOption::Some(states) = &mut states {
            let tile = CUBE_POS_Z as usize * interval_len.div_ceil(edge) + index;
            let place = (head.batch * states.shape(1) + tile) * nheads + head.head;
            region.base = place * size + corner;
            write_block(states, &region, &state, plan);
        }
        let start = first + index * edge;
        let stop = select(start + edge < last, start + edge, last);
        let before = edge_before(sums, runs, &head, start, first, plan);
        let after = edge_at(sums, runs, &head, stop - 1, plan.resettable);
        let kept = exp(after.sum - before.sum, plan.ptx);
        let kept = select(after.run == before.run, kept, 0.0f32);
        #[unroll]
        for i in 0..BLOCK {
            // Nothing passes a reset, not even NaN.
            state[i] = weighted(state[i], kept);
        }
        // The units are done with the tile before.
        sync_cube();
        let row = UNIT_POS as usize;
        if row < edge {
            let inside = start + row < stop;
            let t = select(inside, start + row, stop - 1);
            let here = edge_at(sums, runs, &head, t, plan.resettable);
            let exponent = select(backwards, here.sum - before.sum, after.sum - here.sum);
            let run = select(backwards, before.run, after.run);
            let weight = exp(exponent, plan.ptx) * select(backwards, 1.0f32, dt[head.steps + t]);
            weights[row] = select(inside && here.run == run, weight, 0.0f32);
        }
        let channels = head.head * headdim + channel;
        let columns = head.group * d_state + n;
        for part in 0..(stop - start).div_ceil(inner) {
            let at = part * inner;
            sync_cube();
            let from = time_source(rows, &head, start + at, stop, channels, headdim - channel);
            stage_weighted(rows, &from, &mut row_factor, &weights, at, plan);
            let from = time_source(projection, &head, start + at, stop, columns, d_state - n);
            stage(projection, &from, &mut state_factor, plan);
            sync_cube();
            multiply(
                &row_factor,
                &state_factor,
                &mut state,
                stop - start - at,
                plan.resettable,
                plan,
            );
        }
    }
    #[comptime]
    if let ComptimeOption::Some(ends) = &mut ends {
        let place = (head.batch * ends.shape(1) + interval) * nheads + head.head;
        region.base = place * size + corner;
        write_block(ends, &region, &state, plan);
    }
}

/// Positions from `start` on as the inner axis, and values from `first` on of their last two axes together.
#[cube]
pub(super) fn time_source<F: Float>(
    tensor: &Tensor<F>, // [batch, seq_len, .., ..]
    head: &Head,
    start: usize,
    stop: usize,
    first: usize,
    columns: usize,
) -> Source {
    Source {
        base: head.batch * tensor.stride(0) + start * tensor.stride(1) + first,
        inner_stride: tensor.stride(1),
        column_stride: 1usize.runtime(),
        inners: stop - start,
        columns,
    }
}

/// The same values with positions as the columns.
#[cube]
pub(super) fn value_source<F: Float>(
    tensor: &Tensor<F>, // [batch, seq_len, .., ..]
    head: &Head,
    start: usize,
    stop: usize,
    first: usize,
    inners: usize,
) -> Source {
    Source {
        base: head.batch * tensor.stride(0) + start * tensor.stride(1) + first,
        inner_stride: 1usize.runtime(),
        column_stride: tensor.stride(1),
        inners,
        columns: stop - start,
    }
}
