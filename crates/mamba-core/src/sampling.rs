//! Choosing the next token from the logits of one sequence.
//!
//! Plain Rust on a slice, so that it works behind any backend. The filters come in the order of
//! Hugging Face's `generate`: repetition penalty, temperature, top-k, top-p, min-p.

mod filters;
mod rng;

use filters::{Candidate, Filters};
use rng::SplitMix64;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a [`Sampler`] chooses. The default samples from the whole distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Divides the logits; 0 always takes the most likely token. Default: 1
    pub temperature: f32,
    /// Keep the `k` most likely tokens, and those tied with the last of them. Default: all
    pub top_k: Option<usize>,
    /// Keep the fewest most likely tokens whose probabilities reach this sum. Default: 1
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the most likely one. Default: 0
    pub min_p: f32,
    /// Logits of tokens in the history are divided by this if positive, multiplied if negative.
    /// Default: 1
    pub repetition_penalty: f32,
    /// Where the random numbers start. Default: 0
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingConfig {
    /// Checks that every field is in its range.
    ///
    /// # Errors
    ///
    /// [`SamplingError::InvalidConfig`] names the first field that is not.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let finite = |value: f32| value.is_finite();
        // Written so that NaN fails each of them.
        let rules = [
            (
                finite(self.temperature) && self.temperature >= 0.0,
                "temperature",
                "a finite number >= 0 (0 is greedy)",
                self.temperature,
            ),
            (
                self.top_k != Some(0),
                "top_k",
                ">= 1 (leave it out to keep all tokens)",
                0.0,
            ),
            (
                self.top_p > 0.0 && self.top_p <= 1.0,
                "top_p",
                "above 0 and at most 1",
                self.top_p,
            ),
            (
                (0.0..1.0).contains(&self.min_p),
                "min_p",
                "at least 0 and below 1",
                self.min_p,
            ),
            (
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
                "repetition_penalty",
                "a finite number above 0 (1 is none)",
                self.repetition_penalty,
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            None => Ok(()),
            Some((_, field, expected, got)) => Err(SamplingError::InvalidConfig {
                field,
                expected,
                got,
            }),
        }
    }
}

/// Why no token could be chosen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SamplingError {
    /// A field of [`SamplingConfig`] is out of its range.
    InvalidConfig {
        /// The field's name.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        got: f32,
    },
    /// A logit is NaN or positive infinity: the model diverged or its weights are damaged.
    InvalidLogit {
        /// The token with the first such logit.
        token: usize,
        /// The logit.
        value: f32,
    },
    /// There are no logits, or all are negative infinity: every token is forbidden.
    NoCandidate {
        /// How many logits were given.
        vocab_size: usize,
    },
    /// A token of the history has no logit.
    UnknownToken {
        /// The token.
        token: u32,
        /// How many logits were given.
        vocab_size: usize,
    },
}

impl fmt::Display for SamplingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidConfig {
                field,
                expected,
                got,
            } => write!(f, "sampling: {field} must be {expected}, got {got}"),
            Self::InvalidLogit { token, value } => write!(
                f,
                "sampling: the logit of token {token} is {value}; the model diverged or its \
                 weights are damaged"
            ),
            Self::NoCandidate { vocab_size } => write!(
                f,
                "sampling: none of the {vocab_size} logits is finite, so that no token is allowed"
            ),
            Self::UnknownToken { token, vocab_size } => write!(
                f,
                "sampling: token {token} of the history must be < the vocabulary size {vocab_size}"
            ),
        }
    }
}

impl std::error::Error for SamplingError {}

/// Chooses tokens one by one; the same seed and logits give the same tokens.
///
/// The random numbers are the same on every platform. Tokens may still differ between platforms
/// whose `exp` rounds differently, when a random number falls into that last bit.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: SplitMix64,
    filters: Filters,
    /// The distinct tokens of the history, kept to reuse its memory.
    seen: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of the stream of its seed.
    ///
    /// # Errors
    ///
    /// If the config is not [valid](SamplingConfig::validate).
    pub fn new(config: SamplingConfig) -> Result<Self, SamplingError> {
        config.validate()?;
        Ok(Self {
            rng: SplitMix64::new(config.seed),
            filters: Filters::default(),
            seen: Vec::new(),
            config,
        })
    }

    /// How it chooses.
    pub fn config(&self) -> &SamplingConfig {
        &self.config
    }

    /// Chooses a token by its logit. The repetition penalty of the tokens in `history` is left in
    /// `logits`. A logit of negative infinity forbids its token.
    ///
    /// One random number is drawn a call, none if greedy, whatever the logits are.
    ///
    /// # Errors
    ///
    /// If a logit is NaN or positive infinity, if none is finite, or if a token in `history` is
    /// outside the vocabulary.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32, SamplingError> {
        let invalid = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
        if let Some(token) = logits.iter().position(invalid) {
            let value = logits[token];
            return Err(SamplingError::InvalidLogit { token, value });
        }
        self.penalize(logits, history)?;

        let vocab_size = logits.len();
        let best = argmax(logits).ok_or(SamplingError::NoCandidate { vocab_size })?;
        if self.config.temperature == 0.0 {
            return Ok(best as u32);
        }
        let candidates = self.filters.apply(&self.config, logits, logits[best]);
        Ok(draw(candidates, self.rng.next_f64()))
    }

    fn penalize(&mut self, logits: &mut [f32], history: &[u32]) -> Result<(), SamplingError> {
        let penalty = self.config.repetition_penalty;
        if penalty == 1.0 {
            return Ok(());
        }
        // Each token once, however often it was said.
        self.seen.clear();
        self.seen.extend_from_slice(history);
        self.seen.sort_unstable();
        self.seen.dedup();

        let vocab_size = logits.len();
        for &token in &self.seen {
            let logit = logits
                .get_mut(token as usize)
                .ok_or(SamplingError::UnknownToken { token, vocab_size })?;
            // The bounds keep an extreme penalty from making infinities.
            *logit = match *logit > 0.0 {
                true => (*logit / penalty).min(f32::MAX),
                false if logit.is_finite() => (*logit * penalty).max(f32::MIN),
                false => *logit,
            };
        }
        Ok(())
    }
}

/// The first of the largest logits, if any is finite.
fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > max {
            (best, max) = (Some(token), logit);
        }
    }
    best
}

/// The candidate at `uniform` (in `[0, 1)`) of the sum of weights.
///
/// The first candidate's weight is positive or a later one's is: there is always one to take.
fn draw(candidates: &[Candidate], uniform: f64) -> u32 {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let mut rest = uniform * total;
    let mut chosen = candidates[0].token;
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        // Rounding may leave a rest behind the last weight, which then is the one.
        chosen = candidate.token;
        rest -= f64::from(candidate.weight);
        if rest < 0.0 {
            break;
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
