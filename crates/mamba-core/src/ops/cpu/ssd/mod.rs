//! The state-space dual form of Mamba-2 and its gradients; see the README beside `ops/cpu`.

mod ahead;
mod backward;
pub(super) mod copy;
mod forward;
pub(super) mod padded;
mod positions;
mod shared;
mod step;
pub(super) mod tile;

pub use backward::backward;
pub use forward::forward;
pub use step::step;

use super::{
    rows::{Rows, check_len},
    simd::LANES,
};
use std::ops::Range;

/// Positions of a chunk, and from one saved state to the next. Longer chunks have more pairs of positions,
/// shorter ones more states: at 64, the saved states take as much memory as `x` at `d_state` 64.
pub const CHECKPOINT_INTERVAL: usize = 64;

/// Sizes of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SsdDims {
    /// Sequences.
    pub batch: usize,
    /// Positions of each sequence, at least 1.
    pub seq_len: usize,
    /// Heads, a multiple of `ngroups`.
    pub nheads: usize,
    /// Channels of a head, at least 1.
    pub headdim: usize,
    /// Groups, at least 1: the heads `h` with the same `h / (nheads / ngroups)` share `b` and `c`.
    pub ngroups: usize,
    /// States of each channel, at least 1.
    pub d_state: usize,
}

impl SsdDims {
    /// Saved states of one head: `ceil(seq_len / CHECKPOINT_INTERVAL)`.
    pub fn checkpoints(&self) -> usize {
        self.seq_len.div_ceil(CHECKPOINT_INTERVAL)
    }

    /// Values in [`SsdOutputs::checkpoints`].
    pub fn checkpoint_len(&self) -> usize {
        self.checkpoints() * self.state_len()
    }

    /// Values in a state of all heads of all sequences.
    fn state_len(&self) -> usize {
        self.batch * self.nheads * self.headdim * self.d_state
    }

    fn rows(&self) -> usize {
        self.batch * self.seq_len
    }

    fn d_inner(&self) -> usize {
        self.nheads * self.headdim
    }

    fn heads_per_group(&self) -> usize {
        self.nheads / self.ngroups
    }

    /// Columns of head `head` in `x` and `y`.
    fn channels(&self, head: usize) -> Range<usize> {
        head * self.headdim..(head + 1) * self.headdim
    }

    /// Columns of group `group` in `b` and `c`.
    fn states(&self, group: usize) -> Range<usize> {
        group * self.d_state..(group + 1) * self.d_state
    }

    /// The rows (batch and position as one index) of one chunk of one sequence.
    fn chunk_rows(&self, batch: usize, chunk: usize) -> Range<usize> {
        let first = batch * self.seq_len;
        let start = chunk * CHECKPOINT_INTERVAL;
        first + start..first + self.seq_len.min(start + CHECKPOINT_INTERVAL)
    }
}

/// What the operation reads.
///
/// With `dt = clamp(softplus(dt + dt_bias), dt_limit)`, softplus only if `dt_softplus`, for each head:
///
/// ```text
/// h_t = exp(dt_t a) h_(t-1) + dt_t x_t b_t^T
/// y_t = h_t c_t + d x_t
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SsdInputs<'a> {
    /// Sizes of all that follows.
    pub dims: SsdDims,
    /// `[batch, seq_len, nheads, headdim]`, the last two axes contiguous.
    pub x: Rows<'a>,
    /// `[batch, seq_len, nheads]`, step sizes before bias, softplus and limits.
    pub dt: Rows<'a>,
    /// `[nheads]`, usually negative.
    pub a: &'a [f32],
    /// `[batch, seq_len, ngroups, d_state]`, the last two axes contiguous.
    pub b: Rows<'a>,
    /// `[batch, seq_len, ngroups, d_state]`, the last two axes contiguous.
    pub c: Rows<'a>,
    /// `[nheads]` or `[nheads, headdim]`; without it, no direct path from `x` to `y`.
    pub d: Option<&'a [f32]>,
    /// `[nheads]`, added to `dt`.
    pub dt_bias: Option<&'a [f32]>,
    /// Whether `dt` passes through softplus.
    pub dt_softplus: bool,
    /// Least and greatest step size, after softplus. Zero and infinity leave it as it is.
    pub dt_limit: (f32, f32),
    /// `[batch, nheads, headdim, d_state]`; zero without it.
    pub initial_state: Option<&'a [f32]>,
    /// `[batch, seq_len]`: the state is reset before each position whose index differs from the
    /// one before it.
    pub seq_idx: Option<&'a [i32]>,
}

/// What [`forward`] returns.
#[derive(Clone, Debug)]
pub struct SsdOutputs {
    /// `[batch, seq_len, nheads, headdim]`
    pub y: Vec<f32>,
    /// `[batch, nheads, headdim, d_state]`
    pub final_state: Vec<f32>,
    /// `[batch, ceil(seq_len / CHECKPOINT_INTERVAL), nheads, d_state, headdim]`: the states before
    /// positions 0, `CHECKPOINT_INTERVAL`, .., for [`backward`]. The last two axes are the other way
    /// round than in a state.
    pub checkpoints: Option<Vec<f32>>,
}

/// What [`backward`] returns: one gradient an input, in the input's shape without strides.
#[derive(Clone, Debug)]
pub struct SsdGrads {
    /// `[batch, seq_len, nheads, headdim]`
    pub x: Vec<f32>,
    /// `[batch, seq_len, nheads]`
    pub dt: Vec<f32>,
    /// `[nheads]`
    pub a: Vec<f32>,
    /// `[batch, seq_len, ngroups, d_state]`
    pub b: Vec<f32>,
    /// `[batch, seq_len, ngroups, d_state]`
    pub c: Vec<f32>,
    /// As long as the input, if it was there.
    pub d: Option<Vec<f32>>,
    /// `[nheads]`, if the input was there.
    pub dt_bias: Option<Vec<f32>>,
    /// `[batch, nheads, headdim, d_state]`, if the input was there.
    pub initial_state: Option<Vec<f32>>,
}

impl<'a> SsdInputs<'a> {
    /// # Panics
    /// If an input's size does not fit `dims`.
    fn check(&self, op: &str) {
        let SsdDims {
            seq_len,
            nheads,
            headdim,
            ngroups,
            d_state,
            ..
        } = self.dims;
        let rows = self.dims.rows();
        assert!(
            seq_len >= 1 && headdim >= 1 && d_state >= 1,
            "{op}: seq_len, headdim and d_state must be at least 1, got {seq_len}, {headdim}, {d_state}"
        );
        assert!(
            ngroups >= 1 && nheads.is_multiple_of(ngroups),
            "{op}: nheads must be a multiple of ngroups, got {nheads} and {ngroups}"
        );
        self.x.check(op, "x", rows, nheads * headdim);
        self.dt.check(op, "dt", rows, nheads);
        self.b.check(op, "b", rows, ngroups * d_state);
        self.c.check(op, "c", rows, ngroups * d_state);
        check_len(op, "a", self.a, nheads);
        if let Some(d) = self.d {
            assert!(
                d.len() == nheads || d.len() == nheads * headdim,
                "{op}: d needs {nheads} or {} values, got {}",
                nheads * headdim,
                d.len()
            );
        }
        if let Some(bias) = self.dt_bias {
            check_len(op, "dt_bias", bias, nheads);
        }
        if let Some(state) = self.initial_state {
            check_len(op, "initial_state", state, self.dims.state_len());
        }
        if let Some(idx) = self.seq_idx {
            assert!(
                idx.len() == rows,
                "{op}: seq_idx needs {rows} values, got {}",
                idx.len()
            );
        }
    }

    /// A head's initial states, `[headdim, d_state]`.
    fn initial_state(&self, batch: usize, head: usize) -> Option<Rows<'a>> {
        let len = self.dims.headdim * self.dims.d_state;
        let first = (batch * self.dims.nheads + head) * len;
        let state = &self.initial_state?[first..first + len];
        Some(Rows::contiguous(state, self.dims.d_state))
    }

    /// Whether the state is reset before row `row`.
    fn reset(&self, row: usize) -> bool {
        let starts = row.is_multiple_of(self.dims.seq_len);
        self.seq_idx
            .is_some_and(|idx| !starts && idx[row] != idx[row - 1])
    }

    /// A head's skip weights, one a channel: `headdim` of them or a single one for all.
    fn skip(&self, head: usize) -> Option<&'a [f32]> {
        let d = self.d?;
        let len = d.len() / self.dims.nheads;
        Some(&d[head * len..(head + 1) * len])
    }
}

/// `count` rounded up to whole vectors.
pub(super) fn whole_vectors(count: usize) -> usize {
    count.next_multiple_of(LANES)
}

/// Heads in spans of at most `span`, each within one group.
#[derive(Clone, Copy)]
struct Spans {
    dims: SsdDims,
    span: usize,
}

impl Spans {
    fn per_group(&self) -> usize {
        self.dims.heads_per_group().div_ceil(self.span)
    }

    fn tasks(&self) -> usize {
        self.dims.batch * self.dims.ngroups * self.per_group()
    }

    /// The sequence, group, span of the group and heads of a task.
    fn task(&self, task: usize) -> (usize, usize, usize, Range<usize>) {
        let spans = self.per_group();
        let (rest, span) = (task / spans, task % spans);
        let (batch, group) = (rest / self.dims.ngroups, rest % self.dims.ngroups);
        let first = group * self.dims.heads_per_group();
        let end = first + self.dims.heads_per_group();
        let start = first + span * self.span;
        (batch, group, span, start..end.min(start + self.span))
    }
}

#[cfg(test)]
mod tests;
