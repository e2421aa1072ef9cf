//! What a head leaves of a tile as sums over rows, columns and units: for the gradients of its steps and of `d`.

use cubecl::prelude::*;

use super::super::load::Head;
use super::super::plan::Plan;
use super::super::reduce::{
    add_to_columns, add_to_rows, sum_slots, write_columns, write_rows, write_total, zeros,
};
use super::positions::Positions;

/// A head's sums in a unit's registers, rows as `Sums::held_rows`.
#[derive(CubeType)]
pub(super) struct HeadSums {
    /// Of rows: `c` times what it reads of the state before the tile.
    pub reads: Array<f32>,
    /// Of rows: `X` times what the state after the tile takes of it.
    pub writes: Array<f32>,
    /// Of rows: `x` times the gradient of `X`.
    pub inputs: Array<f32>,
    /// The state before the tile times the gradient of the state after it.
    pub state: f32,
    /// The gradient of a `d` without channels.
    pub skip: f32,
}

#[cube]
pub(super) fn head_sums(#[comptime] plan: Plan) -> HeadSums {
    let reads = comptime!(plan.projection_sums().held_rows());
    let inputs = comptime!(plan.input_sums().held_rows());
    let mut sums = HeadSums {
        reads: Array::new(reads),
        writes: Array::new(inputs),
        inputs: Array::new(inputs),
        state: 0.0f32.runtime(),
        skip: 0.0f32.runtime(),
    };
    zeros(&mut sums.reads, reads);
    zeros(&mut sums.writes, inputs);
    zeros(&mut sums.inputs, inputs);
    sums
}

/// Where the sums' parts lie in shared memory: [`Plan::part_values`] in all.
struct Places {
    writes: usize,
    inputs: usize,
    rows: usize,
    columns: usize,
    skips: usize,
    state: usize,
    skip: usize,
}

impl Plan {
    /// The reads come first.
    fn places(&self) -> Places {
        let inputs = self.input_sums();
        let writes = self.positions * self.projection_sums().row_slots();
        let after_writes = writes + self.positions * inputs.row_slots();
        let rows = after_writes + self.positions * inputs.row_slots();
        let columns = rows + self.positions * self.weight_sums().row_slots();
        let skips = columns + self.positions * self.weight_sums().column_slots();
        let state = skips + self.channels * inputs.column_slots();
        Places {
            writes,
            inputs: after_writes,
            rows,
            columns,
            skips,
            state,
            skip: state + self.planes(),
        }
    }
}

/// A tile's number among those of all sequences.
#[cube]
fn tile_number(batch: usize) -> usize {
    batch * CUBE_COUNT_X as usize + CUBE_POS_X as usize
}

/// Writes a block of channels' gradient of a `d` that has them.
#[cube]
pub(super) fn write_channel_skips(
    skips: &Array<f32>,
    slots: &mut Shared<[f32]>,
    grad_d: &mut Tensor<f32>, // [batch, tiles, nheads, headdim]
    head: &Head,
    nheads: usize,
    block: usize,
    #[comptime] plan: Plan,
) {
    let form = comptime!(plan.input_sums());
    let at = comptime!(plan.places().skips);
    let mut columns = Array::<f32>::new(comptime!(form.held_columns()));
    zeros(&mut columns, comptime!(form.held_columns()));
    add_to_columns(skips, &mut columns, form);
    write_columns(&columns, slots, at, form);
    sync_cube();
    let row = (tile_number(head.batch) * nheads + head.head) * comptime!(plan.headdim);
    let mut column = UNIT_POS as usize;
    while column < comptime!(plan.channels) {
        let channel = block * comptime!(plan.channels) + column;
        if channel < comptime!(plan.headdim) {
            grad_d[row + channel] = sum_slots(&*slots, at, column, comptime!(form.column_slots()));
        }
        column += comptime!(plan.units);
    }
}

/// Writes what a head's steps need, and its gradient of a `d` without channels. `terms` are those of `R`.
#[cube]
pub(super) fn write_sums(
    sums: &HeadSums,
    terms: &Array<f32>,
    slots: &mut Shared<[f32]>,
    grad_steps: &mut Tensor<f32>, // [3, batch, seq_len, nheads]
    grad_d: &mut ComptimeOption<OwnedTensor<f32>>, // [batch, tiles, nheads], or with channels
    tile: &Positions,
    head: &Head,
    start: usize,
    stop: usize,
    #[comptime] plan: Plan,
) {
    let read_form = comptime!(plan.projection_sums());
    let input_form = comptime!(plan.input_sums());
    let form = comptime!(plan.weight_sums());
    let mut rows = Array::<f32>::new(comptime!(form.held_rows()));
    zeros(&mut rows, comptime!(form.held_rows()));
    add_to_rows(terms, &mut rows, form);
    let mut columns = Array::<f32>::new(comptime!(form.held_columns()));
    zeros(&mut columns, comptime!(form.held_columns()));
    add_to_columns(terms, &mut columns, form);

    let write_at = comptime!(plan.places().writes);
    let input_at = comptime!(plan.places().inputs);
    let row_at = comptime!(plan.places().rows);
    let column_at = comptime!(plan.places().columns);
    let state_at = comptime!(plan.places().state);
    let skip_at = comptime!(plan.places().skip);
    write_rows(&sums.reads, slots, 0usize, read_form);
    write_rows(&sums.writes, slots, write_at, input_form);
    write_rows(&sums.inputs, slots, input_at, input_form);
    write_rows(&rows, slots, row_at, form);
    write_columns(&columns, slots, column_at, form);
    write_total(sums.state, slots, state_at);
    if comptime!(grad_d.is_some() && !plan.skips_channels) {
        write_total(sums.skip, slots, skip_at);
    }
    sync_cube();
    let nheads = grad_steps.shape(3);
    let mut row = UNIT_POS as usize;
    while row < comptime!(plan.positions) {
        let t = start + row;
        if t < stop {
            let mut reads = sum_slots(&*slots, 0usize, row, comptime!(read_form.row_slots()));
            reads += sum_slots(&*slots, row_at, row, comptime!(form.row_slots()));
            reads -= sum_slots(&*slots, column_at, row, comptime!(form.column_slots()));
            if t == stop - 1 {
                // The state's own decay, over the whole tile.
                let total = sum_slots(&*slots, state_at, 0usize, comptime!(plan.planes()));
                let left = tile.kept[row];
                reads += select(left == 0.0f32, 0.0f32, left * total);
            }
            let inputs = comptime!(input_form.row_slots());
            let place = (head.batch * grad_steps.shape(2) + t) * nheads + head.head;
            let plane = grad_steps.shape(1) * grad_steps.shape(2) * nheads;
            grad_steps[place] = reads;
            grad_steps[plane + place] = sum_slots(&*slots, write_at, row, inputs);
            grad_steps[2 * plane + place] = sum_slots(&*slots, input_at, row, inputs);
        }
        row += comptime!(plan.units);
    }
    #[comptime]
    if let ComptimeOption::Some(grad_d) = grad_d {
        if comptime!(!plan.skips_channels) {
            if UNIT_POS == 0 {
                let total = sum_slots(&*slots, skip_at, 0usize, comptime!(plan.planes()));
                grad_d[tile_number(head.batch) * nheads + head.head] = total;
            }
        }
    }
}
