//! The gradients of the states between intervals: those of the states that the checkpoints hold.
//!
//! Over an interval the gradient of the state changes backwards in time by `g -> e g + sum_t e_t gy_t C_t^T`.
//! [`contributions_kernel`] computes the sums of all intervals at once, [`carry_kernel`] walks the intervals from the last
//! and leaves in their place the gradient of the state after each.
//!
//! - Contributions: one cube an interval, head and block of channels; slices of the states one after the other. Reads
//!   `grad_y` once and `c` once a head (of a group, from the cache), writes a state each.
//! - Carry: one unit a state's entry. Reads and writes a state an interval.

use cubecl::prelude::*;

use super::super::tile::{multiply, zero};
use super::load::{
    Edge, Head, Staging, channel_rows, edge_at, head, stage, state_rows, write_state,
};
use super::plan::Plan;
use crate::bits::is_zero;
use crate::pointwise::exp;

/// Adds to `state` what positions between `from` and `to` write to it, or backwards what they read of it, as far as it
/// passes `edge`: `sum of x_t b_t^T dt_t exp(edge - sums_t)`, or `sum of gy_t c_t^T exp(sums_t - edge)`.
#[cube]
pub(super) fn add_outer_products<F: Float, L: Size, V: Size>(
    rows: &Tensor<Vector<F, L>>, // x or grad_y: [batch, seq_len, nheads, headdim]
    projection: &Tensor<Vector<F, L>>, // b or c: [batch, seq_len, ngroups, d_state]
    dt: &Tensor<f32>,            // [batch, nheads, length]
    sums: &Tensor<f32>,          // [batch, nheads, length]
    runs: &Tensor<u32>,          // [batch, length]
    row_tile: &mut Shared<[Vector<F, V>]>,
    projection_tile: &mut Shared<[Vector<F, V>]>,
    weights: &mut Shared<[f32]>, // [positions]
    state: &mut Array<f32>,
    head: &Head,
    from: usize,
    to: usize,
    border: &Edge,
    block: usize,
    slice: usize,
    #[comptime] backwards: bool,
    #[comptime] plan: Plan,
) {
    let positions = comptime!(plan.positions);
    let mut start = from;
    while start < to {
        // The units are done with the tile before.
        sync_cube();
        let mut row = UNIT_POS as usize;
        while row < positions {
            let t = select(start + row < to, start + row, to - 1);
            let here = edge_at(sums, runs, head, t, plan.resettable);
            let mut weight = if comptime!(backwards) {
                exp(here.sum - border.sum, plan.ptx)
            } else {
                exp(border.sum - here.sum, plan.ptx) * dt[head.steps + t]
            };
            let passes = here.run == border.run && start + row < to;
            weight = select(passes, weight, 0.0f32);
            weights[row] = weight;
            row += comptime!(plan.units);
        }
        sync_cube();
        let from_rows = channel_rows(head, start, to, block, plan);
        stage::<F, L, V>(
            rows,
            &from_rows,
            row_tile,
            0usize,
            weights,
            0usize,
            Staging::Weighted,
            comptime!(plan.inputs()),
            plan,
        );
        let from_states = state_rows(head.batch, head.group, start, to, slice, plan);
        stage::<F, L, V>(
            projection,
            &from_states,
            projection_tile,
            0usize,
            weights,
            0usize,
            comptime!(match plan.resettable {
                true => Staging::Passing,
                false => Staging::Plain,
            }),
            comptime!(plan.projection()),
            plan,
        );
        sync_cube();
        multiply::<F, V>(
            &*row_tile,
            0usize,
            &*projection_tile,
            0usize,
            state,
            positions,
            comptime!([plan.inputs().across(), plan.projection().across()]),
            comptime!(plan.state_sums()),
        );
        start += positions;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn contributions_kernel<F: Float, L: Size, V: Size, W: Size>(
    grad_y: &Tensor<Vector<F, L>>, // [batch, seq_len, nheads, headdim]
    c: &Tensor<Vector<F, L>>,      // [batch, seq_len, ngroups, d_state]
    dt: &Tensor<f32>,              // [batch, nheads, length]
    sums: &Tensor<f32>,            // [batch, nheads, length]
    runs: &Tensor<u32>,            // [batch, length]
    states: &mut Tensor<Vector<f32, W>>, // [batch, intervals, nheads, headdim, d_state]
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let seq_len = grad_y.shape(1);
    let nheads = grad_y.shape(2);
    let blocks = comptime!(plan.blocks());
    let block = CUBE_POS_X as usize % blocks;
    let batch = CUBE_POS_Y as usize;
    let interval = CUBE_POS_Z as usize;
    let head = head(
        batch,
        CUBE_POS_X as usize / blocks,
        nheads / c.shape(2),
        nheads,
        dt.shape(2),
    );
    let from = interval * comptime!(plan.interval);
    let to = from + comptime!(plan.interval);
    let to = select(to < seq_len, to, seq_len);

    let row_form = comptime!(plan.inputs());
    let projection_form = comptime!(plan.projection());
    let form = comptime!(plan.state_sums());
    let mut row_tile =
        Shared::<[Vector<F, V>]>::new_aligned_slice(comptime!(row_form.vectors()), 16usize);
    let mut projection_tile =
        Shared::<[Vector<F, V>]>::new_aligned_slice(comptime!(projection_form.vectors()), 16usize);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(plan.positions));
    let border = Edge {
        sum: 0.0f32.runtime(),
        run: 0u32.runtime(),
    };
    let size = comptime!(plan.headdim * plan.d_state);
    let base = ((batch * states.shape(1) + interval) * nheads + head.head) * size;
    for slice in 0..comptime!(plan.slices()) {
        let mut state = Array::<f32>::new(comptime!(form.values()));
        zero(&mut state, form);
        add_outer_products::<F, L, V>(
            grad_y,
            c,
            dt,
            sums,
            runs,
            &mut row_tile,
            &mut projection_tile,
            &mut weights,
            &mut state,
            &head,
            from,
            to,
            &border,
            block,
            slice,
            true,
            plan,
        );
        write_state::<W>(states, base, block, slice, &state, form, plan);
    }
}

/// Intervals whose loads are in flight at once.
const AHEAD: usize = 8;

/// One unit a vector of a sequence's states. `states` becomes the gradient of the state after each interval.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn carry_kernel<N: Size>(
    states: &mut Tensor<Vector<f32, N>>, // [batch, intervals, nheads, headdim, d_state]
    sums: &Tensor<f32>,                  // [batch, nheads, length]
    runs: &Tensor<u32>,                  // [batch, length]
    grad_final: ComptimeOption<&Tensor<Vector<f32, N>>>, // [batch, nheads, headdim, d_state]
    mut grad_initial: ComptimeOption<OwnedTensor<Vector<f32, N>>>, // the same shape
    #[comptime] interval: usize,
    #[comptime] resettable: bool,
    #[comptime] ptx: bool,
    #[comptime] _present: u32,
) {
    let intervals = states.shape(1);
    let nheads = states.shape(2);
    let size = states.shape(3) * states.shape(4) / N::value();
    let length = sums.shape(2);
    if ABSOLUTE_POS >= states.shape(0) * nheads * size {
        terminate!();
    }
    let batch = ABSOLUTE_POS / (nheads * size);
    let within = ABSOLUTE_POS % (nheads * size);
    let first = batch * intervals * nheads * size + within;
    let row = (batch * nheads + within / size) * length;

    let mut grad = Vector::<f32, N>::new(0.0f32);
    #[comptime]
    if let ComptimeOption::Some(grad_final) = grad_final {
        grad = grad_final[ABSOLUTE_POS];
    }
    for round in 0..intervals.div_ceil(AHEAD) {
        let mut values = Array::<Vector<f32, N>>::new(AHEAD);
        let mut factors = Array::<f32>::new(AHEAD);
        #[unroll]
        for i in 0..AHEAD {
            let step = round * AHEAD + i;
            let index = intervals - 1 - select(step < intervals, step, intervals - 1);
            values[i] = states[first + index * nheads * size];
            let last = index * interval + comptime!(interval - 1);
            let factor = exp(sums[row + last], ptx);
            factors[i] = factor;
            if comptime!(resettable) {
                factors[i] = select(runs[batch * length + last] == 0, factor, 0.0f32);
            }
        }
        #[unroll]
        for i in 0..AHEAD {
            let step = round * AHEAD + i;
            if step < intervals {
                states[first + (intervals - 1 - step) * nheads * size] = grad;
                // Nothing passes a reset, not even NaN.
                if is_zero(factors[i]) {
                    grad = values[i];
                } else {
                    grad = Vector::new(factors[i]) * grad + values[i];
                }
            }
        }
    }
    #[comptime]
    if let ComptimeOption::Some(grad_initial) = &mut grad_initial {
        grad_initial[ABSOLUTE_POS] = grad;
    }
}
