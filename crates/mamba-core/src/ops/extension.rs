//! The seam between tensors and backends: one trait, one method an op and a direction.
//!
//! Values cross the seam as backend primitives, so that every backend can supply its own kernel:
//! Flex its fused CPU loops, GPUs the kernels of `mamba_kernels`, others the portable bodies of
//! `ops::portable`. Gradients are ours too: `Autodiff<B>` records one node an op and calls the `_backward`
//! method of `B`.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
use burn::tensor::FloatDType;

mod attention;
mod ssd;

#[cfg(feature = "fusion")]
use super::meta;
use super::portable;

pub use attention::{AttentionGrads, AttentionOutputs};
#[cfg(feature = "fusion")]
pub use attention::{AttentionGradsMetadata, AttentionOutputsMetadata};
pub use ssd::{
    GatedNormGrads, GatedNormInputs, GatedNormOptions, SsdGrads, SsdInputs, SsdOptions, SsdOutputs,
};
#[cfg(feature = "fusion")]
pub use ssd::{
    GatedNormGradsMetadata, GatedNormInputsMetadata, SsdGradsMetadata, SsdInputsMetadata,
    SsdOutputsMetadata,
};

/// A float tensor that a caller may leave out.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum OptionalFloat<B: Backend> {
    /// Left out.
    Absent,
    /// Given.
    Present(FloatTensor<B>),
}

/// An integer tensor that a caller may leave out.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum OptionalInt<B: Backend> {
    /// Left out.
    Absent,
    /// Given.
    Present(IntTensor<B>),
}

/// What the selective scan reads, shaped as in [`SelectiveScan`](super::SelectiveScan). `u`, `delta`, `b`,
/// `c` and `z` are of one type, a half precision only on CubeCL; the rest is f32.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct ScanInputs<B: Backend> {
    /// `[batch, seq_len, d_inner]`
    pub u: FloatTensor<B>,
    /// `[batch, seq_len, d_inner]`
    pub delta: FloatTensor<B>,
    /// `[d_inner, d_state]`
    pub a: FloatTensor<B>,
    /// `[batch, seq_len, d_state]`
    pub b: FloatTensor<B>,
    /// `[batch, seq_len, d_state]`
    pub c: FloatTensor<B>,
    /// `[d_inner]`
    #[extension_type]
    pub d: OptionalFloat<B>,
    /// `[batch, seq_len, d_inner]`
    #[extension_type]
    pub z: OptionalFloat<B>,
    /// `[d_inner]`
    #[extension_type]
    pub delta_bias: OptionalFloat<B>,
    /// `[batch, d_inner, d_state]`
    #[extension_type]
    pub initial_state: OptionalFloat<B>,
    /// `[batch, seq_len]`
    #[extension_type]
    pub seq_idx: OptionalInt<B>,
    /// Whether `delta` goes through softplus.
    pub delta_softplus: bool,
}

/// What the selective scan writes: `y` in the type of `u`, the states in f32.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct ScanOutputs<B: Backend> {
    /// `[batch, seq_len, d_inner]`
    pub y: FloatTensor<B>,
    /// The state after the last position, `[batch, d_inner, d_state]`.
    pub final_state: FloatTensor<B>,
    /// The states before positions `0, K, 2K, ..` (`[batch, ceil(seq_len / K), d_state, d_inner]`),
    /// when they were asked for: for the same backend's backward. `K` is
    /// [`SCAN_CHECKPOINT_INTERVAL`], and smaller on Flex.
    #[extension_type]
    pub checkpoints: OptionalFloat<B>,
}

/// Gradients of [`ScanInputs`], each as shaped as its input; absent where the input was.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct ScanGrads<B: Backend> {
    /// The gradient of `u`.
    pub u: FloatTensor<B>,
    /// The gradient of `delta`.
    pub delta: FloatTensor<B>,
    /// The gradient of `a`.
    pub a: FloatTensor<B>,
    /// The gradient of `b`.
    pub b: FloatTensor<B>,
    /// The gradient of `c`.
    pub c: FloatTensor<B>,
    /// The gradient of `d`.
    #[extension_type]
    pub d: OptionalFloat<B>,
    /// The gradient of `z`.
    #[extension_type]
    pub z: OptionalFloat<B>,
    /// The gradient of `delta_bias`.
    #[extension_type]
    pub delta_bias: OptionalFloat<B>,
    /// The gradient of `initial_state`.
    #[extension_type]
    pub initial_state: OptionalFloat<B>,
}

/// What the causal convolution reads, shaped as in [`CausalConv1d`](super::CausalConv1d). `x` is a half
/// precision only on CubeCL; the rest is f32.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct ConvInputs<B: Backend> {
    /// `[batch, seq_len, channels]`
    pub x: FloatTensor<B>,
    /// `[channels, width]`
    pub weight: FloatTensor<B>,
    /// `[channels]`
    #[extension_type]
    pub bias: OptionalFloat<B>,
    /// `[batch, width - 1, channels]`
    #[extension_type]
    pub initial_state: OptionalFloat<B>,
    /// `[batch, seq_len]`
    #[extension_type]
    pub seq_idx: OptionalInt<B>,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// What the causal convolution writes: `y` in the type of `x`, the window in f32.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct ConvOutputs<B: Backend> {
    /// `[batch, seq_len, channels]`
    pub y: FloatTensor<B>,
    /// The last `width - 1` inputs of the last run, `[batch, width - 1, channels]`.
    pub final_state: FloatTensor<B>,
}

/// Gradients of [`ConvInputs`], each as shaped as its input; absent where the input was.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct ConvGrads<B: Backend> {
    /// The gradient of `x`.
    pub x: FloatTensor<B>,
    /// The gradient of `weight`.
    pub weight: FloatTensor<B>,
    /// The gradient of `bias`.
    #[extension_type]
    pub bias: OptionalFloat<B>,
    /// The gradient of `initial_state`.
    #[extension_type]
    pub initial_state: OptionalFloat<B>,
}

/// A loss together with the gradients of what made it.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct LossGrads<B: Backend> {
    /// `[1]`, f32 as the gradients are.
    pub loss: FloatTensor<B>,
    /// `[tokens, d_model]`
    pub hidden: FloatTensor<B>,
    /// `[rows, d_model]`
    pub weight: FloatTensor<B>,
}

/// Gradients of [`MambaOps::rms_norm`], each as shaped as its input.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct NormGrads<B: Backend> {
    /// The gradient of `x`.
    pub x: FloatTensor<B>,
    /// The gradient of `gamma`.
    pub gamma: FloatTensor<B>,
}

/// Neighbouring columns of a tensor.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct Parts<B: Backend> {
    /// The first columns.
    pub first: FloatTensor<B>,
    /// The next ones.
    pub second: FloatTensor<B>,
    /// The rest, if any is left.
    #[extension_type]
    pub third: OptionalFloat<B>,
}

/// Positions between two saved states of the selective scan.
///
/// The backward pass recomputes a chunk of this length from its saved state, so a tape keeps
/// `4 * d_state / 32` bytes a token and channel instead of `4 * d_state`. Flex, which is never behind
/// fusion, keeps states more often: `ops::cpu::selective_scan::CHECKPOINT_INTERVAL`.
pub const SCAN_CHECKPOINT_INTERVAL: usize = 32;

/// The operations of this crate that backends supply.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff,
    Fusion: cfg(feature = "fusion"),
)]
pub trait MambaOps: Backend {
    /// Runs the recurrence over `seq_len`; keeps the states that backward starts from when
    /// `save_checkpoints` is set.
    #[fusion(meta = meta::scan)]
    fn selective_scan(
        #[extension_type] inputs: ScanInputs<Self>,
        save_checkpoints: bool,
    ) -> ScanOutputs<Self> {
        portable::selective_scan::forward::<Self>(inputs, save_checkpoints)
    }

    /// Gradients of [`MambaOps::selective_scan`] from its checkpoints.
    #[fusion(meta = meta::scan_backward)]
    fn selective_scan_backward(
        #[extension_type] inputs: ScanInputs<Self>,
        checkpoints: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        #[extension_type] grad_final_state: OptionalFloat<Self>,
    ) -> ScanGrads<Self> {
        portable::selective_scan::backward::<Self>(inputs, checkpoints, grad_y, grad_final_state)
    }

    /// Depthwise causal convolution over time.
    #[fusion(meta = meta::conv)]
    fn causal_conv1d(#[extension_type] inputs: ConvInputs<Self>) -> ConvOutputs<Self> {
        portable::causal_conv1d::forward::<Self>(inputs)
    }

    /// Gradients of [`MambaOps::causal_conv1d`].
    #[fusion(meta = meta::conv_backward)]
    fn causal_conv1d_backward(
        #[extension_type] inputs: ConvInputs<Self>,
        grad_y: FloatTensor<Self>,
        #[extension_type] grad_final_state: OptionalFloat<Self>,
    ) -> ConvGrads<Self> {
        portable::causal_conv1d::backward::<Self>(inputs, grad_y, grad_final_state)
    }

    /// Runs the recurrence of Mamba-2 in chunks; keeps the states that backward starts from when
    /// `save_checkpoints` is set.
    #[fusion(meta = meta::ssd)]
    fn ssd(#[extension_type] inputs: SsdInputs<Self>, save_checkpoints: bool) -> SsdOutputs<Self> {
        portable::ssd::forward::<Self>(inputs, save_checkpoints)
    }

    /// Gradients of [`MambaOps::ssd`] from its checkpoints.
    #[fusion(meta = meta::ssd_backward)]
    fn ssd_backward(
        #[extension_type] inputs: SsdInputs<Self>,
        checkpoints: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        #[extension_type] grad_final_state: OptionalFloat<Self>,
    ) -> SsdGrads<Self> {
        portable::ssd::backward::<Self>(inputs, checkpoints, grad_y, grad_final_state)
    }

    /// The normalisation and gate of Mamba-2; the result is of the type of `x`.
    #[fusion(meta = meta::gated_rms_norm)]
    fn gated_rms_norm(#[extension_type] inputs: GatedNormInputs<Self>) -> FloatTensor<Self> {
        portable::gated_rms_norm::forward::<Self>(inputs)
    }

    /// Gradients of [`MambaOps::gated_rms_norm`].
    #[fusion(meta = meta::gated_rms_norm_backward)]
    fn gated_rms_norm_backward(
        #[extension_type] inputs: GatedNormInputs<Self>,
        grad_y: FloatTensor<Self>,
    ) -> GatedNormGrads<Self> {
        portable::gated_rms_norm::backward::<Self>(inputs, grad_y)
    }

    /// Causal attention of `query [batch, len, heads * dim]` over `key` and `value [batch, seen, kv_heads * dim]`, f32: the
    /// queries are those of the last positions, and each sees the keys up to its own.
    #[fusion(meta = meta::attention)]
    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        heads: usize,
    ) -> AttentionOutputs<Self> {
        portable::attention::forward::<Self>(query, key, value, heads)
    }

    /// Gradients of [`MambaOps::causal_attention`] from what it returned.
    #[fusion(meta = meta::attention_backward)]
    fn causal_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        heads: usize,
        y: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
    ) -> AttentionGrads<Self> {
        portable::attention::backward::<Self>(query, key, value, heads, y, log_sums, grad_y)
    }

    /// GELU in the form with tanh, f32.
    #[fusion(meta = meta::gelu)]
    fn tanh_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::gelu::forward::<Self>(x)
    }

    /// The gradient of [`MambaOps::tanh_gelu`].
    #[fusion(meta = meta::gelu_backward)]
    fn tanh_gelu_backward(x: FloatTensor<Self>, grad_y: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::gelu::backward::<Self>(x, grad_y)
    }

    /// Negative log-likelihood of each target, `[tokens]`, f32; zero where the target is negative. The
    /// products are of the type of `hidden`, with sums in f32.
    #[fusion(meta = meta::token_losses)]
    fn token_losses(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        portable::linear_cross_entropy::token_losses::<Self>(hidden, weight, targets, vocab_size)
    }

    /// Mean cross-entropy over the targets that are not negative, `[1]`, as [`MambaOps::token_losses`].
    #[fusion(meta = meta::loss)]
    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        portable::linear_cross_entropy::loss::<Self>(hidden, weight, targets, vocab_size)
    }

    /// [`MambaOps::linear_cross_entropy`] with its gradients, in one pass over the logits.
    #[fusion(meta = meta::loss_with_grads)]
    fn linear_cross_entropy_with_grads(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> LossGrads<Self> {
        portable::linear_cross_entropy::loss_with_grads::<Self>(hidden, weight, targets, vocab_size)
    }

    /// `x weight + bias + residual` over the last axis of `x`, with `weight [d_input, d_output]` of its type
    /// and the residual as shaped as the result, which is of type `out`.
    #[fusion(meta = meta::linear)]
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalFloat<Self>,
        #[extension_type] residual: OptionalFloat<Self>,
        out: FloatDType,
    ) -> FloatTensor<Self> {
        let y = Self::linear(x, weight, bias.into_option());
        portable::add_residual::<Self>(portable::cast::<Self>(y, out), residual)
    }

    /// The gradient of the weight of [`MambaOps::fused_linear`], `[d_input, d_output]`, f32.
    #[fusion(meta = meta::weight_backward)]
    fn fused_linear_weight_backward(
        x: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::cast::<Self>(Self::linear_weight_backward(x, grad_y), FloatDType::F32)
    }

    /// `x / sqrt(mean(x^2) + epsilon) * gamma` over the last axis, with `gamma [d_model]`, both f32; the
    /// result is of type `out`.
    #[fusion(meta = meta::rms_norm)]
    fn rms_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        out: FloatDType,
    ) -> FloatTensor<Self> {
        portable::cast::<Self>(portable::rms_norm::forward::<Self>(x, gamma, epsilon), out)
    }

    /// Gradients of [`MambaOps::rms_norm`].
    #[fusion(meta = meta::rms_norm_backward)]
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        grad_y: FloatTensor<Self>,
    ) -> NormGrads<Self> {
        let grad_y = portable::cast::<Self>(grad_y, FloatDType::F32);
        portable::rms_norm::backward::<Self>(x, gamma, epsilon, grad_y)
    }

    /// Cuts the last axis of `x` into parts of `first` and `second` columns and the rest, in place where the device
    /// can read there. Their gradients are put together once.
    #[fusion(meta = meta::split)]
    fn split(x: FloatTensor<Self>, first: usize, second: usize) -> Parts<Self> {
        portable::split::<Self>(x, first, second)
    }

    /// Parts side by side along the last axis, as [`MambaOps::split`] cut them.
    #[fusion(meta = meta::join)]
    fn join(#[extension_type] parts: Parts<Self>) -> FloatTensor<Self> {
        portable::join::<Self>(parts)
    }

    /// The rows of `weight [rows, d_model]`, f32, that `tokens [batch, seq_len]` name.
    #[fusion(meta = meta::embed)]
    fn embed(weight: FloatTensor<Self>, tokens: IntTensor<Self>) -> FloatTensor<Self> {
        Self::embedding(weight, tokens)
    }

    /// The gradient of the weight of [`MambaOps::embed`].
    #[fusion(meta = meta::embed_backward)]
    fn embed_backward(
        weight: FloatTensor<Self>,
        tokens: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::embedding_backward(weight, grad, tokens)
    }
}

impl<B: Backend> From<Option<FloatTensor<B>>> for OptionalFloat<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::Absent, Self::Present)
    }
}

impl<B: Backend> OptionalFloat<B> {
    /// The tensor, where there is one.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Absent => None,
            Self::Present(tensor) => Some(tensor),
        }
    }
}

impl<B: Backend> OptionalInt<B> {
    /// The tensor, where there is one.
    pub fn into_option(self) -> Option<IntTensor<B>> {
        match self {
            Self::Absent => None,
            Self::Present(tensor) => Some(tensor),
        }
    }
}
