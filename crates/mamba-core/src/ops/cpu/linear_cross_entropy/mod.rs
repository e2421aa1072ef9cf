//! The last linear layer and the cross-entropy of its outputs, as one operation: neither the
//! logits of all tokens nor their gradient ever exist, and no logit is computed twice.
//!
//! Tokens go in chunks, classes in slabs, and a slab's logits of a chunk are one block in memory
//! with one token a lane. A chunk takes two passes over its slabs:
//!
//! 1. the logits, their exponentials relative to the slab's own maximum, and per token the sum;
//! 2. once the slabs' sums are put together: the gradient of the logits, from the exponentials in
//!    place, and its products with weight and hidden states.
//!
//! Threads share out slabs. Gradients of the weight belong to one slab each; those of the hidden
//! states are summed per group of slabs and then over the groups in order, so that no sum depends on
//! which thread ran what.

mod chunk;
mod problem;
mod slab;

use super::matrix::multiply;
use chunk::{Chunk, SlabStats};
use problem::{GROUPS, Problem};
use rayon::prelude::*;

/// What the loss reads.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs<'a, T> {
    /// `[tokens, d_model]`.
    pub hidden: &'a [f32],
    /// `[rows, d_model]`; rows past `vocab_size` take no part.
    pub weight: &'a [f32],
    /// `[tokens]`, the class of each token.
    pub targets: &'a [T],
    /// Size of a hidden state, at least 1.
    pub d_model: usize,
    /// Classes, at least 1 and at most `rows`.
    pub vocab_size: usize,
    /// Tokens with this target do not count.
    pub ignore_index: Option<i64>,
}

/// What [`loss_and_grads`] returns.
#[derive(Clone, Debug)]
pub struct LossGrads {
    /// Mean over the tokens that count; 0 if none does.
    pub loss: f32,
    /// `[tokens, d_model]`.
    pub hidden: Vec<f32>,
    /// `[rows, d_model]`, zero past the vocabulary.
    pub weight: Vec<f32>,
}

/// The mean of `-ln softmax(hidden * weight^T)[target]` over the tokens that count; 0 if none does.
///
/// # Panics
/// If a size does not fit the others, or if a target is neither a class nor ignored.
pub fn loss<T: Copy + Into<i64>>(inputs: &LossInputs<T>) -> f32 {
    let problem = Problem::new(inputs);
    let losses = problem.token_losses();
    (losses.iter().sum::<f64>() / problem.counted.max(1) as f64) as f32
}

/// `-ln softmax(hidden * weight^T)[target]` of each token, `[tokens]`; 0 where it does not count.
///
/// # Panics
/// As [`loss`].
pub fn token_losses<T: Copy + Into<i64>>(inputs: &LossInputs<T>) -> Vec<f32> {
    Problem::new(inputs)
        .token_losses()
        .into_iter()
        .map(|loss| loss as f32)
        .collect()
}

/// [`loss`] and its gradients, which have to be multiplied by the gradient of the loss.
///
/// The result is the same, bit by bit, on every run and for any number of threads.
///
/// # Panics
/// As [`loss`].
pub fn loss_and_grads<T: Copy + Into<i64>>(inputs: &LossInputs<T>) -> LossGrads {
    let problem = Problem::new(inputs);
    let Problem {
        d_model, classes, ..
    } = problem;
    let mut hidden = vec![0.0; inputs.hidden.len()];
    let mut weight = vec![0.0; inputs.weight.len()];
    if problem.counted == 0 {
        return LossGrads {
            loss: 0.0,
            hidden,
            weight,
        };
    }
    let slabs_per_group = problem.slabs().div_ceil(GROUPS);
    let groups = problem.slabs().div_ceil(slabs_per_group);
    let lanes = problem.tokens_per_chunk;
    let slab_len = classes * lanes;

    let mut exponentials = vec![0.0; problem.slabs() * slab_len];
    let mut stats = vec![SlabStats::new(lanes); problem.slabs()];
    let mut parts = vec![0.0; groups * lanes * d_model];
    let mut total = 0.0;
    for first in (0..problem.targets.len()).step_by(lanes) {
        let chunk = Chunk::new(&problem, first);
        exponentials
            .par_chunks_mut(slab_len)
            .zip(&mut stats)
            .enumerate()
            .for_each(|(slab, (to, stats))| chunk.exponentials(slab, to, stats));
        let normalisers = chunk.normalisers(&stats);
        total += chunk.losses(&stats, &normalisers).sum::<f64>();

        let len = chunk.targets.len() * d_model;
        exponentials
            .par_chunks_mut(slabs_per_group * slab_len)
            .zip(
                weight[..problem.vocab_size * d_model]
                    .par_chunks_mut(slabs_per_group * classes * d_model),
            )
            .zip(parts.par_chunks_mut(lanes * d_model))
            .zip(stats.par_chunks(slabs_per_group))
            .enumerate()
            .for_each(|(group, (((exponentials, grad_weight), part), stats))| {
                let slabs = exponentials
                    .chunks_mut(slab_len)
                    .zip(grad_weight.chunks_mut(classes * d_model))
                    .zip(stats);
                for (i, ((exponentials, grad_weight), stats)) in slabs.enumerate() {
                    let slab = group * slabs_per_group + i;
                    chunk.gradient(slab, exponentials, stats, &normalisers);
                    let grad = chunk.slab_matrix(slab, exponentials);
                    let weight = problem.slab_weight(slab);
                    multiply(grad_weight, d_model, true, grad, chunk.hidden_matrix());
                    multiply(&mut part[..len], d_model, i > 0, grad.transposed(), weight);
                }
            });
        let to = &mut hidden[first * d_model..][..len];
        for part in parts.chunks_exact(lanes * d_model) {
            for (to, value) in to.iter_mut().zip(part) {
                *to += value;
            }
        }
    }
    LossGrads {
        loss: (total / problem.counted as f64) as f32,
        hidden,
        weight,
    }
}

#[cfg(test)]
mod tests;
