//! What a model remembers between two calls.

use burn::tensor::{Device, Tensor};

use crate::transformer::KvCache;

/// What one [`Mamba1`](crate::Mamba1) mixer remembers: a constant amount, however long the
/// sequence has been.
#[derive(Clone, Debug)]
pub struct Mamba1State {
    /// The last `d_conv - 1` inputs of the convolution, oldest first,
    /// `[batch, d_conv - 1, d_inner]`.
    pub conv: Tensor<3>,
    /// The state of the recurrence, `[batch, d_inner, d_state]`.
    pub ssm: Tensor<3>,
}

impl Mamba1State {
    /// The state before any token.
    pub fn zeros(
        batch: usize,
        d_inner: usize,
        d_state: usize,
        d_conv: usize,
        device: &Device,
    ) -> Self {
        Self {
            conv: Tensor::zeros([batch, d_conv - 1, d_inner], device),
            ssm: Tensor::zeros([batch, d_inner, d_state], device),
        }
    }

    /// Bytes held, in f32.
    pub fn num_bytes(&self) -> usize {
        4 * (self.conv.shape().num_elements() + self.ssm.shape().num_elements())
    }
}

/// What one [`Mamba2`](crate::Mamba2) mixer remembers: a constant amount, however long the
/// sequence has been.
#[derive(Clone, Debug)]
pub struct Mamba2State {
    /// The last `d_conv - 1` inputs of the convolution, oldest first,
    /// `[batch, d_conv - 1, d_ssm + 2 ngroups d_state]`.
    pub conv: Tensor<3>,
    /// The state of the recurrence, `[batch, nheads, headdim, d_state]`.
    pub ssm: Tensor<4>,
}

impl Mamba2State {
    /// Bytes held, in f32.
    pub fn num_bytes(&self) -> usize {
        4 * (self.conv.shape().num_elements() + self.ssm.shape().num_elements())
    }
}

/// What one layer of a [`LanguageModel`](crate::LanguageModel) remembers.
#[derive(Clone, Debug)]
pub enum LayerState {
    /// Of a Mamba-1 mixer.
    Mamba1(Mamba1State),
    /// Of a Mamba-2 mixer.
    Mamba2(Mamba2State),
    /// Of an attention mixer.
    Attention(KvCache),
    /// Of an MLP, which looks at one position only.
    Stateless,
}

impl LayerState {
    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Mamba1(state) => state.num_bytes(),
            Self::Mamba2(state) => state.num_bytes(),
            Self::Attention(cache) => cache.num_bytes(),
            Self::Stateless => 0,
        }
    }
}

/// What a [`LanguageModel`](crate::LanguageModel) remembers of the tokens it has read.
#[derive(Clone, Debug)]
pub struct LanguageModelState {
    /// One entry a layer, first layer first.
    pub layers: Vec<LayerState>,
    /// Tokens read so far, which is the position of the next one.
    pub position: usize,
}

impl LanguageModelState {
    /// Bytes held by all layers.
    pub fn num_bytes(&self) -> usize {
        self.layers.iter().map(LayerState::num_bytes).sum()
    }
}
