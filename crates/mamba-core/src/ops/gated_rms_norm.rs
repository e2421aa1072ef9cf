//! The gated normalisation of Mamba-2, on tensors.

use burn::backend::Dispatch;
use burn::tensor::{Tensor, assert_shape};

use super::extension::{GatedNormInputs, GatedNormOptions, MambaOps};
use super::{Strategy, float_primitive, primitive_of, reference, sequence_dtype};

/// Arguments of [`gated_rms_norm`].
///
/// ```text
/// y = rms_norm(x silu(z)) gamma      or      rms_norm(x) gamma silu(z)
/// ```
///
/// with the mean square taken over each group of `group_size` neighbouring channels.
///
/// Source: Dao and Gu 2024, "Transformers are SSMs", section 7; `RMSNormGated` of the official code.
#[derive(Clone, Debug)]
pub struct GatedRmsNorm {
    /// `[batch, seq_len, d_model]`
    pub x: Tensor<3>,
    /// The gate before SiLU, `[batch, seq_len, d_model]`.
    pub z: Tensor<3>,
    /// `[d_model]`
    pub gamma: Tensor<1>,
    /// Channels that are normalised together; a divisor of `d_model`.
    pub group_size: usize,
    /// Added to the mean square before its root.
    pub epsilon: f64,
    /// Whether the gate multiplies what is normalised already.
    pub norm_before_gate: bool,
    /// Which implementation runs.
    pub strategy: Strategy,
}

impl GatedRmsNorm {
    /// One group, gated before it is normalised, with 1e-5 below the root.
    pub fn new(x: Tensor<3>, z: Tensor<3>, gamma: Tensor<1>) -> Self {
        let [group_size] = gamma.dims();
        Self {
            x,
            z,
            gamma,
            group_size,
            epsilon: 1e-5,
            norm_before_gate: false,
            strategy: Strategy::Auto,
        }
    }

    /// The arguments as the seam takes them.
    pub(super) fn into_inputs(self) -> GatedNormInputs<Dispatch> {
        let dtype = sequence_dtype(&self.x);
        GatedNormInputs {
            x: primitive_of(self.x, dtype),
            z: primitive_of(self.z, dtype),
            gamma: float_primitive(self.gamma),
            options: GatedNormOptions {
                group_size: self.group_size,
                epsilon: self.epsilon,
                norm_before_gate: self.norm_before_gate,
            },
        }
    }
}

/// Gates and normalises, as [`GatedRmsNorm`] says, in f32; the result is of the dtype of `x`.
///
/// # Shapes
///
/// - output: `[batch, seq_len, d_model]`
///
/// # Panics
///
/// If a shape differs from the one documented on its field or `group_size` does not divide `d_model`.
pub fn gated_rms_norm(norm: GatedRmsNorm) -> Tensor<3> {
    let [batch, seq_len, d_model] = norm.x.dims();
    assert_shape!(norm.z, [batch, seq_len, d_model]);
    assert_shape!(norm.gamma, [d_model]);
    assert!(
        norm.group_size > 0 && d_model.is_multiple_of(norm.group_size),
        "gated_rms_norm: group_size = {} must divide d_model = {d_model}",
        norm.group_size
    );
    let dtype = norm.x.dtype();
    let y = match norm.strategy.resolve(&norm.x.device()) {
        Strategy::Reference => reference::gated_rms_norm(norm),
        Strategy::Auto | Strategy::Fused => {
            Tensor::from_dispatch(Dispatch::gated_rms_norm(norm.into_inputs()))
        }
    };
    y.cast(dtype)
}
