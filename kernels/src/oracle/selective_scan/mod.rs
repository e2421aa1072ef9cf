mod lane;
#[cfg(test)]
mod tests;

use super::{assert_len, assert_optional_len};
use lane::Lane;

/// Inputs of [`selective_scan`], in row-major order with the channel last.
#[derive(Clone, Copy, Debug)]
pub struct SelectiveScanInputs<'a> {
    /// Number of sequences.
    pub batch: usize,
    /// Positions of each sequence.
    pub seq_len: usize,
    /// Channels.
    pub d_inner: usize,
    /// State entries of each channel.
    pub d_state: usize,
    /// The sequence: `[batch, seq_len, d_inner]`.
    pub u: &'a [f64],
    /// Step sizes before bias and softplus: `[batch, seq_len, d_inner]`.
    pub delta: &'a [f64],
    /// Continuous-time decay rates, negative in a stable system: `[d_inner, d_state]`.
    pub a: &'a [f64],
    /// What enters the state: `[batch, seq_len, d_state]`.
    pub b: &'a [f64],
    /// What is read from the state: `[batch, seq_len, d_state]`.
    pub c: &'a [f64],
    /// Skip connection: `[d_inner]`. Absent: zero.
    pub d: Option<&'a [f64]>,
    /// Gate: `[batch, seq_len, d_inner]`. Absent: the output is not gated.
    pub z: Option<&'a [f64]>,
    /// Added to `delta` before softplus: `[d_inner]`. Absent: zero.
    pub delta_bias: Option<&'a [f64]>,
    /// State before the first position: `[batch, d_inner, d_state]`. Absent: zero.
    pub initial_state: Option<&'a [f64]>,
    /// The packed document of each position: `[batch, seq_len]`. The state is zeroed before a
    /// position whose index differs from the one before; `initial_state` belongs to the first run.
    pub seq_idx: Option<&'a [i64]>,
    /// Whether step sizes go through [`softplus`](super::softplus).
    pub delta_softplus: bool,
}

/// Values of [`selective_scan`].
#[derive(Clone, Debug)]
pub struct SelectiveScanOutput {
    /// `[batch, seq_len, d_inner]`.
    pub y: Vec<f64>,
    /// State after the last position: `[batch, d_inner, d_state]`.
    pub final_state: Vec<f64>,
}

/// Gradients of every input of [`selective_scan`], each in its input's shape.
#[derive(Clone, Debug)]
pub struct SelectiveScanGradients {
    /// `[batch, seq_len, d_inner]`.
    pub u: Vec<f64>,
    /// `[batch, seq_len, d_inner]`.
    pub delta: Vec<f64>,
    /// `[d_inner, d_state]`.
    pub a: Vec<f64>,
    /// `[batch, seq_len, d_state]`.
    pub b: Vec<f64>,
    /// `[batch, seq_len, d_state]`.
    pub c: Vec<f64>,
    /// `[d_inner]`.
    pub d: Option<Vec<f64>>,
    /// `[batch, seq_len, d_inner]`.
    pub z: Option<Vec<f64>>,
    /// `[d_inner]`.
    pub delta_bias: Option<Vec<f64>>,
    /// `[batch, d_inner, d_state]`.
    pub initial_state: Option<Vec<f64>>,
}

/// The selective state-space recurrence of Mamba (Gu and Dao 2023, algorithm 2).
///
/// For every sequence and channel, with `h` a vector of `d_state` entries:
///
/// ```text
/// dt  = softplus(delta_t + delta_bias)
/// h_t = exp(dt * a) * h_{t-1} + dt * b_t * u_t
/// y_t = (c_t . h_t + d * u_t) * silu(z_t)
/// ```
///
/// # Panics
///
/// Panics if a slice's length does not match the dimensions.
pub fn selective_scan(inputs: &SelectiveScanInputs) -> SelectiveScanOutput {
    inputs.assert_shapes("selective_scan");
    let &SelectiveScanInputs {
        batch,
        seq_len,
        d_inner,
        d_state,
        ..
    } = inputs;
    let mut y = vec![0.0; batch * seq_len * d_inner];
    let mut final_state = Vec::with_capacity(batch * d_inner * d_state);

    for sequence in 0..batch {
        for channel in 0..d_inner {
            let lane = Lane {
                inputs,
                sequence,
                channel,
            };
            let states = lane.states();
            for t in 0..seq_len {
                y[lane.index(t)] = lane.ungated(t, &states[t + 1]) * lane.gate(t);
            }
            final_state.extend_from_slice(&states[seq_len]);
        }
    }
    SelectiveScanOutput { y, final_state }
}

/// Gradients of a loss through [`selective_scan`].
///
/// With `g_t` the gradient of the loss with respect to `h_t`, walking from the last position:
///
/// ```text
/// gy_t    = grad_y_t * silu(z_t)
/// g_t     = gy_t * c_t + exp(dt_{t+1} * a) * g_{t+1}
/// grad_dt = sum over states of g_t * (a * exp(dt * a) * h_{t-1} + b_t * u_t)
/// ```
///
/// Nothing flows back through a reset of the state.
///
/// # Shapes
///
/// - `grad_y`: `[batch, seq_len, d_inner]`, the gradient with respect to `y`
/// - `grad_final_state`: `[batch, d_inner, d_state]`; absent: the loss does not use the final state
///
/// # Panics
///
/// Panics if a slice's length does not match the dimensions.
pub fn selective_scan_backward(
    inputs: &SelectiveScanInputs,
    grad_y: &[f64],
    grad_final_state: Option<&[f64]>,
) -> SelectiveScanGradients {
    let function = "selective_scan_backward";
    inputs.assert_shapes(function);
    let &SelectiveScanInputs {
        batch,
        seq_len,
        d_inner,
        d_state,
        ..
    } = inputs;
    assert_len(function, "grad_y", grad_y, &[batch, seq_len, d_inner]);
    let state_shape = [batch, d_inner, d_state];
    assert_optional_len(function, "grad_final_state", grad_final_state, &state_shape);

    let mut grads = SelectiveScanGradients::zeros(inputs);
    for sequence in 0..batch {
        for channel in 0..d_inner {
            let lane = Lane {
                inputs,
                sequence,
                channel,
            };
            let grad_state = match grad_final_state {
                Some(grad) => grad[lane.state_range()].to_vec(),
                None => vec![0.0; d_state],
            };
            lane.backward(grad_y, grad_state, &mut grads);
        }
    }
    grads
}

impl SelectiveScanInputs<'_> {
    fn assert_shapes(&self, function: &str) {
        let &Self {
            batch,
            seq_len,
            d_inner,
            d_state,
            ..
        } = self;
        let sequence = [batch, seq_len, d_inner];
        let projection = [batch, seq_len, d_state];
        let state = [batch, d_inner, d_state];
        assert_len(function, "u", self.u, &sequence);
        assert_len(function, "delta", self.delta, &sequence);
        assert_len(function, "a", self.a, &[d_inner, d_state]);
        assert_len(function, "b", self.b, &projection);
        assert_len(function, "c", self.c, &projection);
        assert_optional_len(function, "d", self.d, &[d_inner]);
        assert_optional_len(function, "z", self.z, &sequence);
        assert_optional_len(function, "delta_bias", self.delta_bias, &[d_inner]);
        assert_optional_len(function, "initial_state", self.initial_state, &state);
        assert_optional_len(function, "seq_idx", self.seq_idx, &[batch, seq_len]);
    }
}

impl SelectiveScanGradients {
    fn zeros(inputs: &SelectiveScanInputs) -> Self {
        let zeros = |input: &[f64]| vec![0.0; input.len()];
        Self {
            u: zeros(inputs.u),
            delta: zeros(inputs.delta),
            a: zeros(inputs.a),
            b: zeros(inputs.b),
            c: zeros(inputs.c),
            d: inputs.d.map(zeros),
            z: inputs.z.map(zeros),
            delta_bias: inputs.delta_bias.map(zeros),
            initial_state: inputs.initial_state.map(zeros),
        }
    }
}
