//! Sums over rows and columns of what the units of a cube hold, in a fixed order.
//!
//! A unit adds what it holds of a row; on tensor cores the four units that share a row of a fragment then add theirs, by
//! shuffles. What is left, a few values a row, goes to shared memory: the row's slots.

use cubecl::prelude::*;

use super::super::tile::{PLANE, Spot, Sums, spot};

/// Edge of a unit's block of sums, and the sums of it.
const BLOCK: usize = 4;
const BLOCK_SUMS: usize = BLOCK * BLOCK;

/// Sums of a fragment that a unit holds: two rows of two.
const FRAGMENT_SUMS: usize = 4;

impl Sums {
    /// Rows of which a unit holds sums, counted once a block.
    pub fn held_rows(&self) -> usize {
        match self.tensor {
            true => 2 * self.down(),
            false => self.values() / BLOCK,
        }
    }

    /// The same of columns.
    pub fn held_columns(&self) -> usize {
        match self.tensor {
            true => 2 * self.across(),
            false => self.values() / BLOCK,
        }
    }

    fn row_held(&self, i: usize) -> usize {
        match self.tensor {
            true => i / FRAGMENT_SUMS / self.across() * 2 + i % FRAGMENT_SUMS / 2,
            false => i / BLOCK,
        }
    }

    fn column_held(&self, i: usize) -> usize {
        match self.tensor {
            true => i / FRAGMENT_SUMS % self.across() * 2 + i % 2,
            false => i / BLOCK_SUMS * BLOCK + i % BLOCK,
        }
    }

    /// A sum of the held row.
    fn of_row(&self, row: usize) -> usize {
        match self.tensor {
            true => row / 2 * self.across() * FRAGMENT_SUMS + row % 2 * 2,
            false => row * BLOCK,
        }
    }

    /// A sum of the held column.
    fn of_column(&self, column: usize) -> usize {
        match self.tensor {
            true => column / 2 * FRAGMENT_SUMS + column % 2,
            false => column / BLOCK * BLOCK_SUMS + column % BLOCK,
        }
    }

    /// Values that a row's sum is left in.
    pub fn row_slots(&self) -> usize {
        match self.tensor {
            true => self.planes_across(),
            false => self.columns / BLOCK,
        }
    }

    pub fn column_slots(&self) -> usize {
        match self.tensor {
            true => self.planes_down(),
            false => self.rows / BLOCK,
        }
    }
}

/// Where the unit's sum `i` belongs, from where its first does: what the compiler would find to be the same each time, it
/// takes long to.
#[cube]
pub(super) fn spot_from(origin: &Spot, #[comptime] i: usize, #[comptime] form: Sums) -> Spot {
    if comptime!(form.tensor) {
        let row = comptime!(i / FRAGMENT_SUMS / form.across() * 16 + i % FRAGMENT_SUMS / 2 * 8);
        let column = comptime!(i / FRAGMENT_SUMS % form.across() * 8 + i % 2);
        Spot {
            row: origin.row + row,
            column: origin.column + column,
            owned: true.runtime(),
        }
    } else if comptime!(i < BLOCK_SUMS) {
        Spot {
            row: origin.row + comptime!(i / BLOCK),
            column: origin.column + comptime!(i % BLOCK),
            owned: origin.owned,
        }
    } else {
        spot(i, form)
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
        if comptime!(form.tensor) {
            sum += plane_shuffle_xor(sum, 1u32);
            sum += plane_shuffle_xor(sum, 2u32);
            if UNIT_POS % 4 == 0 {
                let plane = UNIT_POS as usize / PLANE % slots;
                parts[at + spot.row * slots + plane] = sum;
            }
        } else if spot.owned {
            parts[at + spot.row * slots + spot.column / BLOCK] = sum;
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
        if comptime!(form.tensor) {
            sum += plane_shuffle_xor(sum, 4u32);
            sum += plane_shuffle_xor(sum, 8u32);
            sum += plane_shuffle_xor(sum, 16u32);
            if UNIT_POS as usize % PLANE < 4 {
                let plane = UNIT_POS as usize / PLANE / comptime!(form.planes_across());
                parts[at + spot.column * slots + plane] = sum;
            }
        } else if spot.owned {
            parts[at + spot.column * slots + spot.row / BLOCK] = sum;
        }
    }
}

/// Puts the unit's share of a single sum where [`sum_slots`] finds it, as row 0.
#[cube]
pub(super) fn write_total(
    value: f32,
    parts: &mut Shared<[f32]>, // from `at`: a plane's or a unit's share each
    at: usize,
    #[comptime] tensor: bool,
) {
    if tensor {
        let sum = plane_sum(value);
        if UNIT_POS as usize % PLANE == 0 {
            parts[at + UNIT_POS as usize / PLANE] = sum;
        }
    } else {
        parts[at + UNIT_POS as usize] = value;
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
