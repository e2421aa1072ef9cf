//! What a model thinks of given texts.

use burn::tensor::{Device, Int, Tensor};

use super::GenerateError;
use super::choose::log_sum_exp;
use super::request::{check_positions, check_tokens};
use super::steps::{row, rows, to_host};
use crate::language_model::LanguageModel;
use crate::snapshot::Snapshot;

/// Tokens of a long text that are scored at once.
const AT_ONCE: usize = 1024;

/// The log-probabilities of a text's tokens, each behind those before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Natural logarithms, one a scored token.
    pub logprobs: Vec<f32>,
}

impl Score {
    /// The logarithm of the probability of all tokens together.
    pub fn sum(&self) -> f64 {
        self.logprobs.iter().map(|it| f64::from(*it)).sum()
    }
}

/// What a model thinks of a given continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// Of its tokens.
    pub score: Score,
    /// Whether each of its tokens is the most likely one in its place, so that greedy generation gives just them.
    pub greedy: bool,
}

impl LanguageModel {
    /// Scores a text under teacher forcing, in parts of bounded memory: every token of it but the first, which nothing
    /// comes before; with a snapshot the text continues that, and all are scored.
    ///
    /// # Errors
    ///
    /// If there is no token, one is past the vocabulary, the text is longer than the model's learned positions, or a
    /// probability is not finite.
    pub fn score_tokens(
        &self,
        tokens: &[u32],
        after: Option<&Snapshot>,
        device: &Device,
    ) -> Result<Score, GenerateError> {
        if tokens.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        check_tokens(self, tokens)?;
        let mut logprobs = Vec::with_capacity(tokens.len());
        let mut state = match after {
            Some(after) => {
                let logits = to_host(after.logits.clone())?;
                let logprob = f64::from(logits[tokens[0] as usize]) - log_sum_exp(&logits);
                logprobs.push(logprob as f32);
                after.state.clone()
            }
            None => self.initial_state(1, device),
        };
        check_positions(self, state.position + tokens.len() - 1)?;
        let mut start = 0;
        while start + 1 < tokens.len() {
            let end = (start + AT_ONCE).min(tokens.len() - 1);
            let [inputs, targets] = [start..end, start + 1..end + 1];
            let inputs = row(&tokens[inputs], device);
            let losses;
            (losses, state) = self.score(inputs, row(&tokens[targets], device), state);
            logprobs.extend(to_host(losses)?.into_iter().map(|loss| -loss));
            start = end;
        }
        let first = tokens.len() - logprobs.len();
        match logprobs.iter().position(|it| !it.is_finite()) {
            Some(at) => Err(GenerateError::NotFinite {
                token: tokens[first + at],
                position: first + at,
            }),
            None => Ok(Score { logprobs }),
        }
    }

    /// Scores continuations, each behind its context, several in one pass. A pass has as many rows and as long ones as
    /// it is given: a caller bounds its memory by how much it gives, and its waste by giving what is about equally long.
    ///
    /// # Errors
    ///
    /// If a context is empty, a token is past the vocabulary, a text is longer than the model's learned positions, or a
    /// probability is not finite.
    pub fn score_continuations(
        &self,
        items: &[(&[u32], &[u32])],
        device: &Device,
    ) -> Result<Vec<Continuation>, GenerateError> {
        let mut inputs = Vec::with_capacity(items.len());
        for (context, continuation) in items {
            if context.is_empty() {
                return Err(GenerateError::EmptyPrompt);
            }
            let all = [*context, *continuation].concat();
            check_tokens(self, &all)?;
            check_positions(self, all.len() - 1)?;
            inputs.push(all);
        }
        // Nothing looks ahead: what fills a row up changes nothing before it.
        let longest = inputs.iter().map(Vec::len).max().unwrap_or_default();
        inputs.iter_mut().for_each(|row| row.resize(longest, 0));
        if longest < 2 {
            return Ok(items.iter().map(|_| certain()).collect());
        }
        let inputs: Vec<&[u32]> = inputs.iter().map(|row| &row[..longest - 1]).collect();
        let hidden = self.hidden(rows(&inputs, device), None); // [items, longest - 1, d_model]
        let mut places: Vec<i32> = Vec::new();
        for (index, (context, continuation)) in items.iter().enumerate() {
            let first = index * (longest - 1) + context.len() - 1;
            places.extend((first..first + continuation.len()).map(|place| place as i32));
        }
        if places.is_empty() {
            return Ok(items.iter().map(|_| certain()).collect());
        }
        let [_, _, d_model] = hidden.dims();
        let hidden = hidden.reshape([-1, d_model as i32]);
        let places = Tensor::<1, Int>::from_data(&places[..], device);
        let logits = self.logits(hidden.select(0, places).unsqueeze_dim(0));
        let logits = to_host(logits)?;
        let mut rest = logits.chunks(self.vocab_size());
        items
            .iter()
            .map(|(context, continuation)| judge(context.len(), continuation, &mut rest))
            .collect()
    }
}

/// Of no token.
fn certain() -> Continuation {
    let score = Score { logprobs: vec![] };
    Continuation {
        score,
        greedy: true,
    }
}

/// Takes the logits of each token of `continuation`, which begins at `position`.
fn judge<'a>(
    position: usize,
    continuation: &[u32],
    logits: &mut impl Iterator<Item = &'a [f32]>,
) -> Result<Continuation, GenerateError> {
    let mut judged = certain();
    for (place, token) in continuation.iter().enumerate() {
        let logits = logits.next().expect("a row a token");
        let own = logits[*token as usize];
        let logprob = (f64::from(own) - log_sum_exp(logits)) as f32;
        if !logprob.is_finite() {
            return Err(GenerateError::NotFinite {
                token: *token,
                position: position + place,
            });
        }
        // Of equals the first is taken, as by the sampler.
        let first = logits.iter().position(|it| *it >= own);
        let most = logits.iter().all(|it| *it <= own);
        judged.greedy &= most && first == Some(*token as usize);
        judged.score.logprobs.push(logprob);
    }
    Ok(judged)
}
