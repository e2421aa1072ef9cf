//! The causal depthwise convolution, on tensors.

use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor, assert_shape};

use super::extension::{ConvInputs, MambaOps};
use super::{
    Strategy, float_primitive, optional_float, optional_int, primitive_of, reference,
    sequence_dtype,
};

/// Arguments of [`causal_conv1d`].
///
/// ```text
/// y_t = act(bias + sum_k weight[k] x_{t - (width - 1) + k})
/// ```
///
/// Source: the `causal-conv1d` package of the Mamba authors.
#[derive(Clone, Debug)]
pub struct CausalConv1d {
    /// Input sequence, `[batch, seq_len, channels]`.
    pub x: Tensor<3>,
    /// One filter a channel, oldest tap first, `[channels, width]`.
    pub weight: Tensor<2>,
    /// `[channels]`
    pub bias: Option<Tensor<1>>,
    /// The `width - 1` inputs before the first position, oldest first,
    /// `[batch, width - 1, channels]`; zero if left out.
    pub initial_state: Option<Tensor<3>>,
    /// Sequence number of each position in a packed batch, `[batch, seq_len]`: no tap reads across
    /// a change. The initial window belongs to the run that starts at position 0.
    pub seq_idx: Option<Tensor<2, Int>>,
    /// Whether SiLU is applied to the result.
    pub silu: bool,
    /// Which implementation runs.
    pub strategy: Strategy,
}

impl CausalConv1d {
    /// The convolution alone: no bias, no window, no activation.
    pub fn new(x: Tensor<3>, weight: Tensor<2>) -> Self {
        Self {
            x,
            weight,
            bias: None,
            initial_state: None,
            seq_idx: None,
            silu: false,
            strategy: Strategy::Auto,
        }
    }

    fn check(&self) {
        let [batch, seq_len, channels] = self.x.dims();
        let [_, width] = self.weight.dims();
        assert!(
            batch > 0 && seq_len > 0 && channels > 0,
            "causal_conv1d: x must not be empty, got {:?}",
            self.x.dims()
        );
        assert!(width > 0, "causal_conv1d: width must be at least 1, got 0");
        assert_shape!(self.weight, [channels, width]);
        if let Some(bias) = &self.bias {
            assert_shape!(bias, [channels]);
        }
        if let Some(state) = &self.initial_state {
            assert_shape!(state, [batch, width - 1, channels]);
        }
        if let Some(seq_idx) = &self.seq_idx {
            assert_shape!(seq_idx, [batch, seq_len]);
        }
    }

    /// The arguments as the seam takes them.
    pub(super) fn into_inputs(self) -> ConvInputs<Dispatch> {
        let [_, width] = self.weight.dims();
        let dtype = sequence_dtype(&self.x);
        ConvInputs {
            x: primitive_of(self.x, dtype),
            weight: float_primitive(self.weight),
            bias: optional_float(self.bias, DType::F32),
            // A window of no entries is as good as none, and not every backend likes empty tensors.
            initial_state: optional_float(self.initial_state.filter(|_| width > 1), DType::F32),
            seq_idx: optional_int(self.seq_idx),
            silu: self.silu,
        }
    }
}

/// Runs the convolution of [`CausalConv1d`] and returns `y` and the window that continues it.
///
/// Both outputs are differentiable with respect to every float input.
///
/// # Shapes
///
/// - y: `[batch, seq_len, channels]`, in the dtype of `x`
/// - final window: `[batch, width - 1, channels]`, f32; entries that belong to an earlier run than
///   the last position are zero
///
/// # Panics
///
/// If a shape differs from the one documented on its field, or `x` or `weight` is empty.
pub fn causal_conv1d(conv: CausalConv1d) -> (Tensor<3>, Tensor<3>) {
    conv.check();
    let dtype = conv.x.dtype();
    let (y, final_state) = match conv.strategy.resolve(&conv.x.device()) {
        Strategy::Reference => reference::causal_conv1d(conv),
        Strategy::Auto | Strategy::Fused => {
            let outputs = Dispatch::causal_conv1d(conv.into_inputs());
            (
                Tensor::from_dispatch(outputs.y),
                Tensor::from_dispatch(outputs.final_state),
            )
        }
    };
    (y.cast(dtype), final_state)
}
