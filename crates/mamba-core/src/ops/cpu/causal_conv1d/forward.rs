//! One task owns one tile of positions of one sequence and walks it row by row, so that memory is read
//! and written in the order it lies in; the rows that a position reads are in the first-level cache.

use super::super::{
    rows::{Columns, Output},
    simd::{Kernel, Lockstep, dispatch, math::silu},
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
    let taps = inputs.taps(0..inputs.blocks());

    let mut y = Output::new(batch * seq_len, channels);
    let sink = y.columns();
    (0..batch * tiles).into_par_iter().for_each(|task| {
        let (batch, tile) = (task / tiles, task % tiles);
        let positions = tile * TILE..seq_len.min((tile + 1) * TILE);
        dispatch(Task {
            inputs,
            first_taps: &first_taps[batch],
            taps: &taps,
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
    /// `[blocks, width]`
    taps: &'a [Lanes],
    y: &'a Columns<'a>,
    batch: usize,
    positions: Range<usize>,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        match self.inputs.width {
            4 => self.rows::<V, 4>(),
            _ => self.rows::<V, 0>(),
        }
    }
}

/// Blocks of channels whose SiLU is computed in lock-step.
const TOGETHER: usize = 4;

impl<'a> Task<'a> {
    /// `WIDTH` is the width where it is worth a loop of its own, else 0.
    #[inline(always)]
    fn rows<V: Vector, const WIDTH: usize>(&self) {
        let width = if WIDTH > 0 { WIDTH } else { self.inputs.width };
        let blocks = self.inputs.blocks();
        let mut sources: Vec<_> = (0..width - 1)
            .map(|tap| self.source(self.positions.start, tap))
            .collect();
        for t in self.positions.clone() {
            sources.push(self.source(t, width - 1));
            let first = self.first_taps.get(t).copied().unwrap_or(0);
            let mut block = 0;
            while block + TOGETHER <= blocks {
                self.compute::<V, TOGETHER>(&sources[..width], first, t, block);
                block += TOGETHER;
            }
            while block < blocks {
                self.compute::<V, 1>(&sources[..width], first, t, block);
                block += 1;
            }
            sources.remove(0);
        }
    }

    /// The row that tap `tap` of position `t` reads: an input, or a row of the initial window. None, which
    /// is zero, where no window was given.
    fn source(&self, t: usize, tap: usize) -> Option<&'a [f32]> {
        let ConvInputs {
            seq_len,
            channels,
            width,
            ..
        } = *self.inputs;
        let (history, ahead) = (width - 1, t + tap);
        if ahead >= history {
            let row = self.batch * seq_len + ahead - history;
            return Some(self.inputs.x.get(row, 0..channels));
        }
        let window = Rows::contiguous(self.inputs.initial_window?, channels);
        Some(window.get(self.batch * history + ahead, 0..channels))
    }

    /// `N` blocks of channels of position `t`.
    #[inline(always)]
    fn compute<V: Vector, const N: usize>(
        &self,
        sources: &[Option<&[f32]>],
        first: usize,
        t: usize,
        block: usize,
    ) {
        let inputs = self.inputs;
        let mut sum = Lockstep([V::zero(); N]);
        for i in 0..N {
            sum.0[i] = inputs.load_bias(&inputs.block_channels(block + i));
        }
        for (tap, source) in sources.iter().enumerate().skip(first) {
            let Some(source) = source else { continue };
            for i in 0..N {
                let x = V::load_padded(&source[inputs.block_channels(block + i)]);
                let weight = V::load(&self.taps[(block + i) * sources.len() + tap]);
                sum.0[i] = weight.mul_add(x, sum.0[i]);
            }
        }
        if inputs.silu {
            sum = silu(sum);
        }
        for i in 0..N {
            let (row, columns) = (
                self.batch * inputs.seq_len + t,
                inputs.block_channels(block + i),
            );
            // SAFETY: this task alone writes these positions.
            unsafe { self.y.write(row, &columns, sum.0[i]) };
        }
    }
}
