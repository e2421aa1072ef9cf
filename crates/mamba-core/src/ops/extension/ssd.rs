//! What crosses the seam for Mamba-2.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType};

use super::{OptionalFloat, OptionalInt};

/// What the SSD recurrence reads, shaped as in [`Ssd`](crate::ops::Ssd). `x`, `dt`, `b` and `c` are of one
/// type, a half precision only on CubeCL; the rest is f32.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct SsdInputs<B: Backend> {
    /// `[batch, seq_len, nheads * headdim]`
    pub x: FloatTensor<B>,
    /// `[batch, seq_len, nheads]`
    pub dt: FloatTensor<B>,
    /// `[nheads]`
    pub a: FloatTensor<B>,
    /// `[batch, seq_len, ngroups * d_state]`
    pub b: FloatTensor<B>,
    /// `[batch, seq_len, ngroups * d_state]`
    pub c: FloatTensor<B>,
    /// `[nheads]` or `[nheads, headdim]`
    #[extension_type]
    pub d: OptionalFloat<B>,
    /// `[nheads]`
    #[extension_type]
    pub dt_bias: OptionalFloat<B>,
    /// `[batch, nheads, headdim, d_state]`
    #[extension_type]
    pub initial_state: OptionalFloat<B>,
    /// `[batch, seq_len]`
    #[extension_type]
    pub seq_idx: OptionalInt<B>,
    /// What is no tensor.
    pub options: SsdOptions,
}

/// Settings of the SSD recurrence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SsdOptions {
    /// Groups of heads that share `b` and `c`.
    pub ngroups: usize,
    /// Positions that are computed as one product of matrices; on a CubeCL device a multiple of 16, of at most 256.
    pub chunk_size: usize,
    /// Whether `dt` goes through softplus.
    pub dt_softplus: bool,
    /// The least and the largest time step, after softplus.
    pub dt_limit: (f64, f64),
}

/// What the SSD recurrence writes: `y` in the type of `x`, the states in f32.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct SsdOutputs<B: Backend> {
    /// `[batch, seq_len, nheads * headdim]`
    pub y: FloatTensor<B>,
    /// The state after the last position, `[batch, nheads, headdim, d_state]`.
    pub final_state: FloatTensor<B>,
    /// The states before positions `0, K, 2K, ..` (`[batch, ceil(seq_len / K), nheads, headdim, d_state]`),
    /// when they were asked for: for the same backend's backward. `K` is `chunk_size`, and fixed on Flex.
    #[extension_type]
    pub checkpoints: OptionalFloat<B>,
}

/// Gradients of [`SsdInputs`], each as shaped as its input; absent where the input was.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct SsdGrads<B: Backend> {
    /// The gradient of `x`.
    pub x: FloatTensor<B>,
    /// The gradient of `dt`.
    pub dt: FloatTensor<B>,
    /// The gradient of `a`.
    pub a: FloatTensor<B>,
    /// The gradient of `b`.
    pub b: FloatTensor<B>,
    /// The gradient of `c`.
    pub c: FloatTensor<B>,
    /// The gradient of `d`.
    #[extension_type]
    pub d: OptionalFloat<B>,
    /// The gradient of `dt_bias`.
    #[extension_type]
    pub dt_bias: OptionalFloat<B>,
    /// The gradient of `initial_state`.
    #[extension_type]
    pub initial_state: OptionalFloat<B>,
}

/// What the gated normalisation reads. `x` and `z` are of one type, a half precision only on CubeCL.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct GatedNormInputs<B: Backend> {
    /// `[batch, seq_len, d_model]`
    pub x: FloatTensor<B>,
    /// The gate before SiLU, `[batch, seq_len, d_model]`.
    pub z: FloatTensor<B>,
    /// `[d_model]`, f32.
    pub gamma: FloatTensor<B>,
    /// What is no tensor.
    pub options: GatedNormOptions,
}

/// Settings of the gated normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatedNormOptions {
    /// Channels that are normalised together; it divides their number.
    pub group_size: usize,
    /// Added to the mean square before its root.
    pub epsilon: f64,
    /// Whether the gate multiplies what is normalised already.
    pub norm_before_gate: bool,
}

/// Gradients of [`GatedNormInputs`], each as shaped as its input.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct GatedNormGrads<B: Backend> {
    /// The gradient of `x`.
    pub x: FloatTensor<B>,
    /// The gradient of `z`.
    pub z: FloatTensor<B>,
    /// The gradient of `gamma`.
    pub gamma: FloatTensor<B>,
}
