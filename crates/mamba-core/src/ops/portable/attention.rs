//! Causal attention through all scores: `softmax(q k^T / sqrt(dim) + mask) v` a head.

use std::f64::consts::LOG2_E;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::Prim;
use crate::ops::extension::{AttentionGrads, AttentionOutputs};

/// What a masked score is: its exponential is zero, and its differences are finite.
const MASKED: f32 = -1e30;

/// Sizes, read off the shapes.
#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    len: usize,
    seen: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Dims {
    fn new<B: Backend>(query: &FloatTensor<B>, key: &FloatTensor<B>, heads: usize) -> Self {
        let [batch, len, width] = query.shape().dims();
        let [_, seen, kv_width] = key.shape().dims();
        let dim = width / heads;
        Self {
            batch,
            len,
            seen,
            heads,
            kv_heads: kv_width / dim,
            dim,
        }
    }

    fn scale(&self) -> f64 {
        1.0 / (self.dim as f64).sqrt()
    }

    /// `[batch, len, heads * dim]` to `[batch, heads, len, dim]`.
    fn queries<B: Backend>(&self, tensor: FloatTensor<B>) -> Prim<B> {
        let tensor = Prim::<B>(tensor);
        let apart = tensor.reshape([self.batch, self.len, self.heads, self.dim]);
        apart.swap(1, 2)
    }

    /// `[batch, seen, kv_heads * dim]` to `[batch, heads, seen, dim]`, a head repeated for all that share it.
    fn keys<B: Backend>(&self, tensor: FloatTensor<B>) -> Prim<B> {
        let Self {
            batch,
            seen,
            heads,
            kv_heads,
            dim,
            ..
        } = *self;
        let apart = Prim::<B>(tensor).reshape([batch, seen, kv_heads, dim]);
        let apart = apart.swap(1, 2).reshape([batch, kv_heads, 1, seen, dim]);
        let repeated = apart.expand([batch, kv_heads, heads / kv_heads, seen, dim]);
        repeated.reshape([batch, heads, seen, dim])
    }

    /// The way back of [`queries`](Self::queries).
    fn joined<B: Backend>(&self, tensor: &Prim<B>) -> FloatTensor<B> {
        let back = tensor.swap(1, 2);
        back.reshape([self.batch, self.len, self.heads * self.dim])
            .0
    }

    /// The way back of [`keys`](Self::keys) for gradients: those of a head's copies are added up.
    fn added<B: Backend>(&self, tensor: &Prim<B>) -> FloatTensor<B> {
        let Self {
            batch,
            seen,
            heads,
            kv_heads,
            dim,
            ..
        } = *self;
        let copies = tensor.reshape([batch, kv_heads, heads / kv_heads, seen, dim]);
        let added = copies.sum_dim(2).reshape([batch, kv_heads, seen, dim]);
        added.swap(1, 2).reshape([batch, seen, kv_heads * dim]).0
    }

    /// The scores with those of later keys masked, `[batch, heads, len, seen]`.
    fn scores<B: Backend>(&self, query: &Prim<B>, key: &Prim<B>) -> Prim<B> {
        let past = self.seen - self.len;
        let hidden = query.constant([1, 1, self.len, self.seen], |place| {
            match place % self.seen > past + place / self.seen {
                true => MASKED,
                false => 0.0,
            }
        });
        &query.matmul(&key.transpose()).scale(self.scale()) + &hidden
    }
}

pub(crate) fn forward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    heads: usize,
) -> AttentionOutputs<B> {
    let dims = Dims::new::<B>(&query, &key, heads);
    let scores = dims.scores(&dims.queries::<B>(query), &dims.keys::<B>(key));
    let max = scores.max_dim(3);
    let weights = (&scores - &max).exp();
    let sums = weights.sum_dim(3);
    let y = (&weights * &sums.recip()).matmul(&dims.keys::<B>(value));
    let log_sums = (&max + &sums.log()).scale(LOG2_E);
    AttentionOutputs {
        y: dims.joined(&y),
        log_sums: log_sums.reshape([dims.batch, dims.heads, dims.len]).0,
    }
}

/// With weights `p` and `dp = dy v^T`: `ds = p (dp - dy . y)`.
#[allow(
    clippy::too_many_arguments,
    reason = "the op's inputs, its outputs and their gradient"
)]
pub(crate) fn backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    heads: usize,
    y: FloatTensor<B>,
    log_sums: FloatTensor<B>,
    grad_y: FloatTensor<B>,
) -> AttentionGrads<B> {
    let dims = Dims::new::<B>(&query, &key, heads);
    let (query, key, value) = (
        dims.queries::<B>(query),
        dims.keys::<B>(key),
        dims.keys::<B>(value),
    );
    let (y, grad_y) = (dims.queries::<B>(y), dims.queries::<B>(grad_y));
    let log_sums = Prim::<B>(log_sums).scale(1.0 / LOG2_E);
    let log_sums = log_sums.reshape([dims.batch, dims.heads, dims.len, 1]);
    let weights = (&dims.scores(&query, &key) - &log_sums).exp();
    let agreement = (&y * &grad_y).sum_dim(3);
    let grads = &weights * &(&grad_y.matmul(&value.transpose()) - &agreement);
    let grads = grads.scale(dims.scale());
    AttentionGrads {
        query: dims.joined(&grads.matmul(&key)),
        key: dims.added(&grads.transpose().matmul(&query)),
        value: dims.added(&weights.transpose().matmul(&grad_y)),
    }
}
