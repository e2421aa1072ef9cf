//! Choosing the tokens of one sequence, and what the model thought of them.

use std::collections::BTreeMap;

use super::GenerateError;
use crate::sampling::Sampler;

/// Natural logarithms of the model's own probabilities in the place of one token: before temperature, filters and
/// penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token.
    pub token: f32,
    /// The most likely tokens and theirs, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    pub sampler: Sampler,
    /// How often each token has occurred, where that matters: at most an entry of the vocabulary each, however long the
    /// sequence.
    counts: BTreeMap<u32, usize>,
    /// How many of the most likely tokens are to be told.
    top: Option<usize>,
    /// Of the last token.
    pub logprobs: Option<Logprobs>,
    /// The logits before penalties, kept to reuse its memory.
    raw: Vec<f32>,
}

impl Chooser {
    pub fn new(sampler: Sampler, top: Option<usize>, prompt: &[u32]) -> Self {
        let mut chooser = Self {
            sampler,
            counts: BTreeMap::new(),
            top,
            logprobs: None,
            raw: Vec::new(),
        };
        prompt.iter().for_each(|token| chooser.count(*token));
        chooser
    }

    /// Whether all of it is a temperature, so that a device can choose.
    #[cfg(feature = "cube")]
    pub fn unfiltered(&self) -> Option<f32> {
        match self.top {
            Some(_) => None,
            None => self.sampler.unfiltered(),
        }
    }

    pub fn count(&mut self, token: u32) {
        if self.sampler.config().penalizes() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// Chooses by the logits of the vocabulary, which it changes.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<u32, GenerateError> {
        self.raw.clear();
        if self.top.is_some() {
            self.raw.extend_from_slice(logits);
        }
        let token = self.sampler.sample_counted(logits, &self.counts)?;
        self.logprobs = self.top.map(|top| logprobs(&self.raw, token, top));
        Ok(token)
    }
}

/// The logits are numbers: the sampler has seen to it.
fn logprobs(logits: &[f32], token: u32, top: usize) -> Logprobs {
    let normaliser = log_sum_exp(logits);
    let logprob = |token: u32| (f64::from(logits[token as usize]) - normaliser) as f32;
    let order = |a: &u32, b: &u32| {
        let by_logit = logits[*b as usize].total_cmp(&logits[*a as usize]);
        by_logit.then(a.cmp(b))
    };
    let mut likely: Vec<u32> = (0..logits.len() as u32).collect();
    let top = top.min(likely.len());
    if 0 < top && top < likely.len() {
        likely.select_nth_unstable_by(top - 1, order);
    }
    likely.truncate(top);
    likely.sort_unstable_by(order);
    Logprobs {
        token: logprob(token),
        top: likely.into_iter().map(|it| (it, logprob(it))).collect(),
    }
}

/// `ln(sum(exp(logits)))`
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|it| f64::from(it - most).exp()).sum();
    f64::from(most) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likely_tokens_come_in_order_with_their_probabilities() {
        let logits = [0.5f32.ln(), 0.125f32.ln(), 0.25f32.ln(), 0.125f32.ln()].map(|it| it + 3.0);
        let told = logprobs(&logits, 1, 3);
        assert_eq!(
            told.top.iter().map(|it| it.0).collect::<Vec<_>>(),
            [0, 2, 1]
        );
        for (got, want) in told.top.iter().zip([0.5f32, 0.25, 0.125]) {
            assert!((got.1 - want.ln()).abs() < 1e-6, "{got:?} for {want}");
        }
        assert!((told.token - 0.125f32.ln()).abs() < 1e-6);
        assert!(logprobs(&logits, 0, 0).top.is_empty());
        assert_eq!(logprobs(&logits, 0, 9).top.len(), 4);
    }
}
