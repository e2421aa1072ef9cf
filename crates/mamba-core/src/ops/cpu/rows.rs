//! Views of row-major matrices: strided for reading, shared between threads for writing.

use std::{marker::PhantomData, ops::Range};

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
        Self { data, row_stride: width }
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
        let needed = rows.checked_sub(1).map_or(0, |last| last * self.row_stride + width);
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
    assert!(data.len() == expected, "{op}: {name} needs {expected} values, got {}", data.len());
}

/// A row-major output whose rows several tasks write at once, each in columns of its own.
pub(super) struct SharedRows<'a> {
    data: *mut f32,
    len: usize,
    width: usize,
    _borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `columns`, whose caller keeps the pieces disjoint.
unsafe impl Send for SharedRows<'_> {}
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    pub fn new(data: &'a mut [f32], width: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), width, _borrow: PhantomData }
    }

    /// Columns `columns` of row `row`.
    ///
    /// # Safety
    /// No other slice of the same elements may be alive.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn columns(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let start = row * self.width + columns.start;
        assert!(columns.end <= self.width && start + columns.len() <= self.len);
        // SAFETY: in bounds by the assertion, unaliased by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), columns.len()) }
    }
}
