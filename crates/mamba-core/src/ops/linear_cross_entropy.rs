//! The head and its loss in one operation, on tensors.

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor, assert_shape};

use super::extension::MambaOps;
use super::{Strategy, float_primitive, primitive_of, reference, sequence_dtype};

/// Arguments of [`linear_cross_entropy`] and [`token_losses`].
///
/// ```text
/// loss = mean over counted tokens of  logsumexp(W h) - (W h)[target]
/// ```
#[derive(Clone, Debug)]
pub struct LinearCrossEntropy {
    /// Hidden states, `[tokens, d_model]`.
    pub hidden: Tensor<2>,
    /// Head, one row an entry of the vocabulary, `[rows, d_model]`.
    pub weight: Tensor<2>,
    /// Entry to predict, `[tokens]`; a negative target is not counted.
    pub targets: Tensor<1, Int>,
    /// Rows that take part, at most `rows`: a vocabulary padded to a multiple has some that do not.
    pub vocab_size: usize,
    /// Which implementation runs.
    pub strategy: Strategy,
}

impl LinearCrossEntropy {
    fn check(&self) {
        let [tokens, d_model] = self.hidden.dims();
        let [rows, _] = self.weight.dims();
        assert!(tokens > 0, "linear_cross_entropy: hidden must not be empty");
        assert_shape!(self.weight, [rows, d_model]);
        assert_shape!(self.targets, [tokens]);
        assert!(
            (1..=rows).contains(&self.vocab_size),
            "linear_cross_entropy: vocab_size must be between 1 and the {rows} rows of weight, \
             got {}",
            self.vocab_size
        );
    }
}

/// Mean negative log-likelihood, in nats, of the targets under a linear head.
///
/// Neither `[tokens, vocab_size]` logits nor their gradient ever exist: they are made, used and
/// dropped a chunk of tokens at a time, and the gradients of `hidden` and `weight` are accumulated
/// in the same pass. If every target is negative the loss is 0.
///
/// # Shapes
///
/// - loss: `[1]`, f32
///
/// # Panics
///
/// If a shape differs from the one documented on its field, or (on the CPU, where it can be seen) a
/// target is not below `vocab_size`.
pub fn linear_cross_entropy(arguments: LinearCrossEntropy) -> Tensor<1> {
    arguments.check();
    let dtype = sequence_dtype(&arguments.hidden);
    match arguments.strategy.resolve(&arguments.hidden.device()) {
        Strategy::Reference => reference::linear_cross_entropy(arguments),
        Strategy::Auto | Strategy::Fused => Tensor::from_dispatch(Dispatch::linear_cross_entropy(
            primitive_of(arguments.hidden, dtype),
            float_primitive(arguments.weight),
            arguments.targets.into_dispatch(),
            arguments.vocab_size,
        )),
    }
}

/// Negative log-likelihood of each target, in nats; 0 where the target is negative.
///
/// For scoring: nothing is recorded for a backward pass.
///
/// # Shapes
///
/// - losses: `[tokens]`, f32
///
/// # Panics
///
/// As [`linear_cross_entropy`].
pub fn token_losses(arguments: LinearCrossEntropy) -> Tensor<1> {
    arguments.check();
    let dtype = sequence_dtype(&arguments.hidden);
    match arguments.strategy.resolve(&arguments.hidden.device()) {
        Strategy::Reference => reference::token_losses(arguments),
        Strategy::Auto | Strategy::Fused => Tensor::from_dispatch(Dispatch::token_losses(
            primitive_of(arguments.hidden, dtype),
            float_primitive(arguments.weight),
            arguments.targets.into_dispatch(),
            arguments.vocab_size,
        )),
    }
}
