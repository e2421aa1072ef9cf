//! Tokens through the kernels that decode Mamba-1 and Mamba-2.

use burn::tensor::{Device, Tensor, TensorData};
use mamba_kernels::decode::{Choice, Decoder, Tokens};

use super::{Chooser, GenerateError};
use crate::language_model::LanguageModel;
use crate::ops::decoder;
use crate::sampling::SamplingError;
use crate::snapshot::Snapshot;
use crate::state::{LanguageModelState, LayerState, Mamba1State, Mamba2State};

/// Tokens through the kernels that decode Mamba-1 and Mamba-2. Where the sampler filters nothing the device chooses, and
/// computes a token while the one before it is on its way.
pub(super) struct Kernels {
    decoder: Decoder,
    choice: Choice,
    vocab_size: usize,
    /// What is computed and not taken. The decoder has read all that came before.
    pending: Option<Pending>,
}

enum Pending {
    /// What the device has chosen or will have.
    Tokens(Tokens),
    /// The logits, which the decoder has.
    Logits,
    /// The logits that the modules have left behind the prompt.
    Prompt(Box<Tensor<2>>),
}

impl Kernels {
    /// Reads `prompt`, where the kernels cover that.
    pub fn read(model: &LanguageModel, prompt: &[u32], chooser: &mut Chooser) -> Option<Self> {
        let mut kernels = Self::new(model, None, chooser)?;
        let unread = chooser.clone();
        kernels.give_uniform(chooser);
        if let Err(error) = kernels.decoder.read(prompt) {
            log::debug!("decoding: {error}; the prompt goes through the modules");
            *chooser = unread;
            return None;
        }
        kernels.pending = Some(match kernels.choice {
            Choice::Device { .. } => Pending::Tokens(kernels.decoder.tokens()),
            Choice::Caller => Pending::Logits,
        });
        Some(kernels)
    }

    /// Goes on from what has left `state` and `logits` behind.
    pub fn go_on(
        model: &LanguageModel,
        state: &LanguageModelState,
        logits: Tensor<2>,
        chooser: &Chooser,
    ) -> Option<Self> {
        let mut kernels = Self::new(model, Some(state), chooser)?;
        kernels.pending = Some(Pending::Prompt(logits.into()));
        Some(kernels)
    }

    fn new(
        model: &LanguageModel,
        state: Option<&LanguageModelState>,
        chooser: &Chooser,
    ) -> Option<Self> {
        let choice = match chooser.unfiltered() {
            Some(temperature) => Choice::Device { temperature },
            None => Choice::Caller,
        };
        Some(Self {
            decoder: decoder(model, state, choice)?,
            choice,
            vocab_size: model.vocab_size(),
            pending: None,
        })
    }

    /// The token behind `last`.
    pub fn next(&mut self, chooser: &mut Chooser, last: Option<u32>) -> Result<u32, GenerateError> {
        self.read_last(chooser, last)?;
        let chosen = match self.pending.take() {
            Some(Pending::Tokens(chosen)) => chosen,
            Some(Pending::Prompt(logits)) => {
                return chooser.choose(&mut super::steps::to_host(*logits)?);
            }
            Some(Pending::Logits) | None => {
                return chooser.choose(&mut self.decoder.logits().map_err(device_failed)?);
            }
        };
        self.pending = Some(Pending::Tokens(self.step(chooser)?));
        match chosen.wait().map_err(device_failed)?[0] {
            Some(token) => Ok(token),
            None => Err(SamplingError::NoChoice {
                vocab_size: self.vocab_size,
            }
            .into()),
        }
    }

    /// Reads the token that was chosen last, unless that is done.
    pub fn read_last(
        &mut self,
        chooser: &mut Chooser,
        last: Option<u32>,
    ) -> Result<(), GenerateError> {
        if self.pending.is_some() {
            return Ok(());
        }
        let last = last.expect("a token was chosen");
        self.decoder.give_tokens(&[last]);
        self.pending = Some(match self.choice {
            Choice::Caller => {
                self.decoder.step().map_err(device_failed)?;
                Pending::Logits
            }
            Choice::Device { .. } => Pending::Tokens(self.step(chooser)?),
        });
        Ok(())
    }

    /// After [`Kernels::read_last`], but for the position.
    pub fn snapshot(
        &self,
        model: &LanguageModel,
        device: &Device,
    ) -> Result<Snapshot, GenerateError> {
        let logits = match &self.pending {
            Some(Pending::Prompt(logits)) => (**logits).clone(),
            _ => {
                let logits = self.decoder.logits().map_err(device_failed)?;
                Tensor::from_data(TensorData::new(logits, [1, self.vocab_size]), device)
            }
        };
        let states = self.decoder.states().map_err(device_failed)?;
        let mut state = model.initial_state(1, device);
        let layers = state.layers.into_iter().zip(states);
        state.layers = layers
            .map(|(layer, values)| filled(layer, values, device))
            .collect();
        Ok(Snapshot { state, logits })
    }

    fn give_uniform(&mut self, chooser: &mut Chooser) {
        if let Choice::Device { temperature } = self.choice
            && temperature > 0.0
        {
            self.decoder.give_uniform(&[chooser.sampler.uniform()]);
        }
    }

    /// The token that comes behind those that the decoder has.
    fn step(&mut self, chooser: &mut Chooser) -> Result<Tokens, GenerateError> {
        self.give_uniform(chooser);
        self.decoder.step().map_err(device_failed)?;
        Ok(self.decoder.tokens())
    }
}

/// A state of that kind and these sizes with those values.
fn filled(layer: LayerState, [conv, ssm]: [Vec<f32>; 2], device: &Device) -> LayerState {
    fn like<const D: usize>(values: Vec<f32>, tensor: &Tensor<D>, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, tensor.dims()), device)
    }
    match layer {
        LayerState::Mamba1(it) => LayerState::Mamba1(Mamba1State {
            conv: like(conv, &it.conv, device),
            ssm: like(ssm, &it.ssm, device),
        }),
        LayerState::Mamba2(it) => LayerState::Mamba2(Mamba2State {
            conv: like(conv, &it.conv, device),
            ssm: like(ssm, &it.ssm, device),
        }),
        other => other,
    }
}

pub(super) fn device_failed(error: impl std::fmt::Display) -> GenerateError {
    GenerateError::Device(error.to_string())
}
