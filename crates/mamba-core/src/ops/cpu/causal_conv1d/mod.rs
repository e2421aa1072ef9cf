//! Depthwise causal convolution over positions, with an optional SiLU.

mod backward;
mod forward;

pub use backward::backward;
pub use forward::forward;

use super::{
    rows::{Rows, check_len},
    simd::{LANES, Lanes, Vector},
};
use std::ops::Range;

/// Positions of one tile: long enough for the `width - 1` positions that tiles share to cost
/// little, short enough for a tile's rows to stay in the second-level cache.
const TILE: usize = 64;

/// What the convolution reads.
///
/// ```text
/// y_t = silu(bias + sum_w weight[w] * x_(t - (width - 1) + w))
/// ```
///
/// Positions before the first come from the initial window. With `seq_idx`, a position counts only
/// within the run of equal indices that `t` is in; the initial window belongs to the first run.
#[derive(Clone, Copy, Debug)]
pub struct ConvInputs<'a> {
    /// Sequences.
    pub batch: usize,
    /// Positions of each sequence, at least 1.
    pub seq_len: usize,
    /// Channels.
    pub channels: usize,
    /// Taps of each channel, at least 1.
    pub width: usize,
    /// `[batch, seq_len, channels]`.
    pub x: Rows<'a>,
    /// `[channels, width]`, oldest tap first.
    pub weight: &'a [f32],
    /// `[channels]`.
    pub bias: Option<&'a [f32]>,
    /// `[batch, width - 1, channels]`, oldest first: the positions before the first; zero without it.
    pub initial_window: Option<&'a [f32]>,
    /// `[batch, seq_len]`.
    pub seq_idx: Option<&'a [i32]>,
    /// Whether the sum passes through SiLU.
    pub silu: bool,
}

/// What [`forward`] returns.
#[derive(Clone, Debug)]
pub struct ConvOutputs {
    /// `[batch, seq_len, channels]`.
    pub y: Vec<f32>,
    /// `[batch, width - 1, channels]`, oldest first: what continues the sequence. Positions of
    /// earlier runs than the last position's are zero.
    pub final_window: Vec<f32>,
}

/// What [`backward`] returns: one gradient an input, in the input's shape without strides.
#[derive(Clone, Debug)]
pub struct ConvGrads {
    /// `[batch, seq_len, channels]`.
    pub x: Vec<f32>,
    /// `[channels, width]`.
    pub weight: Vec<f32>,
    /// `[channels]`, if the input was there.
    pub bias: Option<Vec<f32>>,
    /// `[batch, width - 1, channels]`, also where no window was given: its gradient at zero.
    pub initial_window: Vec<f32>,
}

impl ConvInputs<'_> {
    /// # Panics
    /// If an input's size does not fit the others.
    fn check(&self, op: &str) {
        let Self {
            batch,
            seq_len,
            channels,
            width,
            ..
        } = *self;
        let rows = batch * seq_len;
        assert!(seq_len >= 1, "{op}: seq_len must be at least 1");
        assert!(width >= 1, "{op}: width must be at least 1");
        self.x.check(op, "x", rows, channels);
        check_len(op, "weight", self.weight, channels * width);
        if let Some(bias) = self.bias {
            check_len(op, "bias", bias, channels);
        }
        if let Some(window) = self.initial_window {
            check_len(op, "initial_window", window, batch * (width - 1) * channels);
        }
        if let Some(idx) = self.seq_idx {
            assert!(
                idx.len() == rows,
                "{op}: seq_idx needs {rows} values, got {}",
                idx.len()
            );
        }
    }

    fn blocks(&self) -> usize {
        self.channels.div_ceil(LANES)
    }

    fn block_channels(&self, block: usize) -> Range<usize> {
        block * LANES..self.channels.min((block + 1) * LANES)
    }

    /// For each position of a sequence, the first tap that counts; empty without `seq_idx`.
    fn first_taps(&self, batch: usize) -> Vec<usize> {
        let Some(idx) = self.seq_idx else {
            return Vec::new();
        };
        let idx = &idx[batch * self.seq_len..(batch + 1) * self.seq_len];
        // Taps that fall before the run; the first run has the window before it.
        let mut first = 0;
        (0..idx.len())
            .map(|t| {
                let begins = t > 0 && idx[t] != idx[t - 1];
                first = if begins {
                    self.width - 1
                } else {
                    first.saturating_sub(1)
                };
                first
            })
            .collect()
    }

    /// Positions `start - (width - 1)..end` of one lane block; those before the first come from
    /// the initial window.
    #[inline(always)]
    fn gather<V: Vector>(
        &self,
        batch: usize,
        start: usize,
        end: usize,
        columns: &Range<usize>,
        to: &mut [Lanes],
    ) {
        let history = self.width - 1;
        for (lanes, ahead) in to.iter_mut().zip(start..end + history) {
            let values = if ahead >= history {
                V::load_padded(
                    self.x
                        .get(batch * self.seq_len + ahead - history, columns.clone()),
                )
            } else if let Some(window) = self.initial_window {
                let row = Rows::contiguous(window, self.channels);
                V::load_padded(row.get(batch * history + ahead, columns.clone()))
            } else {
                V::zero()
            };
            values.store(lanes);
        }
    }

    /// The taps of some lane blocks, one vector a tap, block by block.
    fn taps(&self, blocks: Range<usize>) -> Vec<Lanes> {
        let mut taps = vec![Lanes::ZERO; blocks.len() * self.width];
        for (taps, block) in taps.chunks_exact_mut(self.width).zip(blocks) {
            for (lane, channel) in self.block_channels(block).enumerate() {
                let row = &self.weight[channel * self.width..(channel + 1) * self.width];
                for (tap, &value) in taps.iter_mut().zip(row) {
                    tap.0[lane] = value;
                }
            }
        }
        taps
    }

    #[inline(always)]
    fn load_bias<V: Vector>(&self, columns: &Range<usize>) -> V {
        match self.bias {
            Some(bias) => V::load_padded(&bias[columns.clone()]),
            None => V::zero(),
        }
    }
}

/// The sum over taps for the position whose oldest tap is `x[0]`, from tap `first` on.
#[inline(always)]
fn convolve<V: Vector>(taps: &[Lanes], x: &[Lanes], first: usize, bias: V) -> V {
    let mut sum = bias;
    for (tap, (weight, x)) in taps.iter().zip(x).enumerate() {
        if tap >= first {
            sum = V::load(weight).mul_add(V::load(x), sum);
        }
    }
    sum
}

#[cfg(test)]
mod tests;
