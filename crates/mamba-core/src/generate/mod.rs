//! Generation as an iterator of tokens, and what a model thinks of given ones.

mod choose;
#[cfg(feature = "cube")]
mod kernels;
mod prefill;
mod request;
mod score;
mod several;
mod steps;
mod stop;

use burn::tensor::Device;

use crate::language_model::LanguageModel;
use crate::sampling::{Sampler, SamplingError};
use crate::snapshot::Snapshot;
use choose::Chooser;
use steps::Steps;

pub use choose::Logprobs;
pub use request::Request;
pub use score::{Continuation, Score};
pub use several::{Generated, Generations};
pub use stop::StopFilter;

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
    /// The probability of a given token is no number.
    #[error(
        "the model gives token {token} at position {position} no finite probability: it diverged or its weights are damaged"
    )]
    NotFinite {
        /// The token.
        token: u32,
        /// Its place in the text.
        position: usize,
    },
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
///
/// It ends behind a stop token, after the most tokens asked for, and behind an error.
pub struct Generator<'a> {
    model: &'a LanguageModel,
    device: Device,
    chooser: Chooser,
    steps: Steps<'a>,
    /// Of the prompt or generated; none only where a snapshot was continued by nothing.
    last: Option<u32>,
    /// Tokens before the next one.
    position: usize,
    limit: Limit,
}

/// When a sequence ends.
#[derive(Clone, Debug)]
struct Limit {
    stop_tokens: Vec<u32>,
    left: Option<usize>,
    ended: bool,
}

impl Limit {
    fn new(request: &Request) -> Self {
        Self {
            stop_tokens: request.stop_tokens.clone(),
            left: request.max_tokens,
            ended: request.max_tokens == Some(0),
        }
    }

    fn count(&mut self, token: u32) {
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        self.ended = self.left == Some(0) || self.stop_tokens.contains(&token);
    }
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
        self.generate_from(Request::new(prompt, sampler), device)
    }

    /// [`LanguageModel::generate`] with all that can be asked for. A prompt of any length is read in parts of bounded
    /// memory.
    ///
    /// # Errors
    ///
    /// As [`LanguageModel::generate`]; with a snapshot the prompt may be empty.
    pub fn generate_from(
        &self,
        request: Request,
        device: &Device,
    ) -> Result<Generator<'_>, GenerateError> {
        self.prepare(device).generate_from(request)
    }

    /// The model, to generate from it again and again.
    pub fn prepare(&self, device: &Device) -> Prepared<'_> {
        Prepared {
            model: self,
            device: device.clone(),
            #[cfg(feature = "cube")]
            spare: kernels::Spare::default(),
        }
    }
}

/// A model from which one generates again and again. Made by [`LanguageModel::prepare`].
///
/// On a GPU, kernels decode Mamba-1 and Mamba-2 from copies of the matrices and by launches that are recorded once. Here both are
/// kept when a generation is dropped, for the next one that begins anew, with as many sequences and the same way to choose. That memory is held
/// until this is dropped, too.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    model: &'a LanguageModel,
    device: Device,
    #[cfg(feature = "cube")]
    spare: kernels::Spare,
}

impl<'a> Prepared<'a> {
    /// [`LanguageModel::generate_from`] of the model that was prepared.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn generate_from(&self, request: Request) -> Result<Generator<'a>, GenerateError> {
        request.check(self.model)?;
        let limit = Limit::new(&request);
        let Request {
            prompt,
            sampler,
            after,
            logprobs,
            ..
        } = request;
        let position = after.as_ref().map_or(0, |it| it.state.position) + prompt.len();
        let mut chooser = Chooser::new(sampler, logprobs, &prompt);
        let steps = Steps::read(self, &prompt, after, &mut chooser);
        Ok(Generator {
            model: self.model,
            device: self.device.clone(),
            chooser,
            steps,
            last: prompt.last().copied(),
            position,
            limit,
        })
    }
}

impl Generator<'_> {
    /// What the model thought in the place of the last token; there if the request asked for it.
    pub fn logprobs(&self) -> Option<&Logprobs> {
        self.chooser.logprobs.as_ref()
    }

    /// Tokens read and generated, with those of a snapshot that was continued.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The model behind all tokens so far: a copy, from which any number of others go on.
    ///
    /// # Errors
    ///
    /// If the last token has no position left, or the device fails.
    pub fn snapshot(&mut self) -> Result<Snapshot, GenerateError> {
        self.steps.read_last(&mut self.chooser, self.last)?;
        self.steps.snapshot(self.model, self.position, &self.device)
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<u32, GenerateError>;

    /// The next token.
    fn next(&mut self) -> Option<Self::Item> {
        if self.limit.ended {
            return None;
        }
        let token = self.steps.next(&mut self.chooser, self.last);
        match token {
            Ok(token) => {
                self.chooser.count(token);
                self.last = Some(token);
                self.position += 1;
                self.limit.count(token);
            }
            Err(_) => self.limit.ended = true,
        }
        Some(token)
    }
}
