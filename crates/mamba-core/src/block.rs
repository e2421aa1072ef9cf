//! One layer of a language model: a mixer between a norm and the residual stream.

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::mamba1::Mamba1;
use crate::mamba2::Mamba2;
use crate::norm::Norm;
use crate::state::LayerState;
use crate::transformer::{Attention, Mlp};

/// Which mixer a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerKind {
    /// The selective state space of [`Mamba1`].
    Mamba1,
    /// The state-space duality of [`Mamba2`].
    Mamba2,
    /// Causal self-[`Attention`].
    Attention,
    /// A position-wise [`Mlp`].
    Mlp,
}

/// What a layer does to its normalised input.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a handful of handles each; boxing would hide them
pub enum Mixer {
    /// Selective state space.
    Mamba1(Mamba1),
    /// State-space duality.
    Mamba2(Mamba2),
    /// Causal self-attention.
    Attention(Attention),
    /// Position-wise feed-forward.
    Mlp(Mlp),
}

/// A pre-norm residual layer: `x + mixer(norm(x))`.
///
/// The residual stream is f32 whatever the weights are: it sums the outputs of all layers, and
/// half precision would round the small ones away.
#[derive(Module, Debug)]
pub struct Block {
    /// Applied before the mixer.
    pub norm: Norm,
    /// What the layer does.
    pub mixer: Mixer,
}

impl Block {
    /// Runs whole sequences from their first token and keeps no state: the call to train with.
    /// `seq_idx` separates packed sequences.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, seq_len, d_model]`
    /// - seq_idx: `[batch, seq_len]`
    /// - output: `[batch, seq_len, d_model]`
    pub fn forward_sequence(&self, x: Tensor<3>, seq_idx: Option<Tensor<2, Int>>) -> Tensor<3> {
        let input = self.norm.forward(x.clone());
        self.mix_sequence(input, x, seq_idx)
    }

    /// Adds what the mixer makes of `input`, which is normalised already, to `residual`.
    pub(crate) fn mix_sequence(
        &self,
        input: Tensor<3>,
        residual: Tensor<3>,
        seq_idx: Option<Tensor<2, Int>>,
    ) -> Tensor<3> {
        let output = match &self.mixer {
            Mixer::Mamba1(mixer) => return mixer.mix(input, None, seq_idx, Some(residual)).0,
            Mixer::Mamba2(mixer) => return mixer.mix(input, None, seq_idx, Some(residual)).0,
            Mixer::Attention(mixer) => mixer.forward_sequence(input, seq_idx),
            Mixer::Mlp(mixer) => mixer.forward(input),
        };
        residual + output.cast(DType::F32)
    }

    /// Runs the next tokens of sequences whose earlier ones are in `state`.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, seq_len, d_model]`
    /// - output: `[batch, seq_len, d_model]`, and the state after the last position
    ///
    /// # Panics
    ///
    /// If `state` is of another kind of mixer.
    pub fn forward(&self, x: Tensor<3>, state: LayerState) -> (Tensor<3>, LayerState) {
        let input = self.norm.forward(x.clone());
        self.mix(input, x, state)
    }

    /// [`Block::mix_sequence`] of the next tokens.
    pub(crate) fn mix(
        &self,
        input: Tensor<3>,
        residual: Tensor<3>,
        state: LayerState,
    ) -> (Tensor<3>, LayerState) {
        let [_, seq_len, _] = input.dims();
        let (output, state) = match (&self.mixer, state) {
            (Mixer::Mamba1(mixer), LayerState::Mamba1(state)) => {
                let (output, state) = mixer.mix(input, Some(state), None, Some(residual));
                return (output, LayerState::Mamba1(state));
            }
            (Mixer::Mamba2(mixer), LayerState::Mamba2(state)) => {
                let (output, state) = mixer.mix(input, Some(state), None, Some(residual));
                return (output, LayerState::Mamba2(state));
            }
            (Mixer::Attention(mixer), LayerState::Attention(cache)) if seq_len == 1 => {
                let (output, cache) = mixer.step(input.squeeze_dim(1), cache);
                (output.unsqueeze_dim(1), LayerState::Attention(cache))
            }
            (Mixer::Attention(mixer), LayerState::Attention(cache)) => {
                let (output, cache) = mixer.forward(input, Some(cache));
                (output, LayerState::Attention(cache))
            }
            (Mixer::Mlp(mixer), LayerState::Stateless) => {
                (mixer.forward(input), LayerState::Stateless)
            }
            (_, state) => panic!("Block: a state of another mixer was given: {state:?}"),
        };
        (residual + output.cast(DType::F32), state)
    }

    /// The state before any token.
    pub fn initial_state(&self, batch: usize, device: &Device) -> LayerState {
        match &self.mixer {
            Mixer::Mamba1(mixer) => LayerState::Mamba1(mixer.initial_state(batch, device)),
            Mixer::Mamba2(mixer) => LayerState::Mamba2(mixer.initial_state(batch, device)),
            Mixer::Attention(mixer) => LayerState::Attention(mixer.empty_cache(batch, device)),
            Mixer::Mlp(_) => LayerState::Stateless,
        }
    }
}
