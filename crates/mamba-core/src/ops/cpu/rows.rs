//! Views of row-major matrices: strided for reading, shared between threads for writing.

use super::simd::{LANES, Lanes, Vector};
use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

/// Rows of equal width inside a larger row-major buffer, for instance one half of a projection's
/// output. Row `r` begins at `data[r * row_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From the first element of the first row to, at least, the last of the last row.
    pub data: &'a [f32],
    /// Elements from the beginning of a row to that of the next one.
    pub row_stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `width` elements that follow one another without a gap.
    pub fn contiguous(data: &'a [f32], width: usize) -> Self {
        Self {
            data,
            row_stride: width,
        }
    }

    /// Row `row`, from column `columns.start` to `columns.end`.
    #[inline(always)]
    pub fn get(&self, row: usize, columns: Range<usize>) -> &'a [f32] {
        let start = row * self.row_stride;
        &self.data[start + columns.start..start + columns.end]
    }

    /// # Panics
    /// If the data does not hold `rows` rows of `width` elements.
    pub(super) fn check(&self, op: &str, name: &str, rows: usize, width: usize) {
        assert!(
            self.row_stride >= width,
            "{op}: rows of {name} overlap: width {width}, stride {}",
            self.row_stride
        );
        let needed = rows
            .checked_sub(1)
            .map_or(0, |last| last * self.row_stride + width);
        assert!(
            self.data.len() >= needed,
            "{op}: {name} needs {needed} values, got {}",
            self.data.len()
        );
    }
}

/// # Panics
/// If `data` does not have `expected` values.
pub(super) fn check_len(op: &str, name: &str, data: &[f32], expected: usize) {
    assert!(
        data.len() == expected,
        "{op}: {name} needs {expected} values, got {}",
        data.len()
    );
}

/// A row-major output, not initialised, whose rows several tasks write at once, each in columns of
/// its own. Zeroing first would take as long as a good part of the work.
pub(super) struct Output {
    data: Box<[MaybeUninit<f32>]>,
    width: usize,
}

/// What tasks write an [`Output`] through.
pub(super) struct Columns<'a> {
    data: *mut f32,
    len: usize,
    width: usize,
    _borrow: PhantomData<&'a mut Output>,
}

// SAFETY: the only access is `write`, whose callers keep their columns disjoint.
unsafe impl Send for Columns<'_> {}
unsafe impl Sync for Columns<'_> {}

impl Output {
    pub fn new(rows: usize, width: usize) -> Self {
        Self {
            data: Box::new_uninit_slice(rows * width),
            width,
        }
    }

    pub fn columns(&mut self) -> Columns<'_> {
        Columns {
            data: self.data.as_mut_ptr().cast(),
            len: self.data.len(),
            width: self.width,
            _borrow: PhantomData,
        }
    }

    /// # Safety
    /// Every element must have been written.
    pub unsafe fn finish(self) -> Vec<f32> {
        // SAFETY: by the contract.
        unsafe { self.data.assume_init() }.into_vec()
    }
}

impl Columns<'_> {
    /// Elements from the beginning of a row to that of the next one.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Where a block of rows and columns begins. It lies inside the output; who writes through the
    /// pointer keeps to the block, and shares it with no other thread.
    pub fn block(&self, rows: &Range<usize>, columns: &Range<usize>) -> *mut f32 {
        assert!(columns.end <= self.width && rows.end * self.width <= self.len);
        // SAFETY: in bounds by the assertion.
        unsafe { self.data.add(rows.start * self.width + columns.start) }
    }

    /// Writes `value` to columns `columns` of row `row`, at most [`LANES`] of them; lanes past them
    /// are dropped.
    ///
    /// # Safety
    /// No other thread may access the same elements meanwhile.
    #[inline(always)]
    pub unsafe fn write<V: Vector>(&self, row: usize, columns: &Range<usize>, value: V) {
        let start = row * self.width + columns.start;
        assert!(columns.end <= self.width && start + columns.len() <= self.len);
        // SAFETY: in bounds by the assertion, unaliased by the contract.
        unsafe {
            let to = self.data.add(start);
            if columns.len() == LANES {
                value.write(to);
            } else {
                let mut lanes = Lanes::ZERO;
                value.store(&mut lanes);
                to.copy_from_nonoverlapping(lanes.0.as_ptr(), columns.len().min(LANES));
            }
        }
    }

    /// Writes lane block `channels` of row `row`, a matrix `[channels, from.len()]`, from one
    /// vector a column of that matrix.
    ///
    /// # Safety
    /// As [`write`](Self::write).
    pub unsafe fn write_transposed(&self, row: usize, channels: &Range<usize>, from: &[Lanes]) {
        let start = row * self.width + channels.start * from.len();
        let end = start + channels.len() * from.len();
        assert!(channels.len() <= LANES && end <= self.len);
        for lane in 0..channels.len() {
            for (column, lanes) in from.iter().enumerate() {
                // SAFETY: in bounds by the assertion, unaliased by the contract.
                unsafe {
                    self.data
                        .add(start + lane * from.len() + column)
                        .write(lanes.0[lane]);
                }
            }
        }
    }
}
