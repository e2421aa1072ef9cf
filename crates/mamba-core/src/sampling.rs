//! Choosing the next token from the logits of one sequence.
//!
//! Plain Rust on a slice, so that it works behind any backend. The filters come in the order of
//! Hugging Face's `generate`: repetition penalty (then the frequency and presence penalties of the OpenAI interface), temperature,
//! top-k, top-p, min-p, typical.

mod config;
mod error;
mod filters;
mod rng;

pub use config::SamplingConfig;
pub use error::SamplingError;

use std::collections::BTreeMap;

use filters::{Candidate, Filters};
use rng::SplitMix64;

/// Chooses tokens one by one; the same seed and logits give the same tokens.
///
/// The random numbers are the same on every platform. Tokens may still differ between platforms
/// whose `exp` rounds differently, when a random number falls into that last bit.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: SplitMix64,
    filters: Filters,
    /// The tokens of the history in order, kept to reuse its memory.
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

    /// Chooses a token by its logit. The penalties of the tokens in `history` are left in
    /// `logits`. A logit of negative infinity forbids its token.
    ///
    /// One random number is drawn a call, none if greedy, whatever the logits are.
    ///
    /// # Errors
    ///
    /// If a logit is NaN or positive infinity, if none is finite, or if a token in `history` is
    /// outside the vocabulary.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32, SamplingError> {
        check(logits)?;
        if self.config.penalizes() {
            self.seen.clear();
            self.seen.extend_from_slice(history);
            self.seen.sort_unstable();
            let runs = self.seen.chunk_by(|a, b| a == b);
            let counts = runs.map(|run| (run[0], run.len()));
            penalize(&self.config, logits, counts)?;
        }
        self.choose(logits)
    }

    /// [`Sampler::sample`] behind a history of which only the tokens' counts are known.
    pub(crate) fn sample_counted(
        &mut self,
        logits: &mut [f32],
        counts: &BTreeMap<u32, usize>,
    ) -> Result<u32, SamplingError> {
        check(logits)?;
        if self.config.penalizes() {
            let counts = counts.iter().map(|(token, count)| (*token, *count));
            penalize(&self.config, logits, counts)?;
        }
        self.choose(logits)
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        let vocab_size = logits.len();
        let best = argmax(logits).ok_or(SamplingError::NoCandidate { vocab_size })?;
        if self.config.temperature == 0.0 {
            return Ok(best as u32);
        }
        let candidates = self.filters.apply(&self.config, logits, logits[best]);
        Ok(draw(candidates, self.rng.next_f64()))
    }

    /// The temperature, where it is all that shapes the choice: then the token at [`Sampler::uniform`] of the
    /// weights, in the order of the vocabulary, is what [`Sampler::sample`] would choose.
    #[cfg(feature = "cube")]
    pub(crate) fn unfiltered(&self) -> Option<f32> {
        let SamplingConfig {
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            ..
        } = self.config;
        let all = top_k.is_none() && top_p == 1.0 && min_p == 0.0 && typical_p == 1.0;
        (all && !self.config.penalizes()).then_some(temperature)
    }

    /// The next random number, in `[0, 1)`.
    #[cfg(feature = "cube")]
    pub(crate) fn uniform(&mut self) -> f32 {
        // Rounding must not make it 1.
        (self.rng.next_f64() as f32).min(1.0f32.next_down())
    }
}

fn check(logits: &[f32]) -> Result<(), SamplingError> {
    let invalid = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    match logits.iter().position(invalid) {
        Some(token) => Err(SamplingError::InvalidLogit {
            token,
            value: logits[token],
        }),
        None => Ok(()),
    }
}

/// Takes the penalties of tokens that have occurred so many times off their logits.
fn penalize(
    config: &SamplingConfig,
    logits: &mut [f32],
    counts: impl Iterator<Item = (u32, usize)>,
) -> Result<(), SamplingError> {
    let vocab_size = logits.len();
    for (token, count) in counts {
        let logit = logits
            .get_mut(token as usize)
            .ok_or(SamplingError::UnknownToken { token, vocab_size })?;
        if !logit.is_finite() {
            continue;
        }
        let scaled = match *logit > 0.0 {
            true => *logit / config.repetition_penalty,
            false => *logit * config.repetition_penalty,
        };
        let frequent = count as f32 * config.frequency_penalty;
        // The bounds keep an extreme penalty from making infinities.
        *logit = (scaled - frequent - config.presence_penalty).clamp(f32::MIN, f32::MAX);
    }
    Ok(())
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
