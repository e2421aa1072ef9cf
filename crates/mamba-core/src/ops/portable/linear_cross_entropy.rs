//! Cross-entropy of `hidden weight^T`, a chunk of tokens at a time.
//!
//! Logits exist for one chunk only, and so do their gradients: since the loss is a mean, the
//! gradient of a chunk is known as soon as its logits are, and nothing is computed twice.

use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{FloatDType, Slice};

use super::Prim;
use crate::ops::extension::{LossGrads, MambaOps, OptionalFloat};

/// Most tokens of a chunk, and most logits: 256 MiB of them. A GPU wants large products and few of
/// them.
const CHUNK_TOKENS: usize = 1024;
const CHUNK_LOGITS: usize = 1 << 26;

/// What is added to the logits of padding: less than any logit, and finite, since WGSL has no infinity.
const NEVER: f64 = -1e30;

/// One chunk of tokens: its hidden states, targets and weights (0 for ignored tokens).
struct Chunk<B: MambaOps> {
    hidden: Prim<B>,       // [chunk, d_model]
    counted: Prim<B>,      // [chunk, 1]
    targets: IntTensor<B>, // [chunk, 1], ignored ones moved to 0
}

/// The head. A vocabulary is padded to a size that products like, so all rows take part in them,
/// and the logits of padding are moved out of the way.
struct Head<B: MambaOps> {
    weight: Prim<B>,          // [rows, d_model]
    padding: Option<Prim<B>>, // [1, rows]
}

impl<B: MambaOps> Head<B> {
    fn new(weight: FloatTensor<B>, vocab_size: usize) -> Self {
        let weight = Prim::<B>(weight);
        let [rows, _] = weight.dims();
        let padding = (rows > vocab_size).then(|| {
            let entries = weight.like([1, vocab_size], 0.0);
            let padding = weight.like([1, rows - vocab_size], NEVER);
            Prim::cat(vec![entries, padding], 1)
        });
        Self { weight, padding }
    }

    fn logits(&self, hidden: &Prim<B>) -> Prim<B> {
        let logits = product(hidden, &self.weight.transpose());
        match &self.padding {
            Some(padding) => &logits + padding,
            None => logits,
        }
    }
}

/// `lhs rhs`, as the backend multiplies in a linear layer.
fn product<B: MambaOps>(lhs: &Prim<B>, rhs: &Prim<B>) -> Prim<B> {
    let (lhs, rhs) = (lhs.0.clone(), rhs.0.clone());
    let (bias, residual) = (OptionalFloat::Absent, OptionalFloat::Absent);
    let out = FloatDType::F32;
    Prim(B::fused_linear(lhs, rhs, bias, residual, out))
}

/// Tokens of a chunk, for a head of `rows` rows.
pub(crate) fn chunk_len(tokens: usize, rows: usize) -> usize {
    let most = (CHUNK_LOGITS / rows).clamp(1, CHUNK_TOKENS);
    tokens.div_ceil(tokens.div_ceil(most))
}

/// Chunks of equal length, but for the last one, for a head of `rows` rows.
fn chunks<B: MambaOps>(
    hidden: FloatTensor<B>,
    targets: IntTensor<B>,
    rows: usize,
) -> impl Iterator<Item = Chunk<B>> {
    let hidden = Prim::<B>(hidden);
    let [tokens, _] = hidden.dims();
    let chunk = chunk_len(tokens, rows);
    let targets = B::int_reshape(targets, [tokens, 1].into());
    (0..tokens).step_by(chunk).map(move |start| {
        let len = chunk.min(tokens - start);
        let rows = [Slice::from(start..start + len), Slice::from(0..1)];
        let targets = B::int_slice(targets.clone(), &rows);
        let as_float = Prim::<B>(B::int_into_float(targets.clone(), FloatDType::F32));
        Chunk {
            hidden: hidden.narrow(0, start, len),
            counted: as_float.shift(1.0).clamp(0.0, 1.0),
            targets: B::int_clamp_min(targets, 0.into()),
        }
    })
}

impl<B: MambaOps> Chunk<B> {
    /// `(logits - max, log sum exp(logits - max))`
    fn log_normalised(&self, head: &Head<B>) -> (Prim<B>, Prim<B>) {
        let logits = head.logits(&self.hidden);
        let shifted = &logits - &logits.max_dim(1);
        let log_sum = shifted.exp().sum_dim(1).log();
        (shifted, log_sum)
    }

    /// Losses of the chunk's tokens, `[chunk, 1]`.
    fn losses(&self, shifted: &Prim<B>, log_sum: &Prim<B>) -> Prim<B> {
        &(log_sum - &shifted.gather(1, self.targets.clone())) * &self.counted
    }
}

pub(crate) fn token_losses<B: MambaOps>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: IntTensor<B>,
    vocab_size: usize,
) -> FloatTensor<B> {
    let [tokens] = targets.shape().dims();
    let head = Head::<B>::new(weight, vocab_size);
    let [rows, _] = head.weight.dims();
    let losses = chunks::<B>(hidden, targets, rows)
        .map(|chunk| {
            let (shifted, log_sum) = chunk.log_normalised(&head);
            chunk.losses(&shifted, &log_sum)
        })
        .collect();
    Prim::<B>::cat(losses, 0).reshape([tokens]).0
}

pub(crate) fn loss<B: MambaOps>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: IntTensor<B>,
    vocab_size: usize,
) -> FloatTensor<B> {
    let scale = mean_scale::<B>(&targets);
    let losses = Prim::<B>(token_losses::<B>(hidden, weight, targets, vocab_size));
    (&losses.sum_dim(0) * &Prim(scale)).0
}

pub(crate) fn loss_with_grads<B: MambaOps>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: IntTensor<B>,
    vocab_size: usize,
) -> LossGrads<B> {
    let scale = Prim::<B>(mean_scale::<B>(&targets)).reshape([1, 1]);
    let head = Head::<B>::new(weight, vocab_size);
    let weight = &head.weight;
    let [rows, d_model] = weight.dims();
    let mut total = weight.like([1, 1], 0.0);
    let mut grad_hidden = Vec::new();
    let mut grad_weight = weight.like([rows, d_model], 0.0);
    for chunk in chunks::<B>(hidden, targets, rows) {
        let (shifted, log_sum) = chunk.log_normalised(&head);
        total = total + chunk.losses(&shifted, &log_sum).sum_dim(0);
        let row_scale = &chunk.counted * &scale;
        // softmax - one_hot(target), each row scaled
        let softmax = &(&shifted - &log_sum).exp() * &row_scale;
        let grad_logits = Prim(B::float_scatter(
            1,
            softmax.0,
            chunk.targets.clone(),
            row_scale.scale(-1.0).0,
            burn::tensor::IndexingUpdateOp::Add,
        ));
        grad_hidden.push(product(&grad_logits, weight));
        let part = B::fused_linear_weight_backward(grad_logits.0, chunk.hidden.0);
        grad_weight = grad_weight + Prim(part);
    }
    LossGrads {
        loss: (&total * &scale).reshape([1]).0,
        hidden: Prim::cat(grad_hidden, 0).0,
        weight: grad_weight.0,
    }
}

/// One over the number of counted targets (over 1 if there are none): `[1]`.
pub(crate) fn mean_scale<B: MambaOps>(targets: &IntTensor<B>) -> FloatTensor<B> {
    let [tokens] = targets.shape().dims();
    let targets = Prim::<B>(B::int_into_float(targets.clone(), FloatDType::F32));
    let count = targets.shift(1.0).clamp(0.0, 1.0).sum_dim(0);
    debug_assert!(tokens > 0);
    count.clamp(1.0, f64::from(f32::MAX)).recip().reshape([1]).0
}
