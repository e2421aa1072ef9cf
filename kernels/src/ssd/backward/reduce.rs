//! Sums over rows and columns of what the units of a cube hold, in a fixed order.
//!
//! A unit adds what it holds of a row; the four units that share a row of a fragment then add theirs, by shuffles. What
//! is left, a value a plane, goes to shared memory: the row's slots.

use cubecl::prelude::*;

use super::super::tile::{PLANE, Spot, Sums, spot};

/// Sums of a fragment that a unit holds: two rows of two.
const FRAGMENT_SUMS: usize = 4;

impl Sums {
    /// Rows of which a unit holds sums.
    pub fn held_rows(&self) -> usize {
        2 * self.down()
    }

    /// The same of columns.
    pub fn held_columns(&self) -> usize {
        2 * self.across()
    }

    fn row_held(&self, i: usize) -> usize {
        i / FRAGMENT_SUMS / self.across() * 2 + i % FRAGMENT_SUMS / 2
    }

    fn column_held(&self, i: usize) -> usize {
        i / FRAGMENT_SUMS % self.across() * 2 + i % 2
    }

    /// A sum of the held row.
    fn of_row(&self, row: usize) -> usize {
        row / 2 * self.across() * FRAGMENT_SUMS + row % 2 * 2
    }

    /// A sum of the held column.
    fn of_column(&self, column: usize) -> usize {
        column / 2 * FRAGMENT_SUMS + column % 2
    }

    /// Values that a row's sum is left in.
    pub fn row_slots(&self) -> usize {
        self.planes_across()
    }

    pub fn column_slots(&self) -> usize {
        self.planes_down()
    }
}

/// Where the unit's sum `i` belongs, from where its first does: what the compiler would find to be the same each time, it
/// takes long to.
#[cube]
pub(super) fn spot_from(origin: &Spot, #[comptime] i: usize, #[comptime] form: Sums) -> Spot {
    let row = comptime!(i / FRAGMENT_SUMS / form.across() * 16 + i % FRAGMENT_SUMS / 2 * 8);
    let column = comptime!(i / FRAGMENT_SUMS % form.across() * 8 + i % 2);
    Spot {
        row: origin.row + row,
        column: origin.column + column,
        owned: true.runtime(),
    }
}

/// Adds the unit's values to its rows' sums.
#[cube]
pub(super) fn add_to_rows(values: &Array<f32>, rows: &mut Array<f32>, #[comptime] form: Sums) {
    #[unroll]
    for i in 0..comptime!(form.values()) {
        rows[comptime!(form.row_held(i))] += values[i];
    }
}

#[cube]
pub(super) fn add_to_columns(
    values: &Array<f32>,
    columns: &mut Array<f32>,
    #[comptime] form: Sums,
) {
    #[unroll]
    for i in 0..comptime!(form.values()) {
        columns[comptime!(form.column_held(i))] += values[i];
    }
}

#[cube]
pub(super) fn zeros(values: &mut Array<f32>, #[comptime] len: usize) {
    #[unroll]
    for i in 0..len {
        values[i] = 0.0f32;
    }
}

/// Puts the units' sums of rows where [`sum_slots`] finds them.
#[cube]
pub(super) fn write_rows(
    rows: &Array<f32>,
    parts: &mut Shared<[f32]>, // from `at`: [rows, row slots]
    at: usize,
    #[comptime] form: Sums,
) {
    let slots = comptime!(form.row_slots());
    #[unroll]
    for k in 0..comptime!(form.held_rows()) {
        let spot = spot(comptime!(form.of_row(k)), form);
        let mut sum = rows[k];
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        if UNIT_POS % 4 == 0 {
            let plane = UNIT_POS as usize / PLANE % slots;
            parts[at + spot.row * slots + plane] = sum;
        }
    }
}

/// The same of columns: `[columns, column slots]`.
#[cube]
pub(super) fn write_columns(
    columns: &Array<f32>,
    parts: &mut Shared<[f32]>,
    at: usize,
    #[comptime] form: Sums,
) {
    let slots = comptime!(form.column_slots());
    #[unroll]
    for k in 0..comptime!(form.held_columns()) {
        let spot = spot(comptime!(form.of_column(k)), form);
        let mut sum = columns[k];
        sum += plane_shuffle_xor(sum, 4u32);
        sum += plane_shuffle_xor(sum, 8u32);
        sum += plane_shuffle_xor(sum, 16u32);
        if UNIT_POS as usize % PLANE < 4 {
            let plane = UNIT_POS as usize / PLANE / comptime!(form.planes_across());
            parts[at + spot.column * slots + plane] = sum;
        }
    }
}

/// Puts the unit's share of a single sum where [`sum_slots`] finds it, as row 0.
#[cube]
pub(super) fn write_total(
    value: f32,
    parts: &mut Shared<[f32]>, // from `at`: a plane's share each
    at: usize,
) {
    let sum = plane_sum(value);
    if UNIT_POS as usize % PLANE == 0 {
        parts[at + UNIT_POS as usize / PLANE] = sum;
    }
}

/// The sum of a row or column that was written in `slots` parts.
#[cube]
pub(super) fn sum_slots(
    parts: &Shared<[f32]>,
    at: usize,
    row: usize,
    #[comptime] slots: usize,
) -> f32 {
    let mut sum = parts[at + row * slots];
    for slot in 1..slots {
        sum += parts[at + row * slots + slot];
    }
    sum
}
