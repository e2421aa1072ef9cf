//! Tokens through the kernels that decode Mamba-1.

use mamba_kernels::decode::{Choice, Decoder, Tokens};

use super::GenerateError;
use crate::language_model::LanguageModel;
use crate::ops::decoder;
use crate::sampling::{Sampler, SamplingError};
use crate::state::LanguageModelState;

/// Tokens through the kernels that decode Mamba-1. Where the sampler filters nothing the device chooses, and
/// computes a token while the one before it is on its way.
pub(super) struct Kernels {
    decoder: Decoder,
    choice: Choice,
    vocab_size: usize,
    /// What the device has chosen or will have.
    pending: Option<Tokens>,
}

impl Kernels {
    pub fn new(
        model: &LanguageModel,
        state: &LanguageModelState,
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

    pub fn next(&mut self, sampler: &mut Sampler, history: &[u32]) -> Result<u32, GenerateError> {
        let last = history[history.len() - 1];
        let Choice::Device { temperature } = self.choice else {
            self.decoder.give_tokens(&[last]);
            self.decoder.step();
            let mut logits = self.decoder.logits().map_err(device_failed)?;
            return Ok(sampler.sample(&mut logits, history)?);
        };
        let chosen = match self.pending.take() {
            Some(chosen) => chosen,
            None => {
                self.decoder.give_tokens(&[last]);
                self.step(temperature, sampler)
            }
        };
        self.pending = Some(self.step(temperature, sampler));
        match chosen.wait().map_err(device_failed)?[0] {
            Some(token) => Ok(token),
            None => Err(SamplingError::NoChoice {
                vocab_size: self.vocab_size,
            }
            .into()),
        }
    }

    /// The token that comes behind those that the decoder has.
    fn step(&mut self, temperature: f32, sampler: &mut Sampler) -> Tokens {
        if temperature > 0.0 {
            self.decoder.give_uniform(&[sampler.uniform()]);
        }
        self.decoder.step();
        self.decoder.tokens()
    }
}

fn device_failed(error: impl std::fmt::Display) -> GenerateError {
    GenerateError::Device(error.to_string())
}
