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

    /// Columns `columns`, at most [`LANES`] of them, of rows `rows`, at least one.
    #[inline(always)]
    pub(super) fn column(&self, rows: &Range<usize>, columns: &Range<usize>) -> Column<'a> {
        assert!(rows.start < rows.end && columns.len() <= LANES);
        let start = rows.start * self.row_stride + columns.start;
        let end = (rows.end - 1) * self.row_stride + columns.end;
        Column {
            first: self.data[start..end].as_ptr(),
            row_stride: self.row_stride,
            rows: rows.len(),
            width: columns.len(),
            _borrow: PhantomData,
        }
    }

    /// Where column `column` of row `row` is, and of the rows after it; they need not be there.
    #[inline(always)]
    pub(super) fn line(&self, row: usize, column: usize) -> Line {
        Line::new(self.data.as_ptr(), row, column, self.row_stride)
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

/// A lane block of consecutive rows. That it lies in its buffer is checked once, not row by row.
#[derive(Clone, Copy)]
pub(super) struct Column<'a> {
    first: *const f32,
    row_stride: usize,
    rows: usize,
    width: usize,
    _borrow: PhantomData<&'a [f32]>,
}

impl Column<'_> {
    /// The value in row `row` and column `column`.
    #[inline(always)]
    pub fn get(&self, row: usize, column: usize) -> f32 {
        assert!(row < self.rows && column < self.width);
        // SAFETY: there by the assertion and by `Rows::column`.
        unsafe { *self.first.add(row * self.row_stride + column) }
    }

    /// The `N` rows from `first`; lanes past the columns are zero.
    #[inline(always)]
    pub fn load<V: Vector, const N: usize>(&self, first: usize) -> [V; N] {
        assert!(first + N <= self.rows);
        let mut vectors = [V::zero(); N];
        for i in 0..N {
            // SAFETY: the rows are there by the assertion, their columns by `Rows::column`.
            vectors[i] = unsafe {
                let from = self.first.add((first + i) * self.row_stride);
                V::read_first(from, self.width)
            };
        }
        vectors
    }
}

/// Addresses of one column, to ask for ahead of their use, not to access.
#[derive(Clone, Copy)]
pub(super) struct Line {
    first: *const f32,
    row_stride: usize,
}

impl Line {
    /// Memory that is always near.
    pub const HERE: Self = Self {
        first: &0.0,
        row_stride: 0,
    };

    #[inline(always)]
    fn new(data: *const f32, row: usize, column: usize, row_stride: usize) -> Self {
        let offset = row.wrapping_mul(row_stride).wrapping_add(column);
        Self {
            first: data.wrapping_add(offset),
            row_stride,
        }
    }

    /// The same rows, `columns` further on.
    #[inline(always)]
    pub fn offset(self, columns: usize) -> Self {
        Self {
            first: self.first.wrapping_add(columns),
            ..self
        }
    }

    /// The address `row` rows after the first.
    #[inline(always)]
    pub fn row(&self, row: usize) -> *const f32 {
        self.first.wrapping_add(row * self.row_stride)
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

/// What tasks write an [`Output`], or memory that they change, through.
pub(super) struct Columns<'a> {
    data: *mut f32,
    len: usize,
    width: usize,
    _borrow: PhantomData<&'a mut [f32]>,
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

/// What [`Columns`] are to an output, to a lane block of some of its rows.
pub(super) struct OutputColumn<'a> {
    first: *mut f32,
    row_stride: usize,
    rows: usize,
    width: usize,
    _borrow: PhantomData<&'a mut Output>,
}

impl OutputColumn<'_> {
    /// Writes the rows from `first`; lanes past the columns are dropped.
    ///
    /// # Safety
    /// No other thread may access the same elements meanwhile.
    #[inline(always)]
    pub unsafe fn store<V: Vector, const N: usize>(&self, first: usize, vectors: [V; N]) {
        assert!(first + N <= self.rows);
        for i in 0..N {
            // SAFETY: the rows are there by the assertion, their columns by `Columns::column`, and
            // nobody else is by the contract.
            unsafe {
                let to = self.first.add((first + i) * self.row_stride);
                vectors[i].write_first(to, self.width);
            }
        }
    }
}

impl<'a> Columns<'a> {
    /// Rows of `width` elements that follow one another in `data`, to be changed in place.
    pub fn over(data: &'a mut [f32], width: usize) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            width,
            _borrow: PhantomData,
        }
    }

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

    /// As [`Rows::line`].
    #[inline(always)]
    pub fn line(&self, row: usize, column: usize) -> Line {
        Line::new(self.data, row, column, self.width)
    }

    /// Columns `columns`, at most [`LANES`] of them, of rows `rows`, at least one.
    #[inline(always)]
    pub fn column(&self, rows: &Range<usize>, columns: &Range<usize>) -> OutputColumn<'a> {
        assert!(rows.start < rows.end && rows.end <= self.len / self.width.max(1));
        assert!(columns.len() <= LANES && columns.end <= self.width);
        OutputColumn {
            // SAFETY: the row and the column are there by the assertions.
            first: unsafe { self.data.add(rows.start * self.width + columns.start) },
            row_stride: self.width,
            rows: rows.len(),
            width: columns.len(),
            _borrow: PhantomData,
        }
    }

    /// Writes `value` to columns `columns` of row `row`, at most [`LANES`] of them; lanes past them
    /// are dropped.
    ///
    /// # Safety
    /// No other thread may access the same elements meanwhile.
    #[inline(always)]
    pub unsafe fn write<V: Vector>(&self, row: usize, columns: &Range<usize>, value: V) {
        // SAFETY: by the contract.
        unsafe { self.column(&(row..row + 1), columns).store(0, [value]) };
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
