//! The selective scan of Mamba-1 and its gradients; see the README beside `ops/cpu`.

mod ahead;
mod backward;
mod forward;
mod step;

pub use backward::backward;
pub use forward::forward;
pub use step::step;

use super::{
    rows::{Rows, check_len},
    simd::{Arithmetic, LANES, Lanes, Lockstep, Vector, math::exp2},
};
use ahead::Ahead;
use std::ops::Range;

/// Positions from one saved state to the next, and the length of the chunks that both directions
/// walk. At 16, the saved states take as much memory as `u` at `d_state` 16, and what backward needs
/// of four states in a chunk, 23 KiB, leaves room in a first-level cache of 32 or 48 KiB.
pub const CHECKPOINT_INTERVAL: usize = 16;

/// States that run through a chunk together, in registers.
const GROUP: usize = 4;

/// Sizes of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanDims {
    /// Sequences.
    pub batch: usize,
    /// Positions of each sequence, at least 1.
    pub seq_len: usize,
    /// Channels.
    pub d_inner: usize,
    /// States of each channel, 1 to 256.
    pub d_state: usize,
}

impl ScanDims {
    /// Saved states of one channel and state: `ceil(seq_len / CHECKPOINT_INTERVAL)`.
    pub fn checkpoints(&self) -> usize {
        self.seq_len.div_ceil(CHECKPOINT_INTERVAL)
    }

    /// Values in [`ScanOutputs::checkpoints`].
    pub fn checkpoint_len(&self) -> usize {
        self.batch * self.checkpoints() * self.d_state * self.d_inner
    }

    /// Values in [`ScanOutputs::final_state`].
    pub fn state_len(&self) -> usize {
        self.batch * self.d_inner * self.d_state
    }

    fn rows(&self) -> usize {
        self.batch * self.seq_len
    }

    fn blocks(&self) -> usize {
        self.d_inner.div_ceil(LANES)
    }

    /// The channels of lane block `block`; the last block may be narrower than the lanes.
    fn channels(&self, block: usize) -> Range<usize> {
        block * LANES..self.d_inner.min((block + 1) * LANES)
    }
}

/// What the scan reads.
///
/// With `dt = delta + delta_bias`, through softplus if `delta_softplus`:
///
/// ```text
/// h_t = exp(dt_t * a) * h_(t-1) + dt_t * b_t * u_t
/// y_t = (c_t . h_t + d * u_t) * silu(z_t)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ScanInputs<'a> {
    /// Sizes of all that follows.
    pub dims: ScanDims,
    /// `[batch, seq_len, d_inner]`.
    pub u: Rows<'a>,
    /// `[batch, seq_len, d_inner]`, step sizes before bias and softplus.
    pub delta: Rows<'a>,
    /// `[d_inner, d_state]`, usually negative.
    pub a: &'a [f32],
    /// `[batch, seq_len, d_state]`.
    pub b: Rows<'a>,
    /// `[batch, seq_len, d_state]`.
    pub c: Rows<'a>,
    /// `[d_inner]`; without it, no direct path from `u` to `y`.
    pub d: Option<&'a [f32]>,
    /// `[batch, seq_len, d_inner]`; without it, no gate.
    pub z: Option<Rows<'a>>,
    /// `[d_inner]`, added to `delta`.
    pub delta_bias: Option<&'a [f32]>,
    /// Whether `delta` passes through softplus.
    pub delta_softplus: bool,
    /// `[batch, d_inner, d_state]`; zero without it.
    pub initial_state: Option<&'a [f32]>,
    /// `[batch, seq_len]`: the state is reset before each position whose index differs from the
    /// one before it.
    pub seq_idx: Option<&'a [i32]>,
}

/// What [`forward`] returns.
#[derive(Clone, Debug)]
pub struct ScanOutputs {
    /// `[batch, seq_len, d_inner]`.
    pub y: Vec<f32>,
    /// `[batch, d_inner, d_state]`.
    pub final_state: Vec<f32>,
    /// `[batch, ceil(seq_len / CHECKPOINT_INTERVAL), d_state, d_inner]`: the states before
    /// positions 0, `CHECKPOINT_INTERVAL`, .., for [`backward`].
    pub checkpoints: Option<Vec<f32>>,
}

/// What [`backward`] returns: one gradient an input, in the input's shape without strides.
#[derive(Clone, Debug)]
pub struct ScanGrads {
    /// `[batch, seq_len, d_inner]`.
    pub u: Vec<f32>,
    /// `[batch, seq_len, d_inner]`.
    pub delta: Vec<f32>,
    /// `[d_inner, d_state]`.
    pub a: Vec<f32>,
    /// `[batch, seq_len, d_state]`.
    pub b: Vec<f32>,
    /// `[batch, seq_len, d_state]`.
    pub c: Vec<f32>,
    /// `[d_inner]`, if the input was there.
    pub d: Option<Vec<f32>>,
    /// `[batch, seq_len, d_inner]`, if the input was there.
    pub z: Option<Vec<f32>>,
    /// `[d_inner]`, if the input was there.
    pub delta_bias: Option<Vec<f32>>,
    /// `[batch, d_inner, d_state]`, also where no initial state was given: its gradient at zero.
    pub initial_state: Vec<f32>,
}

impl ScanInputs<'_> {
    /// # Panics
    /// If an input's size does not fit `dims`.
    fn check(&self, op: &str) {
        let ScanDims {
            seq_len,
            d_inner,
            d_state,
            ..
        } = self.dims;
        let rows = self.dims.rows();
        assert!(seq_len >= 1, "{op}: seq_len must be at least 1");
        assert!(
            (1..=256).contains(&d_state),
            "{op}: d_state must be in 1..=256, got {d_state}"
        );
        self.u.check(op, "u", rows, d_inner);
        self.delta.check(op, "delta", rows, d_inner);
        self.b.check(op, "b", rows, d_state);
        self.c.check(op, "c", rows, d_state);
        check_len(op, "a", self.a, d_inner * d_state);
        if let Some(z) = self.z {
            z.check(op, "z", rows, d_inner);
        }
        if let Some(d) = self.d {
            check_len(op, "d", d, d_inner);
        }
        if let Some(bias) = self.delta_bias {
            check_len(op, "delta_bias", bias, d_inner);
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

    /// For each position of chunk `rows`, whether the state is reset before it.
    fn resets(&self, rows: Range<usize>, resets: &mut [bool; CHECKPOINT_INTERVAL]) {
        let Some(idx) = self.seq_idx else { return };
        for (row, reset) in rows.zip(resets) {
            *reset = row % self.dims.seq_len != 0 && idx[row] != idx[row - 1];
        }
    }
}

/// Passes of a chunk over its states: full groups, then single states.
#[inline(always)]
fn turns(d_state: usize) -> usize {
    d_state / GROUP + d_state % GROUP
}

/// Which of those passes begins at state `first` of `d_state`.
#[inline(always)]
fn turn(first: usize, d_state: usize) -> usize {
    let grouped = d_state - d_state % GROUP;
    first.min(grouped) / GROUP + first.saturating_sub(grouped)
}

/// The rows (batch and position as one index) of one chunk of one sequence.
fn chunk_rows(dims: &ScanDims, batch: usize, chunk: usize) -> Range<usize> {
    let first = batch * dims.seq_len;
    let start = chunk * CHECKPOINT_INTERVAL;
    first + start..first + dims.seq_len.min(start + CHECKPOINT_INTERVAL)
}

/// Lane block `channels` of a `[d_inner, d_state]` matrix, transposed: one vector a state.
fn load_transposed(matrix: &[f32], d_state: usize, channels: &Range<usize>, to: &mut [Lanes]) {
    to.fill(Lanes::ZERO);
    for (lane, channel) in channels.clone().enumerate() {
        let row = &matrix[channel * d_state..(channel + 1) * d_state];
        for (lanes, &value) in to.iter_mut().zip(row) {
            lanes.0[lane] = value;
        }
    }
}

/// Lane block `channels` of an optional vector of channels, zero without it.
#[inline(always)]
fn load_channels<V: Vector>(vector: Option<&[f32]>, channels: &Range<usize>) -> V {
    match vector {
        Some(values) => V::load_padded(&values[channels.clone()]),
        None => V::zero(),
    }
}

/// `exp(dt * a)` for `G` states, given `a * log2(e)`.
#[inline(always)]
fn decays<V: Vector, const G: usize>(dt: V, scaled_a: [V; G]) -> [V; G] {
    exp2(Lockstep([dt; G]) * Lockstep(scaled_a)).0
}

#[cfg(test)]
mod tests;
