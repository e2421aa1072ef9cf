//! Between strided rows and scratch, as they are and transposed.

use super::super::rows::{Columns, Rows};
use super::super::simd::{Kernel, LANES, Lanes, Vector, dispatch};
use super::{padded::Padded, whole_vectors};
use std::ops::Range;

/// Reads columns `columns` of rows `rows` into scratch. Rows that round them up become zero.
pub fn load(from: Rows, rows: Range<usize>, columns: Range<usize>, to: &mut Padded) {
    dispatch(Load {
        from,
        rows,
        columns,
        to,
    });
}

struct Load<'a> {
    from: Rows<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    to: &'a mut Padded,
}

impl Kernel for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let len = self.rows.len();
        for (i, row) in self.rows.enumerate() {
            let from = self.from.get(row, self.columns.clone());
            let (whole, rest) = from.as_chunks();
            let to = &mut self.to.row_mut(i)[..from.len().div_ceil(LANES)];
            for (from, to) in whole.iter().zip(&mut *to) {
                V::load_array(from).store(to);
            }
            if !rest.is_empty() {
                V::load_padded(rest).store(&mut to[whole.len()]);
            }
        }
        for i in len..whole_vectors(len) {
            self.to.row_mut(i).fill(Lanes::ZERO);
        }
    }
}

/// Rows become columns, as many as there are in `rows` rounded up to whole vectors.
pub fn transpose(from: &Padded, rows: usize, to: &mut Padded) {
    dispatch(Transpose { from, rows, to });
}

struct Transpose<'a> {
    from: &'a Padded,
    rows: usize,
    to: &'a mut Padded,
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for first in (0..self.rows).step_by(LANES) {
            for vector in 0..self.from.vectors() {
                let mut block = [V::zero(); LANES];
                for i in 0..LANES {
                    block[i] = V::load(&self.from.row(first + i)[vector]);
                }
                block = V::transpose(block);
                for i in 0..LANES {
                    let row = self.to.row_mut(vector * LANES + i);
                    block[i].store(&mut row[first / LANES]);
                }
            }
        }
    }
}

/// [`load`], transposed.
pub fn load_transposed(from: Rows, rows: Range<usize>, columns: Range<usize>, to: &mut Padded) {
    let len = rows.len();
    let mut plain = Padded::zeros(len, columns.len());
    load(from, rows, columns, &mut plain);
    transpose(&plain, len, to);
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
                for i in 0..LANES {
                    if first + i >= self.rows {
                        break;
                    }
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
