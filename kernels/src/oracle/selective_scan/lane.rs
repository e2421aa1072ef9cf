use std::ops::Range;

use super::{SelectiveScanGradients, SelectiveScanInputs};
use crate::oracle::runs::run_starts;
use crate::oracle::{silu, silu_slope, softplus, softplus_slope};

/// One channel of one sequence: the unit over which the recurrence runs.
pub(super) struct Lane<'a> {
    pub inputs: &'a SelectiveScanInputs<'a>,
    pub sequence: usize,
    pub channel: usize,
}

impl Lane<'_> {
    /// Where position `t` lies in a `[batch, seq_len, d_inner]` tensor.
    pub fn index(&self, t: usize) -> usize {
        (self.sequence * self.inputs.seq_len + t) * self.inputs.d_inner + self.channel
    }

    /// Where position `t` lies in a `[batch, seq_len, d_state]` tensor.
    fn projection_range(&self, t: usize) -> Range<usize> {
        row_range(self.sequence * self.inputs.seq_len + t, self.inputs.d_state)
    }

    /// Where the lane lies in a `[batch, d_inner, d_state]` tensor.
    pub fn state_range(&self) -> Range<usize> {
        row_range(
            self.sequence * self.inputs.d_inner + self.channel,
            self.inputs.d_state,
        )
    }

    fn a(&self) -> &[f64] {
        &self.inputs.a[row_range(self.channel, self.inputs.d_state)]
    }

    fn b(&self, t: usize) -> &[f64] {
        &self.inputs.b[self.projection_range(t)]
    }

    fn c(&self, t: usize) -> &[f64] {
        &self.inputs.c[self.projection_range(t)]
    }

    fn skip(&self) -> f64 {
        self.inputs.d.map_or(0.0, |d| d[self.channel])
    }

    pub fn gate(&self, t: usize) -> f64 {
        self.inputs.z.map_or(1.0, |z| silu(z[self.index(t)]))
    }

    /// The argument of softplus.
    fn biased_delta(&self, t: usize) -> f64 {
        let bias = self
            .inputs
            .delta_bias
            .map_or(0.0, |bias| bias[self.channel]);
        self.inputs.delta[self.index(t)] + bias
    }

    fn dt(&self, t: usize) -> f64 {
        let delta = self.biased_delta(t);
        if self.inputs.delta_softplus {
            softplus(delta)
        } else {
            delta
        }
    }

    fn dt_slope(&self, t: usize) -> f64 {
        if self.inputs.delta_softplus {
            softplus_slope(self.biased_delta(t))
        } else {
            1.0
        }
    }

    /// Whether the state is zeroed before each position.
    fn resets(&self) -> Vec<bool> {
        let seq_len = self.inputs.seq_len;
        let seq_idx = self
            .inputs
            .seq_idx
            .map(|idx| &idx[row_range(self.sequence, seq_len)]);
        let starts = run_starts(seq_idx, seq_len);
        starts
            .iter()
            .enumerate()
            .map(|(t, &start)| t > 0 && start == t)
            .collect()
    }

    /// The states `h_{-1}, h_0, .., h_{seq_len-1}`: entry `t + 1` is the state after position `t`.
    pub fn states(&self) -> Vec<Vec<f64>> {
        let d_state = self.inputs.d_state;
        let mut state = match self.inputs.initial_state {
            Some(initial) => initial[self.state_range()].to_vec(),
            None => vec![0.0; d_state],
        };
        let mut states = vec![state.clone()];
        for (t, reset) in self.resets().into_iter().enumerate() {
            if reset {
                state.fill(0.0);
            }
            let (dt, u) = (self.dt(t), self.inputs.u[self.index(t)]);
            for (n, h) in state.iter_mut().enumerate() {
                *h = (dt * self.a()[n]).exp() * *h + dt * self.b(t)[n] * u;
            }
            states.push(state.clone());
        }
        states
    }

    /// `c_t . h_t + d * u_t`.
    pub fn ungated(&self, t: usize, state: &[f64]) -> f64 {
        let read: f64 = self.c(t).iter().zip(state).map(|(c, h)| c * h).sum();
        read + self.skip() * self.inputs.u[self.index(t)]
    }

    /// Adds the lane's gradients to `grads`; `grad_state` begins as the final state's gradient.
    pub fn backward(
        &self,
        grad_y: &[f64],
        mut grad_state: Vec<f64>,
        grads: &mut SelectiveScanGradients,
    ) {
        let states = self.states();
        let resets = self.resets();
        let no_state = vec![0.0; self.inputs.d_state];
        let a_start = self.channel * self.inputs.d_state;

        for t in (0..self.inputs.seq_len).rev() {
            let index = self.index(t);
            let state = &states[t + 1];
            let previous = if resets[t] { &no_state } else { &states[t] };
            let (dt, u) = (self.dt(t), self.inputs.u[index]);

            if let (Some(grad_z), Some(z)) = (&mut grads.z, self.inputs.z) {
                grad_z[index] = grad_y[index] * self.ungated(t, state) * silu_slope(z[index]);
            }
            let grad_ungated = grad_y[index] * self.gate(t);
            if let Some(grad_d) = &mut grads.d {
                grad_d[self.channel] += grad_ungated * u;
            }
            let mut grad_u = grad_ungated * self.skip();
            let mut grad_dt = 0.0;

            let projection_start = self.projection_range(t).start;
            for n in 0..self.inputs.d_state {
                let (a, b, c) = (self.a()[n], self.b(t)[n], self.c(t)[n]);
                let decay = (dt * a).exp();
                grad_state[n] += grad_ungated * c;
                grads.c[projection_start + n] += grad_ungated * state[n];
                grads.b[projection_start + n] += grad_state[n] * dt * u;
                grads.a[a_start + n] += grad_state[n] * dt * decay * previous[n];
                grad_u += grad_state[n] * dt * b;
                grad_dt += grad_state[n] * (a * decay * previous[n] + b * u);
                grad_state[n] = if resets[t] {
                    0.0
                } else {
                    grad_state[n] * decay
                };
            }

            let grad_delta = grad_dt * self.dt_slope(t);
            grads.u[index] = grad_u;
            grads.delta[index] = grad_delta;
            if let Some(grad_bias) = &mut grads.delta_bias {
                grad_bias[self.channel] += grad_delta;
            }
        }
        if let Some(grad_initial) = &mut grads.initial_state {
            grad_initial[self.state_range()].copy_from_slice(&grad_state);
        }
    }
}

/// Row `row` of a matrix with `width` columns.
fn row_range(row: usize, width: usize) -> Range<usize> {
    row * width..(row + 1) * width
}
