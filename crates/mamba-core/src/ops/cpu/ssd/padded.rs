//! Scratch matrices in whole vectors.

use super::super::simd::{LANES, Lanes};
use super::whole_vectors;

/// A row-major matrix whose sizes are rounded up to whole vectors, so that loops over it need no
/// remainders. What lies past the matrix is zero, or a product with such zeros.
pub struct Padded {
    data: Vec<Lanes>,
    rows: usize,
    vectors: usize,
}

impl Padded {
    pub fn zeros(rows: usize, columns: usize) -> Self {
        let (rows, vectors) = (whole_vectors(rows), columns.div_ceil(LANES));
        Self {
            data: vec![Lanes::ZERO; rows * vectors],
            rows,
            vectors,
        }
    }

    /// Rows, with those that round them up.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Vectors of a row.
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// Values from the beginning of a row to that of the next one.
    pub fn stride(&self) -> usize {
        self.vectors * LANES
    }

    pub fn values(&self) -> &[f32] {
        Lanes::values(&self.data)
    }

    #[inline(always)]
    pub fn row(&self, row: usize) -> &[Lanes] {
        &self.data[row * self.vectors..(row + 1) * self.vectors]
    }

    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [Lanes] {
        &mut self.data[row * self.vectors..(row + 1) * self.vectors]
    }

    pub fn vectors_of_all(&self) -> &[Lanes] {
        &self.data
    }

    pub fn clear(&mut self) {
        self.data.fill(Lanes::ZERO);
    }
}
