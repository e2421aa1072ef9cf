//! Asking for memory long before it is needed.

use super::super::{
    rows::Line,
    simd::{LANES, prefetch},
};

/// Cache lines that the next head's chunk will read and write.
///
/// A head's rows are too far apart for the machine to see a stream in them. Products, which wait for
/// no memory, ask for a few lines a tile: a core waits for few at once, and a burst would hold up
/// everything behind it. Where products are too small for all lines, the rest is not asked for.
#[derive(Default)]
pub struct Ahead {
    lines: Vec<*const f32>,
    asked: usize,
}

impl Ahead {
    pub fn clear(&mut self) {
        self.lines.clear();
        self.asked = 0;
    }

    /// Adds `rows` rows of `width` values.
    pub fn add(&mut self, first: Line, rows: usize, width: usize) {
        for row in 0..rows {
            for column in (0..width).step_by(LANES) {
                self.lines.push(first.offset(column).row(row));
            }
        }
    }

    /// Asks for the next `count` lines.
    #[inline(always)]
    pub fn ask(&mut self, count: usize) {
        let end = self.lines.len().min(self.asked + count);
        for &line in &self.lines[self.asked..end] {
            prefetch(line);
        }
        self.asked = end;
    }
}
