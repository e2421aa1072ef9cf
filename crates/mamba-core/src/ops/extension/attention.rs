//! What crosses the seam for attention.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType};

/// What attention writes.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct AttentionOutputs<B: Backend> {
    /// As shaped as the queries.
    pub y: FloatTensor<B>,
    /// `[batch, heads, len]`: the logarithm to base 2 of the sum of `exp(score)` over the keys that a query sees.
    pub log_sums: FloatTensor<B>,
}

/// Gradients of attention, each as shaped as its input.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct AttentionGrads<B: Backend> {
    /// The gradient of the queries.
    pub query: FloatTensor<B>,
    /// The gradient of the keys.
    pub key: FloatTensor<B>,
    /// The gradient of the values.
    pub value: FloatTensor<B>,
}
