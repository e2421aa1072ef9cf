//! Generation as an iterator of tokens.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::language_model::LanguageModel;
use crate::sampling::{Sampler, SamplingError};
use crate::state::LanguageModelState;

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
}

/// Continues one sequence, a token an iteration, for as long as it is asked to.
///
/// Made by [`LanguageModel::generate`]. Memory is constant for a model of Mamba mixers.
pub struct Generator<'a> {
    model: &'a LanguageModel,
    sampler: Sampler,
    device: Device,
    state: Option<LanguageModelState>,
    logits: Tensor<2>,
    history: Vec<u32>,
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
        sampler: Sampler,
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
        let tokens = TensorData::new(
            prompt.iter().map(|token| *token as i32).collect::<Vec<_>>(),
            [1, prompt.len()],
        );
        let tokens = Tensor::<2, Int>::from_data(tokens, device);
        let (logits, state) = self.prefill(tokens, self.initial_state(1, device));
        Ok(Generator {
            model: self,
            sampler,
            device: device.clone(),
            state: Some(state),
            logits,
            history: prompt.to_vec(),
        })
    }
}

impl Generator<'_> {
    /// The prompt and all tokens generated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.history
    }

    /// Draws the next token and, unless `state` was used up, reads it.
    fn advance(&mut self) -> Result<u32, GenerateError> {
        let logits = self.logits.clone().cast(DType::F32).into_data();
        let mut logits: Vec<f32> = logits.iter::<f32>().collect();
        let token = self.sampler.sample(&mut logits, &self.history)?;
        self.history.push(token);
        Ok(token)
    }

    fn read(&mut self, token: u32) -> Result<(), GenerateError> {
        let state = self
            .state
            .take()
            .expect("the state is put back after every step");
        if let Some(positions) = self
            .model
            .max_positions()
            .filter(|max| state.position >= *max)
        {
            self.state = Some(state);
            return Err(GenerateError::OutOfPositions(positions));
        }
        let tokens = Tensor::<1, Int>::from_data([token as i32], &self.device);
        let (logits, state) = self.model.step(tokens, state);
        self.logits = logits;
        self.state = Some(state);
        Ok(())
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<u32, GenerateError>;

    /// The next token. The token before it is read first, so that the last one drawn costs no
    /// pass of the model.
    fn next(&mut self) -> Option<Self::Item> {
        let unread = self.state.as_ref().map_or(0, |state| state.position);
        if unread < self.history.len() {
            let token = self.history[unread];
            if let Err(error) = self.read(token) {
                return Some(Err(error));
            }
        }
        Some(self.advance())
    }
}
