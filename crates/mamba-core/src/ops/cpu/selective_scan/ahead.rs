//! Asking for memory long before it is needed.

use super::super::{rows::Line, simd::prefetch};

/// The columns, of `N`, that one pass over a chunk asks for, a cache line of each a position.
///
/// Rows of a lane block are too far apart for the machine to see a stream in them. All passes of a
/// chunk share the asking evenly: a core waits for few lines at once, and a burst would hold up
/// everything behind it.
pub struct Ahead<const N: usize> {
    lines: [Option<Line>; N],
    len: usize,
}

impl<const N: usize> Ahead<N> {
    /// The share of pass `turn` of `turns` in `all`.
    #[inline(always)]
    pub fn share(all: [Option<Line>; N], turn: usize, turns: usize) -> Self {
        let mut share = Self {
            lines: [None; N],
            len: 0,
        };
        let mut next = turn;
        while next < N {
            share.lines[share.len] = all[next];
            share.len += 1;
            next += turns;
        }
        share
    }

    /// Asks for row `t` of each column, `offset` columns further on.
    #[inline(always)]
    pub fn ask(&self, t: usize, offset: usize) {
        for line in self.lines[..self.len].iter().flatten() {
            prefetch(line.row(t).wrapping_add(offset));
        }
    }
}
