//! Asking for memory long before it is needed.

use super::super::{rows::Line, simd::prefetch};

/// The columns that one pass over a chunk asks for, a cache line of each a position.
///
/// Rows of a lane block are too far apart for the machine to see a stream in them. All passes of a
/// chunk share the asking evenly: a core waits for few lines at once, and a burst would hold up
/// everything behind it. With so few states that a pass's share is more than `N`, the rest is not asked
/// for: counting at every position would cost more.
pub struct Ahead<const N: usize> {
    lines: [Line; N],
}

impl<const N: usize> Ahead<N> {
    /// The share of pass `turn` of `turns` in `all`, the columns that there are.
    #[inline(always)]
    pub fn share(all: impl Iterator<Item = Line>, turn: usize, turns: usize) -> Self {
        let mut lines = [Line::HERE; N];
        for (line, column) in lines.iter_mut().zip(all.skip(turn).step_by(turns)) {
            *line = column;
        }
        Self { lines }
    }

    /// The same, `columns` further on.
    #[inline(always)]
    pub fn offset(&self, columns: usize) -> Self {
        Self {
            lines: self.lines.map(|line| line.offset(columns)),
        }
    }

    /// Asks for row `t` of each column.
    #[inline(always)]
    pub fn ask(&self, t: usize) {
        for line in &self.lines {
            prefetch(line.row(t));
        }
    }
}
