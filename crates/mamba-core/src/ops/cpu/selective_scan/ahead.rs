//! Asking for memory long before it is needed.

use super::super::{rows::Line, simd::prefetch};

/// The columns, of `N`, that one pass over a chunk asks for, a cache line of each a position.
///
/// Rows of a lane block are too far apart for the machine to see a stream in them. All passes of a
/// chunk share the asking evenly: a core waits for few lines at once, and a burst would hold up
/// everything behind it.
pub struct Ahead<const N: usize> {
    lines: [Line; N],
    len: usize,
}

impl<const N: usize> Ahead<N> {
    /// The share of pass `turn` of `turns` in `all`; columns that are not there are `None`.
    #[inline(always)]
    pub fn share(all: [Option<Line>; N], turn: usize, turns: usize) -> Self {
        let mut share = Self {
            lines: [Line::NOWHERE; N],
            len: 0,
        };
        for column in all.into_iter().skip(turn).step_by(turns).flatten() {
            share.lines[share.len] = column;
            share.len += 1;
        }
        share
    }

    /// Asks for row `t` of each column, `offset` columns further on.
    #[inline(always)]
    pub fn ask(&self, t: usize, offset: usize) {
        for line in &self.lines[..self.len] {
            prefetch(line.row(t).wrapping_add(offset));
        }
    }
}
