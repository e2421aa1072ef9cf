use std::ops::Range;

use super::{SsdGradients, SsdInputs};
use crate::oracle::runs::run_starts;
use crate::oracle::{dot_product, softplus, softplus_slope};

/// One head of one sequence: the unit over which the recurrence runs.
pub(super) struct Head<'a> {
    pub inputs: &'a SsdInputs<'a>,
    pub sequence: usize,
    pub head: usize,
}

impl Head<'_> {
    fn position(&self, t: usize) -> usize {
        self.sequence * self.inputs.seq_len + t
    }

    /// Where position `t` lies in a `[batch, seq_len, nheads]` tensor.
    fn step_index(&self, t: usize) -> usize {
        self.position(t) * self.inputs.nheads + self.head
    }

    /// Where position `t` lies in a `[batch, seq_len, nheads, headdim]` tensor.
    pub fn row(&self, t: usize) -> Range<usize> {
        row_range(self.step_index(t), self.inputs.headdim)
    }

    /// Where position `t` of the head's group lies in a `[batch, seq_len, ngroups, d_state]` tensor.
    fn projection(&self, t: usize) -> Range<usize> {
        let group = self.head / (self.inputs.nheads / self.inputs.ngroups);
        let row = self.position(t) * self.inputs.ngroups + group;
        row_range(row, self.inputs.d_state)
    }

    /// Where the head lies in a `[batch, nheads, headdim, d_state]` tensor.
    pub fn state_range(&self) -> Range<usize> {
        row_range(
            self.sequence * self.inputs.nheads + self.head,
            self.inputs.headdim * self.inputs.d_state,
        )
    }

    pub fn a(&self) -> f64 {
        self.inputs.a[self.head]
    }

    pub fn x(&self, t: usize) -> &[f64] {
        &self.inputs.x[self.row(t)]
    }

    pub fn b(&self, t: usize) -> &[f64] {
        &self.inputs.b[self.projection(t)]
    }

    pub fn c(&self, t: usize) -> &[f64] {
        &self.inputs.c[self.projection(t)]
    }

    /// Where the skip of row `p` lies in `d`, which has one entry a head or one a row.
    fn skip_index(&self, p: usize) -> usize {
        match self.inputs.d_has_headdim() {
            true => self.head * self.inputs.headdim + p,
            false => self.head,
        }
    }

    pub fn skip(&self, p: usize) -> f64 {
        self.inputs.d.map_or(0.0, |d| d[self.skip_index(p)])
    }

    /// The argument of softplus.
    fn biased_dt(&self, t: usize) -> f64 {
        let bias = self.inputs.dt_bias.map_or(0.0, |bias| bias[self.head]);
        self.inputs.dt[self.step_index(t)] + bias
    }

    fn unclamped_dt(&self, t: usize) -> f64 {
        match self.inputs.dt_softplus {
            true => softplus(self.biased_dt(t)),
            false => self.biased_dt(t),
        }
    }

    pub fn dt(&self, t: usize) -> f64 {
        let (least, most) = self.inputs.dt_limit;
        self.unclamped_dt(t).clamp(least, most)
    }

    /// The derivative of [`Head::dt`]; at a limit that of what is within.
    fn dt_slope(&self, t: usize) -> f64 {
        let (least, most) = self.inputs.dt_limit;
        match (least..=most).contains(&self.unclamped_dt(t)) {
            false => 0.0,
            true if self.inputs.dt_softplus => softplus_slope(self.biased_dt(t)),
            true => 1.0,
        }
    }

    /// For each position, where its run begins.
    pub fn run_starts(&self) -> Vec<usize> {
        let seq_len = self.inputs.seq_len;
        let seq_idx = self
            .inputs
            .seq_idx
            .map(|idx| &idx[row_range(self.sequence, seq_len)]);
        run_starts(seq_idx, seq_len)
    }

    /// Whether the state is zeroed before each position.
    fn resets(&self) -> Vec<bool> {
        let starts = self.run_starts();
        starts
            .iter()
            .enumerate()
            .map(|(t, &start)| t > 0 && start == t)
            .collect()
    }

    /// The state before the first position: `[headdim, d_state]`.
    pub fn first_state(&self) -> Vec<f64> {
        match self.inputs.initial_state {
            Some(initial) => initial[self.state_range()].to_vec(),
            None => vec![0.0; self.inputs.headdim * self.inputs.d_state],
        }
    }

    /// The states `h_{-1}, h_0, .., h_{seq_len-1}`, each `[headdim, d_state]`: entry `t + 1` is the state
    /// after position `t`.
    pub fn states(&self) -> Vec<Vec<f64>> {
        let mut state = self.first_state();
        let mut states = vec![state.clone()];
        for (t, reset) in self.resets().into_iter().enumerate() {
            if reset {
                state.fill(0.0);
            }
            let dt = self.dt(t);
            let decay = (dt * self.a()).exp();
            for (row, x) in state.chunks_mut(self.inputs.d_state).zip(self.x(t)) {
                for (h, b) in row.iter_mut().zip(self.b(t)) {
                    *h = decay * *h + dt * x * b;
                }
            }
            states.push(state.clone());
        }
        states
    }

    /// `y_t = h_t C_t + d x_t`: one value a row of the state.
    pub fn read(&self, t: usize, state: &[f64]) -> Vec<f64> {
        state
            .chunks(self.inputs.d_state)
            .zip(self.x(t))
            .enumerate()
            .map(|(p, (row, x))| dot_product(row, self.c(t)) + self.skip(p) * x)
            .collect()
    }

    /// Adds the head's gradients to `grads`; `grad_state` begins as the final state's gradient.
    pub fn backward(&self, grad_y: &[f64], mut grad_state: Vec<f64>, grads: &mut SsdGradients) {
        let states = self.states();
        let resets = self.resets();
        let no_state = vec![0.0; grad_state.len()];
        let d_state = self.inputs.d_state;

        for t in (0..self.inputs.seq_len).rev() {
            let state = &states[t + 1];
            let previous = if resets[t] { &no_state } else { &states[t] };
            let (dt, x, b, c) = (self.dt(t), self.x(t), self.b(t), self.c(t));
            let decay = (dt * self.a()).exp();
            let grad_y = &grad_y[self.row(t)];

            // Of the decay's exponent `dt a`, and of what is written, `dt x`.
            let mut grad_exponent = 0.0;
            let mut grad_dt = 0.0;
            for (p, (&grad_y, &x)) in grad_y.iter().zip(x).enumerate() {
                let mut grad_write = 0.0;
                for n in 0..d_state {
                    let entry = p * d_state + n;
                    grad_state[entry] += grad_y * c[n];
                    grads.c[self.projection(t).start + n] += grad_y * state[entry];
                    grads.b[self.projection(t).start + n] += grad_state[entry] * dt * x;
                    grad_write += grad_state[entry] * b[n];
                    grad_exponent += grad_state[entry] * decay * previous[entry];
                    grad_state[entry] = match resets[t] {
                        true => 0.0,
                        false => grad_state[entry] * decay,
                    };
                }
                grad_dt += grad_write * x;
                grads.x[self.row(t).start + p] = grad_write * dt + grad_y * self.skip(p);
                if let Some(grad_d) = &mut grads.d {
                    grad_d[self.skip_index(p)] += grad_y * x;
                }
            }
            grads.a[self.head] += grad_exponent * dt;
            let scale = &mut grads.a_scale[self.head];
            *scale = scale.hypot(grad_exponent * dt);
            grad_dt += grad_exponent * self.a();
            let grad_raw = grad_dt * self.dt_slope(t);
            grads.dt[self.step_index(t)] = grad_raw;
            if let Some(grad_bias) = &mut grads.dt_bias {
                grad_bias[self.head] += grad_raw;
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
