//! Between strided rows and scratch, as they are and transposed.

use super::super::rows::{Columns, Rows};
use super::super::simd::{Kernel, LANES, Vector, dispatch};
use super::{padded::Padded, whole_vectors};
use std::ops::Range;

/// Reads columns `columns` of rows `rows` into scratch: as they are, transposed, or both. Rows that
/// round up to whole vectors become zero.
pub fn load(
    from: Rows,
    rows: Range<usize>,
    columns: Range<usize>,
    plain: Option<&mut Padded>,
    transposed: Option<&mut Padded>,
) {
    dispatch(Load {
        from,
        rows,
        columns,
        plain,
        transposed,
    });
}

struct Load<'a> {
    from: Rows<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    plain: Option<&'a mut Padded>,
    transposed: Option<&'a mut Padded>,
}

impl Kernel for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let (rows, columns) = (self.rows.clone(), self.columns.clone());
        for first in (0..whole_vectors(rows.len())).step_by(LANES) {
            for vector in 0..columns.len().div_ceil(LANES) {
                let start = columns.start + vector * LANES;
                let here = start..columns.end.min(start + LANES);
                let mut block = [V::zero(); LANES];
                for i in 0..LANES {
                    if rows.start + first + i < rows.end {
                        let row = self.from.get(rows.start + first + i, here.clone());
                        block[i] = V::load_padded(row);
                    }
                }
                if let Some(to) = &mut self.plain {
                    for i in 0..LANES {
                        block[i].store(&mut to.row_mut(first + i)[vector]);
                    }
                }
                if let Some(to) = &mut self.transposed {
                    let block = V::transpose(block);
                    for i in 0..LANES {
                        let row = to.row_mut(vector * LANES + i);
                        block[i].store(&mut row[first / LANES]);
                    }
                }
            }
        }
    }
}

/// Writes the transpose of `from`, plus `plus`, to columns `columns` of rows `rows`.
///
/// # Safety
/// No other thread may access the same elements meanwhile.
pub unsafe fn store_transposed(
    from: &Padded,
    plus: Option<&Padded>,
    to: &Columns,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    dispatch(StoreTransposed {
        from,
        plus,
        to: to.block(&rows, &columns),
        stride: to.width(),
        rows: rows.len(),
        columns: columns.len(),
    });
}

struct StoreTransposed<'a> {
    from: &'a Padded,
    plus: Option<&'a Padded>,
    to: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
}

impl Kernel for StoreTransposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for first in (0..self.rows).step_by(LANES) {
            for start in (0..self.columns).step_by(LANES) {
                let mut block = [V::zero(); LANES];
                for i in 0..LANES {
                    block[i] = V::load(&self.from.row(start + i)[first / LANES]);
                }
                block = V::transpose(block);
                for i in 0..LANES.min(self.rows - first) {
                    if let Some(plus) = self.plus {
                        block[i] = block[i] + V::load(&plus.row(first + i)[start / LANES]);
                    }
                    let count = LANES.min(self.columns - start);
                    // SAFETY: inside the block that `store_transposed` was given, which is its
                    // caller's alone.
                    unsafe {
                        let to = self.to.add((first + i) * self.stride + start);
                        block[i].write_first(to, count);
                    }
                }
            }
        }
    }
}

/// Writes `from` to columns `columns` of rows `rows`.
///
/// # Safety
/// As [`store_transposed`].
pub unsafe fn store(from: &Padded, to: &Columns, rows: Range<usize>, columns: Range<usize>) {
    let (first, stride) = (to.block(&rows, &columns), to.width());
    for row in 0..rows.len() {
        let from = &from.values()[row * from.stride()..][..columns.len()];
        // SAFETY: inside the block, which is the caller's alone.
        unsafe {
            let to = first.add(row * stride);
            to.copy_from_nonoverlapping(from.as_ptr(), from.len());
        }
    }
}
