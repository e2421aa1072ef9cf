//! What a model remembers between two calls.

use burn::tensor::{Device, Int, Tensor};

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
    /// The sequences of both.
    fn join(self, other: Self) -> Self {
        fn both<const D: usize>(first: Tensor<D>, second: Tensor<D>) -> Tensor<D> {
            Tensor::cat(vec![first, second], 0)
        }
        match (self, other) {
            (Self::Mamba1(a), Self::Mamba1(b)) => Self::Mamba1(Mamba1State {
                conv: both(a.conv, b.conv),
                ssm: both(a.ssm, b.ssm),
            }),
            (Self::Mamba2(a), Self::Mamba2(b)) => Self::Mamba2(Mamba2State {
                conv: both(a.conv, b.conv),
                ssm: both(a.ssm, b.ssm),
            }),
            (Self::Attention(a), Self::Attention(b)) => Self::Attention(KvCache::from_tokens(
                both(a.keys(), b.keys()),
                both(a.values(), b.values()),
            )),
            (Self::Stateless, Self::Stateless) => Self::Stateless,
            (a, b) => panic!("LayerState: states of different mixers: {a:?} and {b:?}"),
        }
    }

    /// The sequences of these rows.
    fn select(self, rows: &Tensor<1, Int>) -> Self {
        match self {
            Self::Mamba1(it) => Self::Mamba1(Mamba1State {
                conv: it.conv.select(0, rows.clone()),
                ssm: it.ssm.select(0, rows.clone()),
            }),
            Self::Mamba2(it) => Self::Mamba2(Mamba2State {
                conv: it.conv.select(0, rows.clone()),
                ssm: it.ssm.select(0, rows.clone()),
            }),
            Self::Attention(cache) => Self::Attention(KvCache::from_tokens(
                cache.keys().select(0, rows.clone()),
                cache.values().select(0, rows.clone()),
            )),
            Self::Stateless => Self::Stateless,
        }
    }

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
    /// The sequences of several states as one batch, in their order.
    ///
    /// # Panics
    ///
    /// If there is none, they are of different models, or attention has seen different numbers of tokens.
    pub(crate) fn cat(states: Vec<Self>) -> Self {
        let join = |all: Self, next: Self| Self {
            position: all.position.max(next.position),
            layers: all
                .layers
                .into_iter()
                .zip(next.layers)
                .map(|(all, next)| all.join(next))
                .collect(),
        };
        states.into_iter().reduce(join).expect("a state at least")
    }

    /// The sequences of these rows, in that order.
    pub(crate) fn select(self, rows: &[usize], device: &Device) -> Self {
        let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let rows = Tensor::<1, Int>::from_data(&rows[..], device);
        let layers = self.layers.into_iter();
        Self {
            layers: layers.map(|layer| layer.select(&rows)).collect(),
            position: self.position,
        }
    }

    /// Bytes held by all layers.
    pub fn num_bytes(&self) -> usize {
        self.layers.iter().map(LayerState::num_bytes).sum()
    }
}
