//! A bounds-checked front to the `gemm` crate's raw pointers.

use super::rows::Rows;
use gemm::{Parallelism, gemm};
use std::ops::Range;

/// A strided view of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` elements, `stride` apart.
    ///
    /// # Panics
    /// If `data` ends before the last row does.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(columns <= stride, "matrix: rows overlap");
        Self::strided(data, [rows, columns], [stride, 1])
    }

    /// `shape[0]` rows and `shape[1]` columns, `strides[0]` and `strides[1]` apart.
    ///
    /// # Panics
    /// If `data` ends before the matrix does.
    pub fn strided(data: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> Self {
        let [rows, columns] = shape;
        let [row_stride, column_stride] = strides;
        assert!(
            extent(shape, strides) <= data.len(),
            "matrix: {rows} x {columns} with strides {strides:?} does not fit {} values",
            data.len()
        );
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride,
        }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The same values, rows as columns.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Its rows, if each lies in one piece.
    pub(super) fn as_rows(&self) -> Option<Rows<'a>> {
        (self.column_stride == 1).then_some(Rows {
            data: self.data,
            row_stride: self.row_stride,
        })
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn row_range(self, rows: Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        Self {
            data: &self.data[rows.start * self.row_stride..],
            rows: rows.len(),
            ..self
        }
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// If there are no such columns.
    pub fn column_range(self, columns: Range<usize>) -> Self {
        self.transposed().row_range(columns).transposed()
    }
}

/// Elements from the first to the last of a matrix.
fn extent([rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> usize {
    if rows == 0 || columns == 0 {
        0
    } else {
        (rows - 1) * row_stride + (columns - 1) * column_stride + 1
    }
}

/// Writes `lhs * rhs` to `to`, or adds it, on the calling thread alone. The rows of `to` are
/// `stride` apart.
pub fn multiply(to: &mut [f32], stride: usize, add: bool, lhs: Matrix, rhs: Matrix) {
    assert!(rhs.columns <= stride);
    assert!(extent([lhs.rows, rhs.columns], [stride, 1]) <= to.len());
    // SAFETY: the result fits `to`, which is borrowed mutably.
    unsafe { multiply_into(to.as_mut_ptr(), stride, add, lhs, rhs) }
}

/// [`multiply`] to a block of memory which, unless it is added to, need not be initialised.
///
/// # Safety
/// `to` must be valid for writing `lhs.rows` rows of `rhs.columns` values, `stride` apart, and nothing else may
/// access them meanwhile.
pub unsafe fn multiply_into(to: *mut f32, stride: usize, add: bool, lhs: Matrix, rhs: Matrix) {
    assert!(lhs.columns == rhs.rows);
    // SAFETY: the views cover their data (checked when they were made), and `to` is as large as
    // the caller says.
    unsafe {
        gemm(
            lhs.rows,
            rhs.columns,
            lhs.columns,
            to,
            1,
            stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            // What `to` is multiplied by: with an empty inner axis `gemm` writes zeros for a zero only.
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
