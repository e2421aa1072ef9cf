//! Asking for memory long before it is needed.

use super::super::{rows::Line, simd::prefetch};

/// Most columns of one pass.
const MOST: usize = 8;

/// The columns that one pass over a lane block's chunk asks for, a cache line of each a position.
///
/// Rows of a lane block are too far apart for the machine to see a stream in them. All passes of a
/// chunk share the asking evenly: a core waits for few lines at once, and a burst would hold up
/// everything behind it.
pub struct Ahead {
    lines: [Option<Line>; MOST],
    len: usize,
}

impl Ahead {
    /// The share of pass `turn` of `turns` in `all`.
    #[inline(always)]
    pub fn share<const N: usize>(all: [Option<Line>; N], turn: usize, turns: usize) -> Self {
        const { assert!(N <= MOST) };
        let mut share = Self {
            lines: [None; MOST],
            len: 0,
        };
        for line in all.into_iter().skip(turn).step_by(turns) {
            share.lines[share.len] = line;
            share.len += 1;
        }
        share
    }

    /// Asks for row `t` of each column.
    #[inline(always)]
    pub fn ask(&self, t: usize) {
        for line in self.lines[..self.len].iter().flatten() {
            prefetch(line.row(t));
        }
    }
}
