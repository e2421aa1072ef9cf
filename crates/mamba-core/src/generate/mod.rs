//! Generation as an iterator of tokens.

#[cfg(feature = "cube")]
mod kernels;
mod steps;

use burn::tensor::Device;

use crate::language_model::LanguageModel;
use crate::sampling::{Sampler, SamplingError};
use steps::Steps;

/// Why generation could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is nothing to continue.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// A token of the prompt is none of the model's.
    #[error(
        "token {token} of the prompt is not below the model's vocabulary of {vocab_size}: the tokenizer is another model's"
    )]
    UnknownToken {
        /// The offending token.
        token: u32,
        /// Entries of the model's vocabulary.
        vocab_size: usize,
    },
    /// The model's learned positions are used up.
    #[error(
        "the model has {0} learned positions and the sequence has reached them: shorten the prompt or generate fewer tokens"
    )]
    OutOfPositions(usize),
    /// No token could be drawn.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Continues one sequence, a token an iteration, for as long as it is asked to.
///
/// Made by [`LanguageModel::generate`]. Memory is constant for a model of Mamba mixers. On a CubeCL device a
/// model of Mamba-1 and Mamba-2 layers is decoded by kernels of its own, which keep a copy of its matrices in the type
/// it computes with; a device and another then round differently, and a seed may name another text on each. Models with
/// other layers, learned positions, layer norms or an MLP beside a recurrence are stepped through the modules.
pub struct Generator<'a> {
    sampler: Sampler,
    history: Vec<u32>,
    steps: Steps<'a>,
}

impl LanguageModel {
    /// Reads `prompt` and returns the iterator over what follows.
    ///
    /// # Errors
    ///
    /// If the prompt is empty, has a token past the vocabulary, or is longer than the model's
    /// learned positions.
    pub fn generate(
        &self,
        prompt: &[u32],
        mut sampler: Sampler,
        device: &Device,
    ) -> Result<Generator<'_>, GenerateError> {
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let vocab_size = self.vocab_size();
        if let Some(token) = prompt
            .iter()
            .copied()
            .find(|token| *token as usize >= vocab_size)
        {
            return Err(GenerateError::UnknownToken { token, vocab_size });
        }
        if let Some(positions) = self.max_positions().filter(|max| prompt.len() > *max) {
            return Err(GenerateError::OutOfPositions(positions));
        }
        let steps = Steps::read(self, prompt, &mut sampler, device);
        Ok(Generator {
            sampler,
            history: prompt.to_vec(),
            steps,
        })
    }
}

impl Generator<'_> {
    /// The prompt and all tokens generated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.history
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<u32, GenerateError>;

    /// The next token.
    fn next(&mut self) -> Option<Self::Item> {
        let token = self.steps.next(&mut self.sampler, &self.history);
        if let Ok(token) = token {
            self.history.push(token);
        }
        Some(token)
    }
}
