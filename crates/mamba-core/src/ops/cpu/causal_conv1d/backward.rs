//! One task owns one tile of positions of one sequence. The gradient of a position collects from
//! the `width - 1` outputs after it, so that a task recomputes the sums before the activation of
//! its own tile and of that many positions beyond.
//!
//! Gradients of weight and bias are summed per tile, then over the tiles in order: no sum depends
//! on which thread ran what.

use super::super::{
    rows::{Columns, Output},
    simd::{Kernel, dispatch, math::silu_with_derivative},
};
use super::*;
use rayon::prelude::*;

/// Gradients of all inputs, given those of `y` (`[batch, seq_len, channels]`) and, optionally, of
/// the final window (`[batch, width - 1, channels]`).
///
/// The result is the same, bit by bit, on every run and for any number of threads.
///
/// # Panics
/// If the size of an input or of a gradient does not fit the others.
pub fn backward(
    inputs: &ConvInputs,
    grad_y: &[f32],
    grad_final_window: Option<&[f32]>,
) -> ConvGrads {
    const OP: &str = "causal_conv1d backward";
    inputs.check(OP);
    let ConvInputs {
        batch,
        seq_len,
        channels,
        width,
        ..
    } = *inputs;
    let history = width - 1;
    check_len(OP, "grad_y", grad_y, batch * seq_len * channels);
    if let Some(grad) = grad_final_window {
        check_len(OP, "grad_final_window", grad, batch * history * channels);
    }
    let first_taps: Vec<_> = (0..batch).map(|batch| inputs.first_taps(batch)).collect();
    let tiles = seq_len.div_ceil(TILE);

    let mut x = Output::new(batch * seq_len, channels);
    let mut initial_window = Output::new(batch * history, channels);
    // The bias counts as one more tap.
    let partial = (width + 1) * channels;
    let mut partials = vec![0.0; batch * tiles * partial];
    let (grad_x, grad_window) = (x.columns(), initial_window.columns());
    partials
        .par_chunks_mut(partial.max(1))
        .enumerate()
        .for_each(|(task, grad_taps)| {
            let (batch, tile) = (task / tiles, task % tiles);
            dispatch(Task {
                inputs,
                first_taps: &first_taps[batch],
                grad_y: Rows::contiguous(grad_y, channels),
                grad_final_window,
                grad_x: &grad_x,
                grad_window: &grad_window,
                grad_taps,
                batch,
                positions: tile * TILE..seq_len.min((tile + 1) * TILE),
            });
        });

    let mut sums = vec![0.0; partial];
    for part in partials.chunks_exact(partial.max(1)) {
        for (sum, value) in sums.iter_mut().zip(part) {
            *sum += value;
        }
    }
    let mut weight = vec![0.0; channels * width];
    for (tap, sums) in sums.chunks_exact(channels.max(1)).take(width).enumerate() {
        for (channel, &sum) in sums.iter().enumerate() {
            weight[channel * width + tap] = sum;
        }
    }
    let bias = inputs.bias.map(|_| sums[width * channels..].to_vec());
    // SAFETY: the tasks are done, and together they own all positions, and the first tiles all
    // windows.
    let (x, initial_window) = unsafe { (x.finish(), initial_window.finish()) };
    ConvGrads {
        x,
        weight,
        bias,
        initial_window,
    }
}

struct Task<'a> {
    inputs: &'a ConvInputs<'a>,
    first_taps: &'a [usize],
    grad_y: Rows<'a>,
    grad_final_window: Option<&'a [f32]>,
    grad_x: &'a Columns<'a>,
    grad_window: &'a Columns<'a>,
    /// `[width + 1, channels]`: this tile's part of the gradients of weight and bias.
    grad_taps: &'a mut [f32],
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
    fn blocks<V: Vector, const WIDTH: usize>(self) {
        let inputs = self.inputs;
        let ConvInputs {
            seq_len, channels, ..
        } = *inputs;
        let Range { start, end } = self.positions.clone();
        let width = if WIDTH > 0 { WIDTH } else { inputs.width };
        let history = width - 1;
        let reach = seq_len.min(end + history);
        let mut x = vec![Lanes::ZERO; reach - start + history];
        // Gradients before the activation; those past the end stay zero.
        let mut grad = vec![Lanes::ZERO; end - start + history];
        let mut grad_taps = vec![Lanes::ZERO; width];

        for block in 0..inputs.blocks() {
            let columns = inputs.block_channels(block);
            let taps = inputs.taps(block..block + 1);
            let bias = inputs.load_bias::<V>(&columns);
            inputs.gather::<V>(self.batch, start, reach, &columns, &mut x);
            grad_taps.fill(Lanes::ZERO);
            let mut grad_bias = V::zero();
            for (i, (t, x)) in (start..reach).zip(x.windows(width)).enumerate() {
                let first = self.first_tap(t);
                let row = self.batch * seq_len + t;
                let mut value = V::load_padded(self.grad_y.get(row, columns.clone()));
                if inputs.silu {
                    let sum = convolve(&taps[..width], x, first, bias);
                    value = value * silu_with_derivative(sum).1;
                }
                value.store(&mut grad[i]);
                if t < end {
                    grad_bias = grad_bias + value;
                    for (tap, (sum, x)) in grad_taps[..width].iter_mut().zip(x).enumerate() {
                        if tap >= first {
                            value.mul_add(V::load(x), V::load(sum)).store(sum);
                        }
                    }
                }
            }
            for (i, s) in (start..end).enumerate() {
                let sum = self.collect::<V>(&taps[..width], &grad[i..i + width], s, history);
                let sum = sum + self.through_final_window(s + history, &columns);
                // SAFETY: this task alone writes these positions.
                unsafe { self.grad_x.write(self.batch * seq_len + s, &columns, sum) };
            }
            if start == 0 {
                for ahead in 0..history {
                    // Tap `ahead` of position 0, `ahead - 1` of position 1, ..
                    let taps = &taps[..ahead + 1];
                    let sum = self.collect::<V>(taps, &grad[..ahead + 1], 0, ahead);
                    let sum = sum + self.through_final_window(ahead, &columns);
                    let row = self.batch * history + ahead;
                    // SAFETY: the first tile of a sequence alone writes its window.
                    unsafe { self.grad_window.write(row, &columns, sum) };
                }
            }
            for (tap, lanes) in grad_taps.iter().enumerate() {
                let at = tap * channels;
                V::load(lanes).store_cut(&mut self.grad_taps[at + columns.start..at + columns.end]);
            }
            let at = width * channels;
            grad_bias.store_cut(&mut self.grad_taps[at + columns.start..at + columns.end]);
        }
    }

    #[inline(always)]
    fn first_tap(&self, position: usize) -> usize {
        self.first_taps.get(position).copied().unwrap_or(0)
    }

    /// The gradient of what is tap `last` of position `start`, `last - 1` of the next one, ..,
    /// with `grad[0]` at position `start`.
    #[inline(always)]
    fn collect<V: Vector>(&self, taps: &[Lanes], grad: &[Lanes], start: usize, last: usize) -> V {
        let mut sum = V::zero();
        for (after, grad) in grad.iter().enumerate() {
            let tap = last - after;
            if self.first_tap(start + after) <= tap {
                sum = V::load(&taps[tap]).mul_add(V::load(grad), sum);
            }
        }
        sum
    }

    /// The gradient that arrives through the final window at the position that is `ahead` of the
    /// initial window's first.
    #[inline(always)]
    fn through_final_window<V: Vector>(&self, ahead: usize, columns: &Range<usize>) -> V {
        let ConvInputs {
            seq_len,
            channels,
            width,
            ..
        } = *self.inputs;
        match self.grad_final_window {
            Some(grad)
                if ahead >= seq_len && ahead + 1 >= seq_len + self.first_tap(seq_len - 1) =>
            {
                let row = self.batch * (width - 1) + ahead - seq_len;
                V::load_padded(Rows::contiguous(grad, channels).get(row, columns.clone()))
            }
            _ => V::zero(),
        }
    }
}
