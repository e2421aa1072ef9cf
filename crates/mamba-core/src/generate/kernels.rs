//! Tokens through the kernels that decode Mamba-1 and Mamba-2.

use burn::tensor::Tensor;
use mamba_kernels::decode::{Choice, Decoder, Tokens};

use super::GenerateError;
use super::steps::choose;
use crate::language_model::LanguageModel;
use crate::ops::decoder;
use crate::sampling::{Sampler, SamplingError};
use crate::state::LanguageModelState;

/// Tokens through the kernels that decode Mamba-1 and Mamba-2. Where the sampler filters nothing the device chooses, and
/// computes a token while the one before it is on its way.
pub(super) struct Kernels {
    decoder: Decoder,
    choice: Choice,
    vocab_size: usize,
    /// What is computed and not taken.
    pending: Option<Pending>,
}

enum Pending {
    /// What the device has chosen or will have.
    Tokens(Tokens),
    /// The logits behind the prompt, which the decoder has.
    Logits,
    /// The logits that the modules have left behind it.
    Prompt(Box<Tensor<2>>),
}

impl Kernels {
    /// Reads `prompt`, where the kernels cover that.
    pub fn read(model: &LanguageModel, prompt: &[u32], sampler: &mut Sampler) -> Option<Self> {
        let mut kernels = Self::new(model, None, sampler)?;
        let unread = sampler.clone();
        kernels.give_uniform(sampler);
        if let Err(error) = kernels.decoder.read(prompt) {
            log::debug!("decoding: {error}; the prompt goes through the modules");
            *sampler = unread;
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
        sampler: &Sampler,
    ) -> Option<Self> {
        let mut kernels = Self::new(model, Some(state), sampler)?;
        kernels.pending = Some(Pending::Prompt(logits.into()));
        Some(kernels)
    }

    fn new(
        model: &LanguageModel,
        state: Option<&LanguageModelState>,
        sampler: &Sampler,
    ) -> Option<Self> {
        let choice = match sampler.unfiltered() {
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

    /// The token behind `history`.
    pub fn next(&mut self, sampler: &mut Sampler, history: &[u32]) -> Result<u32, GenerateError> {
        let last = history[history.len() - 1];
        let chosen = match self.pending.take() {
            Some(Pending::Tokens(chosen)) => chosen,
            Some(Pending::Logits) => return self.choose(sampler, history),
            Some(Pending::Prompt(logits)) => return choose(*logits, sampler, history),
            None => {
                self.decoder.give_tokens(&[last]);
                match self.choice {
                    Choice::Caller => {
                        self.decoder.step().map_err(device_failed)?;
                        return self.choose(sampler, history);
                    }
                    Choice::Device { .. } => self.step(sampler)?,
                }
            }
        };
        self.pending = Some(Pending::Tokens(self.step(sampler)?));
        match chosen.wait().map_err(device_failed)?[0] {
            Some(token) => Ok(token),
            None => Err(SamplingError::NoChoice {
                vocab_size: self.vocab_size,
            }
            .into()),
        }
    }

    /// By the logits that are there.
    fn choose(&self, sampler: &mut Sampler, history: &[u32]) -> Result<u32, GenerateError> {
        let mut logits = self.decoder.logits().map_err(device_failed)?;
        Ok(sampler.sample(&mut logits, history)?)
    }

    fn give_uniform(&mut self, sampler: &mut Sampler) {
        if let Choice::Device { temperature } = self.choice
            && temperature > 0.0
        {
            self.decoder.give_uniform(&[sampler.uniform()]);
        }
    }

    /// The token that comes behind those that the decoder has.
    fn step(&mut self, sampler: &mut Sampler) -> Result<Tokens, GenerateError> {
        self.give_uniform(sampler);
        self.decoder.step().map_err(device_failed)?;
        Ok(self.decoder.tokens())
    }
}

fn device_failed(error: impl std::fmt::Display) -> GenerateError {
    GenerateError::Device(error.to_string())
}
