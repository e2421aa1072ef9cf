//! What a trained model is worth: the loss on a whole split, with and without a past, and LAMBADA.

mod lambada;
mod text;

use anyhow::{Result, anyhow, ensure};
use burn::data::dataloader::DataLoader;
use burn::tensor::Tensor;
use mamba_core::LanguageModel;
use serde::{Deserialize, Serialize};

use crate::windows::TokenBatch;

pub use lambada::{Lambada, Passage, evaluate_lambada, read_passages};
pub use text::{Sliding, evaluate_carried, evaluate_sliding};

/// Losses held on the device before they are read back: enough to keep a GPU busy, few enough
/// to keep its queue short.
const READ_EVERY: usize = 32;

/// The loss of a model on a split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean cross-entropy a token, in nats.
    pub loss: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

impl Evaluation {
    /// The exponential of the loss.
    pub fn perplexity(&self) -> f64 {
        perplexity(self.loss)
    }
}

/// The exponential of a loss in nats, kept below infinity: JSON has no such number.
pub fn perplexity(loss: f64) -> f64 {
    loss.exp().min(f64::MAX)
}

/// A perplexity for people: with so many decimals, or from a million on by its power of ten.
pub fn show_perplexity(perplexity: f64, decimals: usize) -> String {
    match perplexity < 1e6 {
        true => format!("{perplexity:.decimals$}"),
        false => format!("{perplexity:.3e}"),
    }
}

/// The mean of batch losses, weighted by tokens, in the order they came.
#[derive(Default)]
pub(crate) struct LossMean {
    pending: Vec<(Tensor<1>, usize)>,
    total: f64,
    tokens: usize,
}

impl LossMean {
    pub(crate) fn push(&mut self, loss: Tensor<1>, tokens: usize) -> Result<()> {
        self.pending.push((loss, tokens));
        // The first one is waited for: it tells that the kernels are compiled.
        if self.tokens == 0 || self.pending.len() >= READ_EVERY {
            self.read()
        } else {
            Ok(())
        }
    }

    pub(crate) fn finish(mut self) -> Result<Option<Evaluation>> {
        self.read()?;
        let Self { total, tokens, .. } = self;
        if tokens == 0 {
            return Ok(None);
        }
        let loss = total / tokens as f64;
        ensure!(
            loss.is_finite(),
            "the loss of the evaluation is {loss}: the model diverged or its weights are damaged; train it again with a lower \
             training.learning_rate or with training.clip_norm, or fetch it again"
        );
        Ok(Some(Evaluation { loss, tokens }))
    }

    fn read(&mut self) -> Result<()> {
        let (losses, tokens): (Vec<_>, Vec<_>) = self.pending.drain(..).unzip();
        for (loss, tokens) in read_losses(losses)?.into_iter().zip(tokens) {
            self.total += loss * tokens as f64;
            self.tokens += tokens;
        }
        Ok(())
    }
}

/// Reads scalars back from the device in one transfer.
pub(crate) fn read_losses(losses: Vec<Tensor<1>>) -> Result<Vec<f64>> {
    if losses.is_empty() {
        return Ok(Vec::new());
    }
    let data = Tensor::cat(losses, 0)
        .try_into_data()
        .map_err(|error| anyhow!("the device failed to compute the loss: {error}"))?;
    Ok(data.iter::<f64>().collect())
}

/// Evaluates `model` on every batch of `batches`.
///
/// `on_batch` gets the number of batches done and in total, and stops the evaluation by returning
/// `false`; the result is then `None`, as it is where there is no batch at all.
///
/// # Errors
///
/// When a batch cannot be read, the device fails or the loss is not finite.
pub fn evaluate(
    model: &LanguageModel,
    batches: &dyn DataLoader<TokenBatch>,
    mut on_batch: impl FnMut(usize, usize) -> bool,
) -> Result<Option<Evaluation>> {
    let mut mean = LossMean::default();
    for (done, batch) in batches.iter().enumerate() {
        let batch = batch?;
        let tokens = batch.targets.dims().iter().product();
        mean.push(model.loss(batch.inputs, batch.targets), tokens)?;
        if !on_batch(done + 1, batches.num_items()) {
            return Ok(None);
        }
    }
    mean.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn mean(batches: &[(f32, usize)]) -> Result<Option<Evaluation>> {
        let mut mean = LossMean::default();
        for &(loss, tokens) in batches {
            mean.push(Tensor::from_floats([loss], &Device::default()), tokens)?;
        }
        mean.finish()
    }

    #[test]
    fn batches_weigh_as_many_tokens_as_they_have() {
        let evaluation = mean(&[(1.0, 3), (5.0, 1)]).unwrap().unwrap();
        assert_eq!((evaluation.loss, evaluation.tokens), (2.0, 4));
        let many = vec![(1.5, 2); 2 * READ_EVERY + 1];
        let evaluation = mean(&many).unwrap().unwrap();
        assert_eq!((evaluation.loss, evaluation.tokens), (1.5, 2 * many.len()));
        assert_eq!(mean(&[]).unwrap(), None);
    }

    #[test]
    fn loss_that_is_not_finite_is_an_error() {
        let message = mean(&[(1.0, 1), (f32::NAN, 1)]).unwrap_err().to_string();
        assert!(message.contains("training.learning_rate"), "{message}");
    }

    #[test]
    fn perplexity_has_a_json_form() {
        assert!((perplexity(2.0) - 2f64.exp()).abs() < 1e-12);
        assert!(perplexity(1e4).is_finite());
    }

    #[test]
    fn perplexities_stay_short() {
        assert_eq!(show_perplexity(203.338, 2), "203.34");
        assert_eq!(show_perplexity(999_999.4, 1), "999999.4");
        assert_eq!(show_perplexity(1e6, 2), "1.000e6");
        assert_eq!(show_perplexity(perplexity(1e4), 2), "1.798e308");
    }
}
