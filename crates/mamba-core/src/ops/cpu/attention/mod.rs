//! Causal attention and its gradients; see the README beside `ops/cpu`.

mod backward;
mod blocks;
mod forward;
#[cfg(test)]
mod tests;

pub use backward::backward;
pub use forward::forward;

use super::rows::{Rows, check_len};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Sizes of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Sequences.
    pub batch: usize,
    /// Queries of a sequence, those of its last positions.
    pub len: usize,
    /// Keys and values of a sequence, `len` at least.
    pub seen: usize,
    /// Heads of queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values, at least 1: the heads `h` with the same `h / (heads / kv_heads)` share one.
    pub kv_heads: usize,
    /// Channels of a head, at least 1.
    pub dim: usize,
}

impl AttentionDims {
    /// Keys that the first query sees behind its own.
    fn past(&self) -> usize {
        self.seen - self.len
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Columns of a head.
    fn columns(&self, head: usize) -> Range<usize> {
        head * self.dim..(head + 1) * self.dim
    }

    /// Rows of some queries of a sequence.
    fn query_rows(&self, batch: usize, queries: &Range<usize>) -> Range<usize> {
        batch * self.len + queries.start..batch * self.len + queries.end
    }

    /// Rows of some keys of a sequence.
    fn key_rows(&self, batch: usize, keys: &Range<usize>) -> Range<usize> {
        batch * self.seen + keys.start..batch * self.seen + keys.end
    }

    /// What scores are multiplied by for `2^score` to be the weight of a softmax over `q . k / sqrt(dim)`.
    fn scale(&self) -> f32 {
        LOG2_E / (self.dim as f32).sqrt()
    }
}

/// What both directions read.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Sizes.
    pub dims: AttentionDims,
    /// `[batch * len, heads * dim]`
    pub query: Rows<'a>,
    /// `[batch * seen, kv_heads * dim]`
    pub key: Rows<'a>,
    /// `[batch * seen, kv_heads * dim]`
    pub value: Rows<'a>,
}

impl AttentionInputs<'_> {
    fn check(&self) {
        let dims = self.dims;
        assert!(
            dims.kv_heads > 0 && dims.heads.is_multiple_of(dims.kv_heads) && dims.dim > 0,
            "attention: heads must be a multiple of kv_heads and have channels, got {dims:?}"
        );
        assert!(
            dims.len <= dims.seen,
            "attention: there must be a key for each query, got {dims:?}"
        );
        let (queries, keys) = (dims.batch * dims.len, dims.batch * dims.seen);
        let width = dims.kv_heads * dims.dim;
        self.query
            .check("attention", "query", queries, dims.heads * dims.dim);
        self.key.check("attention", "key", keys, width);
        self.value.check("attention", "value", keys, width);
    }
}

/// What [`forward`] returns.
#[derive(Clone, Debug)]
pub struct AttentionOutputs {
    /// `[batch * len, heads * dim]`
    pub y: Vec<f32>,
    /// The logarithm to base 2 of the sum of each query's weights before it is divided by, `[batch * heads, len]`.
    pub log_sums: Vec<f32>,
}

/// What [`backward`] reads besides the inputs.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// As [`forward`] returned it.
    pub y: Rows<'a>,
    /// As [`forward`] returned them.
    pub log_sums: &'a [f32],
}

impl AttentionSaved<'_> {
    fn check(&self, dims: AttentionDims) {
        let rows = dims.batch * dims.len;
        self.y.check("attention", "y", rows, dims.heads * dims.dim);
        check_len("attention", "log_sums", self.log_sums, rows * dims.heads);
    }
}

/// What [`backward`] returns, each as shaped as its input.
#[derive(Clone, Debug)]
pub struct AttentionGrads {
    /// The gradient of the queries.
    pub query: Vec<f32>,
    /// The gradient of the keys.
    pub key: Vec<f32>,
    /// The gradient of the values.
    pub value: Vec<f32>,
}
