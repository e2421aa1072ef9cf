use std::ops::Range;

use super::{CausalConv1dGradients, CausalConv1dInputs};
use crate::oracle::runs::run_starts;
use crate::oracle::silu_slope;

/// One channel of one sequence.
pub(super) struct Lane<'a> {
    pub inputs: &'a CausalConv1dInputs<'a>,
    pub sequence: usize,
    pub channel: usize,
}

impl Lane<'_> {
    /// Inputs before the first position.
    fn window_len(&self) -> usize {
        self.inputs.width - 1
    }

    /// Where position `t` lies in a `[batch, seq_len, channels]` tensor.
    pub fn index(&self, t: usize) -> usize {
        (self.sequence * self.inputs.seq_len + t) * self.inputs.channels + self.channel
    }

    /// Where entry `entry` of the window lies in a `[batch, width - 1, channels]` tensor.
    pub fn window_index(&self, entry: usize) -> usize {
        (self.sequence * self.window_len() + entry) * self.inputs.channels + self.channel
    }

    fn weight_index(&self, tap: usize) -> usize {
        self.channel * self.inputs.width + tap
    }

    /// The initial window followed by the sequence: tap `k` of output `t` reads entry `t + k`, and
    /// entry `n` of the final window is entry `seq_len + n`.
    pub fn timeline(&self) -> Vec<f64> {
        let window = (0..self.window_len()).map(|entry| match self.inputs.initial_state {
            Some(state) => state[self.window_index(entry)],
            None => 0.0,
        });
        let sequence = (0..self.inputs.seq_len).map(|t| self.inputs.x[self.index(t)]);
        window.chain(sequence).collect()
    }

    /// For each output, the oldest entry of the timeline that lies in its run.
    pub fn oldest_visible(&self) -> Vec<usize> {
        let seq_len = self.inputs.seq_len;
        let seq_idx = self
            .inputs
            .seq_idx
            .map(|idx| &idx[self.sequence * seq_len..(self.sequence + 1) * seq_len]);
        let mut starts = run_starts(seq_idx, seq_len);
        for start in &mut starts {
            // The first run also owns the initial window.
            if *start > 0 {
                *start += self.window_len();
            }
        }
        starts
    }

    /// The taps of output `t` that lie in its run.
    fn taps(&self, t: usize, oldest: usize) -> Range<usize> {
        oldest.saturating_sub(t)..self.inputs.width
    }

    /// The entries of the final window that lie in the last position's run.
    pub fn final_window(&self) -> Range<usize> {
        let oldest = self.oldest_visible().last().copied().unwrap_or(0);
        oldest.saturating_sub(self.inputs.seq_len)..self.window_len()
    }

    /// Output `t` before the activation.
    pub fn convolve(&self, timeline: &[f64], t: usize, oldest: usize) -> f64 {
        let bias = self.inputs.bias.map_or(0.0, |bias| bias[self.channel]);
        self.taps(t, oldest).fold(bias, |sum, tap| {
            sum + self.inputs.weight[self.weight_index(tap)] * timeline[t + tap]
        })
    }

    /// Adds the lane's gradients to `grads`.
    pub fn backward(
        &self,
        grad_y: &[f64],
        grad_final_state: Option<&[f64]>,
        grads: &mut CausalConv1dGradients,
    ) {
        let timeline = self.timeline();
        let mut grad_timeline = vec![0.0; timeline.len()];

        for (t, &oldest) in self.oldest_visible().iter().enumerate() {
            let slope = if self.inputs.activation {
                silu_slope(self.convolve(&timeline, t, oldest))
            } else {
                1.0
            };
            let grad_sum = grad_y[self.index(t)] * slope;
            if let Some(grad_bias) = &mut grads.bias {
                grad_bias[self.channel] += grad_sum;
            }
            for tap in self.taps(t, oldest) {
                let weight = self.weight_index(tap);
                grads.weight[weight] += grad_sum * timeline[t + tap];
                grad_timeline[t + tap] += grad_sum * self.inputs.weight[weight];
            }
        }
        if let Some(grad_final) = grad_final_state {
            for entry in self.final_window() {
                grad_timeline[self.inputs.seq_len + entry] += grad_final[self.window_index(entry)];
            }
        }

        let (grad_window, grad_sequence) = grad_timeline.split_at(self.window_len());
        for (t, &gradient) in grad_sequence.iter().enumerate() {
            grads.x[self.index(t)] = gradient;
        }
        if let Some(grad_initial) = &mut grads.initial_state {
            for (entry, &gradient) in grad_window.iter().enumerate() {
                grad_initial[self.window_index(entry)] = gradient;
            }
        }
    }
}
