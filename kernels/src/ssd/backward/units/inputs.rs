//! The gradient of a tile's `x`.
//!
//! ```text
//! gX_s = w_s g B_s + sum_t S_ts exp(sums_t - sums_s) gy_t     for t >= s of the same run
//! gx_s = dt_s gX_s + d gy_s
//! ```
//!
//! - A cube owns a tile and a head; blocks of its channels one after the other. A unit owns 4 x 4 of the gradient.
//! - `x . gX`, summed over the channels, is for the steps' gradients; `x gy`, summed over the tile, for that of `d`.

use cubecl::prelude::*;

use super::super::load::{edge_at, head};
use super::plan::{BLOCK, Plan};
use super::positions::{INPUTS, LEAVE, STEP, read_sheet, span, write_sheet};
use super::states::{time_source, value_source};
use super::tiles::{
    Region, Source, block_rows, multiply, origin, place_in_factor, put_columns, put_row, read_row,
    row_of, slot_sum, stage, weighted, write_row, zeros,
};
use crate::pointwise::exp;

/// The tile's positions in shared memory.
#[derive(CubeType)]
struct Times {
    sums: Shared<[f32]>,
    runs: Shared<[u32]>,
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn inputs_kernel<F: Float>(
    x: &Tensor<F>,                                // [batch, seq_len, nheads, headdim]
    b: &Tensor<F>,                                // [batch, seq_len, ngroups, d_state]
    grad_y: &Tensor<F>,                           // [batch, seq_len, nheads, headdim]
    sums: &Tensor<f32>,                           // [batch, nheads, length]
    runs: &Tensor<u32>,                           // [batch, length], unread without `seq_idx`
    d: ComptimeOption<&Tensor<f32>>,              // [nheads] or [nheads, headdim]
    duals: &Tensor<f32>, // gradients after tiles: [batch, tiles, nheads, headdim, d_state]
    pairs: &Tensor<f32>, // [1 + parts, batch, tiles, ngroups, edge * edge]
    sheet: &mut Tensor<f32>, // [PLANES, batch, seq_len, nheads]
    grad_x: &mut Tensor<F>, // [batch, seq_len, nheads, headdim]
    mut grad_d: ComptimeOption<OwnedTensor<f32>>, // [batch, all tiles, nheads, headdim]
    first_interval: u32,
    interval_len: u32,
    #[comptime] plan: Plan,
    #[comptime] _present: u32,
    #[define(F)] _dtype: ElemType,
) {
    let edge = comptime!(plan.edge);
    let inner = comptime!(plan.inner());
    let seq_len = x.shape(1);
    let nheads = x.shape(2);
    let headdim = x.shape(3);
    let ngroups = b.shape(2);
    let d_state = b.shape(3);
    let batch = CUBE_POS_Y as usize;
    let tile = CUBE_POS_X as usize;
    let length = sums.shape(2);
    let head = head(batch, CUBE_POS_Z as usize, nheads / ngroups, nheads, length);
    let span = span(tile, first_interval, interval_len, seq_len, plan);
    let (start, stop) = (span.start, span.stop);
    let (first_row, first_column) = origin(plan);
    let row = UNIT_POS as usize;

    let mut row_factor =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.factor_vectors()));
    let mut channel_factor =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.factor_vectors()));
    let mut slots = Shared::<[f32]>::new_slice(comptime!(plan.slots()));
    let mut leaves = Shared::<[f32]>::new_slice(edge);
    let mut steps = Shared::<[f32]>::new_slice(edge);
    let mut times = Times {
        sums: Shared::new_slice(edge),
        runs: Shared::new_slice(edge),
    };
    if row < edge {
        let inside = start + row < stop;
        let t = select(inside, start + row, stop - 1);
        let here = edge_at(sums, runs, &head, t, plan.resettable);
        times.sums[row] = here.sum;
        times.runs[row] = here.run;
        leaves[row] = read_sheet(&*sheet, LEAVE, batch, t, head.head);
        steps[row] = read_sheet(&*sheet, STEP, batch, t, head.head);
    }

    let pair_base =
        ((batch * pairs.shape(2) + tile) * ngroups + head.group) * comptime!(edge * edge);
    let state_base = ((batch * duals.shape(1) + tile) * nheads + head.head) * headdim * d_state;
    let mut input_sum = 0.0f32;
    for block in 0..headdim.div_ceil(edge) {
        let channel = block * edge;
        let first = head.head * headdim + channel;
        let mut grads = zeros();
        for step in 0..d_state.div_ceil(inner) {
            let n = step * inner;
            sync_cube();
            let from = value_source(b, &head, start, stop, head.group * d_state + n, d_state - n);
            stage(b, &from, &mut row_factor, plan);
            let from = Source {
                base: state_base + channel * d_state + n,
                inner_stride: 1usize.runtime(),
                column_stride: d_state,
                inners: d_state - n,
                columns: headdim - channel,
            };
            stage(duals, &from, &mut channel_factor, plan);
            sync_cube();
            multiply(
                &row_factor,
                &channel_factor,
                &mut grads,
                d_state - n,
                false,
                plan,
            );
        }
        #[unroll]
        for i in 0..BLOCK {
            let weight = leaves[first_row + i];
            grads[i] = weighted(grads[i], weight);
        }
        for step in 0..(stop - start).div_ceil(inner) {
            let at = step * inner;
            sync_cube();
            let from = time_source(grad_y, &head, start + at, stop, first, headdim - channel);
            stage(grad_y, &from, &mut channel_factor, plan);
            stage_mixing(
                pairs,
                pair_base,
                &times,
                &mut row_factor,
                at,
                stop - start,
                plan,
            );
            sync_cube();
            multiply(
                &row_factor,
                &channel_factor,
                &mut grads,
                stop - start - at,
                plan.resettable,
                plan,
            );
        }

        let mut skip = Vector::<f32, Const<4>>::new(0.0f32);
        #[comptime]
        if let ComptimeOption::Some(d) = d {
            // One weight a head is one for each of its channels.
            let width = d.len() / nheads;
            #[unroll]
            for j in 0..BLOCK {
                let column = channel + first_column + j;
                let column = select(column < width, column, 0);
                skip.insert(j, d[head.head * width + column]);
            }
        }
        let rows = stop - start;
        let columns = headdim - channel;
        let source = Region {
            base: batch * x.stride(0) + start * x.stride(1) + first,
            stride: x.stride(1),
            rows,
            columns,
        };
        let upstream_source = Region {
            base: batch * grad_y.stride(0) + start * grad_y.stride(1) + first,
            stride: grad_y.stride(1),
            rows,
            columns,
        };
        let target = Region {
            base: ((batch * seq_len + start) * nheads + head.head) * headdim + channel,
            stride: nheads * headdim,
            rows,
            columns,
        };
        let mut skips = Vector::<f32, Const<4>>::new(0.0f32);
        for i in 0..block_rows(first_row, stop - start) {
            let row = first_row + i;
            let input = read_row(x, &source, row, first_column);
            let upstream = read_row(grad_y, &upstream_source, row, first_column);
            let grad = row_of(&grads, i);
            put_row(input * grad, &mut slots, row, first_column, plan);
            let mut value = Vector::new(steps[row]) * grad;
            if comptime!(d.is_some()) {
                value += skip * upstream;
                skips += input * upstream;
            }
            write_row(grad_x, &target, row, first_column, value);
        }
        sync_cube();
        if row < edge && start + row < stop {
            input_sum += slot_sum(&slots, row, plan);
        }
        #[comptime]
        if let ComptimeOption::Some(grad_d) = &mut grad_d {
            sync_cube();
            put_columns(skips, &mut slots, plan);
            sync_cube();
            if row < edge && channel + row < headdim {
                let tiles = (interval_len as usize).div_ceil(edge);
                let tile = first_interval as usize * tiles + tile;
                let place = (batch * grad_d.shape(1) + tile) * nheads + head.head;
                grad_d[place * headdim + channel + row] = slot_sum(&slots, row, plan);
            }
        }
    }
    if row < edge && start + row < stop {
        write_sheet(sheet, INPUTS, batch, start + row, head.head, input_sum);
    }
}

/// Fills a factor with `M_ts` without `dt_s`: positions from `at` on, which read, on the inner axis, those that write as
/// columns.
#[cube]
fn stage_mixing(
    pairs: &Tensor<f32>,
    base: usize,
    times: &Times,
    target: &mut Shared<[Vector<f32, Const<4>>]>,
    at: usize,
    positions: usize,
    #[comptime] plan: Plan,
) {
    let (inner, place) = place_in_factor(false.runtime(), plan);
    let row = at + inner;
    let row_sum = times.sums[row];
    let row_run = times.runs[row];
    let mut vector = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for j in 0..BLOCK {
        let column = place * BLOCK + j;
        let score = pairs[base + row * comptime!(plan.edge) + column];
        let decay = exp(row_sum - times.sums[column], plan.ptx);
        let seen = column <= row && row < positions && row_run == times.runs[column];
        vector.insert(j, select(seen, score * decay, 0.0f32));
    }
    target[inner * comptime!(plan.pitch()) + place] = vector;
}
