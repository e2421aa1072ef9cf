//! What is to be generated.

use super::GenerateError;
use crate::language_model::LanguageModel;
use crate::sampling::Sampler;
use crate::snapshot::Snapshot;

/// What to continue, and how: argument of [`LanguageModel::generate_from`] and
/// [`LanguageModel::generate_all`].
#[derive(Clone, Debug)]
pub struct Request {
    pub(super) prompt: Vec<u32>,
    pub(super) sampler: Sampler,
    pub(super) after: Option<Snapshot>,
    pub(super) stop_tokens: Vec<u32>,
    pub(super) max_tokens: Option<usize>,
    pub(super) logprobs: Option<usize>,
}

impl Request {
    /// To continue `prompt` for as long as it is asked to.
    pub fn new(prompt: &[u32], sampler: Sampler) -> Self {
        Self {
            prompt: prompt.to_vec(),
            sampler,
            after: None,
            stop_tokens: Vec::new(),
            max_tokens: None,
            logprobs: None,
        }
    }

    /// Lets the prompt continue what `snapshot` has read. Then it may be empty, and what follows is what would have
    /// followed there. Penalties count the tokens of this request only.
    pub fn after(mut self, snapshot: Snapshot) -> Self {
        self.after = Some(snapshot);
        self
    }

    /// Ends behind the first of these tokens, which is the last one given.
    pub fn with_stop_tokens(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens.extend(tokens);
        self
    }

    /// Ends after so many tokens.
    pub fn with_max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Asks for the log-probability of each token, and for those of the `top` most likely ones in its place.
    pub fn with_logprobs(mut self, top: usize) -> Self {
        self.logprobs = Some(top);
        self
    }

    pub(super) fn check(&self, model: &LanguageModel) -> Result<(), GenerateError> {
        if self.prompt.is_empty() && self.after.is_none() {
            return Err(GenerateError::EmptyPrompt);
        }
        check_tokens(model, &self.prompt)?;
        let before = self.after.as_ref().map_or(0, |it| it.state.position);
        check_positions(model, before + self.prompt.len())
    }
}

pub(super) fn check_tokens(model: &LanguageModel, tokens: &[u32]) -> Result<(), GenerateError> {
    let vocab_size = model.vocab_size();
    let unknown = tokens.iter().find(|token| **token as usize >= vocab_size);
    match unknown.copied() {
        Some(token) => Err(GenerateError::UnknownToken { token, vocab_size }),
        None => Ok(()),
    }
}

pub(super) fn check_positions(model: &LanguageModel, tokens: usize) -> Result<(), GenerateError> {
    match model.max_positions().filter(|max| tokens > *max) {
        Some(positions) => Err(GenerateError::OutOfPositions(positions)),
        None => Ok(()),
    }
}
