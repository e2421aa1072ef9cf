//! A bounds-checked front to the `gemm` crate's raw pointers.

use gemm::{Parallelism, gemm};

/// A strided view of a matrix.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` elements, `stride` apart.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(columns <= stride && extent(rows, columns, stride) <= data.len());
        Self {
            data,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Elements from the first to the last of a row-major matrix.
fn extent(rows: usize, columns: usize, stride: usize) -> usize {
    if rows == 0 || columns == 0 {
        0
    } else {
        (rows - 1) * stride + columns
    }
}

/// Writes `lhs * rhs` to `to`, or adds it, on the calling thread alone. The rows of `to` are
/// `stride` apart.
pub fn multiply(to: &mut [f32], stride: usize, add: bool, lhs: Matrix, rhs: Matrix) {
    assert!(lhs.columns == rhs.rows);
    assert!(rhs.columns <= stride && extent(lhs.rows, rhs.columns, stride) <= to.len());
    // SAFETY: the views cover their data (checked when they were made, and above), and `to` is
    // borrowed mutably, so that it overlaps neither.
    unsafe {
        gemm(
            lhs.rows,
            rhs.columns,
            lhs.columns,
            to.as_mut_ptr(),
            1,
            stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
