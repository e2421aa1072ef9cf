//! One task owns one tile of positions of one sequence. Block by block of 16 channels it copies the
//! positions it needs into one array, whatever they come from, and slides over that.

use super::super::{
    rows::{Columns, Output},
    simd::{Kernel, dispatch, math::silu},
};
use super::*;
use rayon::prelude::*;

/// Runs the convolution; see [`ConvInputs`] for what it computes. Nothing is saved for
/// [`backward`](super::backward) but the inputs.
///
/// # Panics
/// If an input's size does not fit the others.
pub fn forward(inputs: &ConvInputs) -> ConvOutputs {
    inputs.check("causal_conv1d");
    let ConvInputs {
        batch,
        seq_len,
        channels,
        width,
        ..
    } = *inputs;
    let first_taps: Vec<_> = (0..batch).map(|batch| inputs.first_taps(batch)).collect();
    let tiles = seq_len.div_ceil(TILE);

    let mut y = Output::new(batch * seq_len, channels);
    let sink = y.columns();
    (0..batch * tiles).into_par_iter().for_each(|task| {
        let (batch, tile) = (task / tiles, task % tiles);
        let positions = tile * TILE..seq_len.min((tile + 1) * TILE);
        dispatch(Task {
            inputs,
            first_taps: &first_taps[batch],
            y: &sink,
            batch,
            positions,
        });
    });

    let mut final_window = vec![0.0; batch * (width - 1) * channels];
    for (batch, first_taps) in first_taps.iter().enumerate() {
        // What is tap `tap` for the position after the sequence is one tap later for the last one.
        let first = first_taps.last().map_or(0, |first| first.saturating_sub(1));
        for tap in first..width - 1 {
            let to = (batch * (width - 1) + tap) * channels;
            let ahead = seq_len + tap;
            let from = if ahead >= width - 1 {
                inputs
                    .x
                    .get(batch * seq_len + ahead - (width - 1), 0..channels)
            } else if let Some(window) = inputs.initial_window {
                &window[(batch * (width - 1) + ahead) * channels..][..channels]
            } else {
                continue;
            };
            final_window[to..to + channels].copy_from_slice(from);
        }
    }
    // SAFETY: the tasks are done, and together they own all positions.
    ConvOutputs {
        y: unsafe { y.finish() },
        final_window,
    }
}

struct Task<'a> {
    inputs: &'a ConvInputs<'a>,
    first_taps: &'a [usize],
    y: &'a Columns<'a>,
    batch: usize,
    positions: Range<usize>,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        match self.inputs.width {
            4 => self.blocks::<V, 4>(),
            _ => self.blocks::<V, 0>(),
        }
    }
}

impl Task<'_> {
    /// `WIDTH` is the width where it is worth a loop of its own, else 0.
    #[inline(always)]
    fn blocks<V: Vector, const WIDTH: usize>(&self) {
        let Self {
            inputs, y, batch, ..
        } = *self;
        let Range { start, end } = self.positions;
        let width = if WIDTH > 0 { WIDTH } else { inputs.width };
        let mut x = vec![Lanes::ZERO; end - start + width - 1];
        for block in 0..inputs.blocks() {
            let columns = inputs.block_channels(block);
            let taps = inputs.taps(&columns);
            let bias = inputs.load_bias::<V>(&columns);
            inputs.gather::<V>(batch, start, end, &columns, &mut x);
            for (t, x) in (start..end).zip(x.windows(width)) {
                let first = if self.first_taps.is_empty() {
                    0
                } else {
                    self.first_taps[t]
                };
                let mut value = convolve(&taps[..width], x, first, bias);
                if inputs.silu {
                    value = silu(value);
                }
                // SAFETY: this task alone writes these positions.
                unsafe { y.write(batch * inputs.seq_len + t, &columns, value) };
            }
        }
    }
}
