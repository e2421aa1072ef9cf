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
    blocks: Vec<Block>,
    /// Next block, row and column.
    block: usize,
    row: usize,
    column: usize,
}

struct Block {
    first: Line,
    rows: usize,
    width: usize,
}

impl Ahead {
    pub fn clear(&mut self) {
        self.blocks.clear();
        (self.block, self.row, self.column) = (0, 0, 0);
    }

    /// Adds `rows` rows of `width` values.
    pub fn add(&mut self, first: Line, rows: usize, width: usize) {
        if rows > 0 {
            self.blocks.push(Block { first, rows, width });
        }
    }

    /// Asks for the next `count` lines.
    #[inline(always)]
    pub fn ask(&mut self, count: usize) {
        let Some(block) = self.blocks.get(self.block) else {
            return;
        };
        let (mut row, mut column) = (self.row, self.column);
        for _ in 0..count {
            if row < block.rows {
                prefetch(block.first.offset(column).row(row));
                column += LANES;
                if column >= block.width {
                    (row, column) = (row + 1, 0);
                }
            }
        }
        if row == block.rows {
            self.block += 1;
            row = 0;
        }
        (self.row, self.column) = (row, column);
    }
}
