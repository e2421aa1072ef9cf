mod lane;
#[cfg(test)]
mod tests;

use super::{assert_len, assert_optional_len, silu};
use lane::Lane;

/// Inputs of [`causal_conv1d`], in row-major order with the channel last.
#[derive(Clone, Copy, Debug)]
pub struct CausalConv1dInputs<'a> {
    /// Number of sequences.
    pub batch: usize,
    /// Positions of each sequence.
    pub seq_len: usize,
    /// Channels, each filtered on its own.
    pub channels: usize,
    /// Taps of each filter, at least 1.
    pub width: usize,
    /// The sequence: `[batch, seq_len, channels]`.
    pub x: &'a [f64],
    /// The filters, with the tap on the newest input last: `[channels, width]`.
    pub weight: &'a [f64],
    /// `[channels]`. Absent: zero.
    pub bias: Option<&'a [f64]>,
    /// The `width - 1` inputs before the first position, oldest first:
    /// `[batch, width - 1, channels]`. Absent: zero.
    pub initial_state: Option<&'a [f64]>,
    /// The packed document of each position: `[batch, seq_len]`. A tap counts only if it lies in
    /// the same run of equal indices as the output; `initial_state` belongs to the first run.
    pub seq_idx: Option<&'a [i64]>,
    /// Whether the output goes through [`silu`].
    pub activation: bool,
}

/// Values of [`causal_conv1d`].
#[derive(Clone, Debug)]
pub struct CausalConv1dOutput {
    /// `[batch, seq_len, channels]`.
    pub y: Vec<f64>,
    /// The last `width - 1` inputs, oldest first: `[batch, width - 1, channels]`. Inputs of
    /// earlier runs than the last position's are zero; a sequence shorter than the window leaves
    /// the newest inputs of `initial_state` in front.
    pub final_state: Vec<f64>,
}

/// Gradients of every input of [`causal_conv1d`], each in its input's shape.
#[derive(Clone, Debug)]
pub struct CausalConv1dGradients {
    /// `[batch, seq_len, channels]`.
    pub x: Vec<f64>,
    /// `[channels, width]`.
    pub weight: Vec<f64>,
    /// `[channels]`.
    pub bias: Option<Vec<f64>>,
    /// `[batch, width - 1, channels]`.
    pub initial_state: Option<Vec<f64>>,
}

/// A depthwise convolution that sees only the present and the past.
///
/// ```text
/// y_t = activation(bias + sum over k of weight[k] * x_{t - (width - 1) + k})
/// ```
///
/// Where inputs before the first position come from `initial_state`.
///
/// # Panics
///
/// Panics if `width` is 0 or a slice's length does not match the dimensions.
pub fn causal_conv1d(inputs: &CausalConv1dInputs) -> CausalConv1dOutput {
    inputs.assert_shapes("causal_conv1d");
    let &CausalConv1dInputs {
        batch,
        seq_len,
        channels,
        width,
        ..
    } = inputs;
    let mut y = vec![0.0; batch * seq_len * channels];
    let mut final_state = vec![0.0; batch * (width - 1) * channels];

    for sequence in 0..batch {
        for channel in 0..channels {
            let lane = Lane {
                inputs,
                sequence,
                channel,
            };
            let timeline = lane.timeline();
            for (t, &oldest) in lane.oldest_visible().iter().enumerate() {
                let sum = lane.convolve(&timeline, t, oldest);
                y[lane.index(t)] = if inputs.activation { silu(sum) } else { sum };
            }
            for entry in lane.final_window() {
                final_state[lane.window_index(entry)] = timeline[seq_len + entry];
            }
        }
    }
    CausalConv1dOutput { y, final_state }
}

/// Gradients of a loss through [`causal_conv1d`].
///
/// # Shapes
///
/// - `grad_y`: `[batch, seq_len, channels]`, the gradient with respect to `y`
/// - `grad_final_state`: `[batch, width - 1, channels]`; absent: the loss does not use the final
///   state
///
/// # Panics
///
/// Panics if `width` is 0 or a slice's length does not match the dimensions.
pub fn causal_conv1d_backward(
    inputs: &CausalConv1dInputs,
    grad_y: &[f64],
    grad_final_state: Option<&[f64]>,
) -> CausalConv1dGradients {
    let function = "causal_conv1d_backward";
    inputs.assert_shapes(function);
    let &CausalConv1dInputs {
        batch,
        seq_len,
        channels,
        width,
        ..
    } = inputs;
    assert_len(function, "grad_y", grad_y, &[batch, seq_len, channels]);
    let window = [batch, width - 1, channels];
    assert_optional_len(function, "grad_final_state", grad_final_state, &window);

    let mut grads = CausalConv1dGradients {
        x: vec![0.0; inputs.x.len()],
        weight: vec![0.0; inputs.weight.len()],
        bias: inputs.bias.map(|bias| vec![0.0; bias.len()]),
        initial_state: inputs.initial_state.map(|state| vec![0.0; state.len()]),
    };
    for sequence in 0..batch {
        for channel in 0..channels {
            let lane = Lane {
                inputs,
                sequence,
                channel,
            };
            lane.backward(grad_y, grad_final_state, &mut grads);
        }
    }
    grads
}

impl CausalConv1dInputs<'_> {
    fn assert_shapes(&self, function: &str) {
        let &Self {
            batch,
            seq_len,
            channels,
            width,
            ..
        } = self;
        assert!(width > 0, "{function}: width must be at least 1, got 0");
        assert_len(function, "x", self.x, &[batch, seq_len, channels]);
        assert_len(function, "weight", self.weight, &[channels, width]);
        assert_optional_len(function, "bias", self.bias, &[channels]);
        let window = [batch, width - 1, channels];
        assert_optional_len(function, "initial_state", self.initial_state, &window);
        assert_optional_len(function, "seq_idx", self.seq_idx, &[batch, seq_len]);
    }
}
