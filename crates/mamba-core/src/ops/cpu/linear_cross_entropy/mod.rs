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

mod matrix;
mod slab;

use super::{
    rows::check_len,
    simd::{LANES, Lanes, dispatch},
};
use matrix::{Matrix, multiply};
use rayon::prelude::*;
use slab::{Exponentials, Scale};

/// Bytes that the exponentials of a chunk may take.
const CHUNK_BYTES: usize = 64 << 20;

/// Most tokens of a chunk: from here on reading and writing the gradient of the weight, once a
/// chunk, takes less than a tenth of the time of the products.
const MAX_TOKENS: usize = 256;

/// Most classes of a slab: a slab of `MAX_TOKENS` tokens fits in a second-level cache of 1 MiB
/// beside the weights of its classes.
const MAX_CLASSES: usize = 512;

/// Groups of slabs, each with its part of the hidden states' gradient.
const GROUPS: usize = 32;

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

/// Validated inputs and how they are cut.
struct Problem<'a> {
    hidden: &'a [f32],
    weight: &'a [f32],
    d_model: usize,
    vocab_size: usize,
    /// The class of each token, `None` where it does not count.
    targets: Vec<Option<usize>>,
    counted: usize,
    /// Multiple of [`LANES`].
    tokens_per_chunk: usize,
    /// Classes of every slab but the last.
    classes: usize,
}

impl<'a> Problem<'a> {
    fn new<T: Copy + Into<i64>>(inputs: &LossInputs<'a, T>) -> Self {
        const OP: &str = "linear_cross_entropy";
        let LossInputs {
            hidden,
            weight,
            d_model,
            vocab_size,
            ignore_index,
            ..
        } = *inputs;
        assert!(d_model >= 1, "{OP}: d_model must be at least 1");
        check_len(OP, "hidden", hidden, inputs.targets.len() * d_model);
        let rows = weight.len() / d_model;
        check_len(OP, "weight", weight, rows * d_model);
        assert!(
            (1..=rows).contains(&vocab_size),
            "{OP}: vocab_size must be in 1..={rows}, the rows of weight, got {vocab_size}"
        );
        let targets: Vec<_> = inputs
            .targets
            .iter()
            .map(|&target| target.into())
            .enumerate()
            .map(|(token, target)| {
                if ignore_index == Some(target) {
                    return None;
                }
                let class = usize::try_from(target)
                    .ok()
                    .filter(|&class| class < vocab_size);
                assert!(
                    class.is_some(),
                    "{OP}: target {target} of token {token} is not in 0..{vocab_size}"
                );
                class
            })
            .collect();
        let counted = targets.iter().flatten().count();
        let fitting = CHUNK_BYTES / size_of::<f32>() / vocab_size;
        let tokens_per_chunk = fitting
            .min(MAX_TOKENS)
            .min(targets.len())
            .next_multiple_of(LANES);
        let classes = vocab_size
            .div_ceil(GROUPS)
            .next_multiple_of(LANES)
            .clamp(64, MAX_CLASSES);
        Self {
            hidden,
            weight,
            d_model,
            vocab_size,
            targets,
            counted,
            tokens_per_chunk,
            classes,
        }
    }

    fn slabs(&self) -> usize {
        self.vocab_size.div_ceil(self.classes)
    }

    fn slab_classes(&self, slab: usize) -> usize {
        self.classes.min(self.vocab_size - slab * self.classes)
    }

    /// `[classes, d_model]`.
    fn slab_weight(&self, slab: usize) -> Matrix<'a> {
        let weight = &self.weight[slab * self.classes * self.d_model..];
        Matrix::new(weight, self.slab_classes(slab), self.d_model, self.d_model)
    }

    /// In f64, so that their sum over a corpus is exact enough for a perplexity.
    fn token_losses(&self) -> Vec<f64> {
        let lanes = self.tokens_per_chunk;
        let mut stats = vec![SlabStats::new(lanes); self.slabs()];
        let mut losses = Vec::with_capacity(self.targets.len());
        for first in (0..self.targets.len()).step_by(lanes.max(1)) {
            let chunk = Chunk::new(self, first);
            stats.par_iter_mut().enumerate().for_each_init(
                || vec![0.0; self.classes * lanes],
                |buffer, (slab, stats)| chunk.exponentials(slab, buffer, stats),
            );
            let normalisers = chunk.normalisers(&stats);
            losses.extend(chunk.losses(&stats, &normalisers));
        }
        losses
    }
}

/// What pass 1 learns about a slab, `[tokens]` each.
#[derive(Clone)]
struct SlabStats {
    max: Vec<f32>,
    sum: Vec<f32>,
    /// The logit of the target, for tokens whose target is in this slab.
    target: Vec<f32>,
}

impl SlabStats {
    fn new(tokens: usize) -> Self {
        Self {
            max: vec![0.0; tokens],
            sum: vec![0.0; tokens],
            target: vec![0.0; tokens],
        }
    }
}

/// What a token's slabs make together.
#[derive(Clone, Copy)]
struct Normaliser {
    max: f32,
    /// Sum of `exp(logit - max)` over all classes.
    sum: f64,
}

/// Consecutive tokens.
struct Chunk<'a> {
    problem: &'a Problem<'a>,
    hidden: &'a [f32],
    targets: &'a [Option<usize>],
}

impl<'a> Chunk<'a> {
    fn new(problem: &'a Problem<'a>, first: usize) -> Self {
        let end = problem.targets.len().min(first + problem.tokens_per_chunk);
        Self {
            problem,
            hidden: &problem.hidden[first * problem.d_model..end * problem.d_model],
            targets: &problem.targets[first..end],
        }
    }

    /// `[tokens, d_model]`.
    fn hidden_matrix(&self) -> Matrix<'a> {
        let d_model = self.problem.d_model;
        Matrix::new(self.hidden, self.targets.len(), d_model, d_model)
    }

    /// `[classes, tokens]`, of a buffer whose rows are as long as a full chunk.
    fn slab_matrix<'b>(&self, slab: usize, values: &'b [f32]) -> Matrix<'b> {
        let classes = self.problem.slab_classes(slab);
        Matrix::new(
            values,
            classes,
            self.targets.len(),
            self.problem.tokens_per_chunk,
        )
    }

    /// The tokens whose target is in `slab`, and its place there.
    fn targets_in(&self, slab: usize) -> impl Iterator<Item = (usize, usize)> {
        let classes = self.problem.classes;
        let here = self.targets.iter().enumerate();
        here.filter_map(move |(token, target)| {
            target
                .filter(|target| target / classes == slab)
                .map(|target| (token, target % classes))
        })
    }

    /// Pass 1 over `slab`.
    fn exponentials(&self, slab: usize, to: &mut [f32], stats: &mut SlabStats) {
        let lanes = self.problem.tokens_per_chunk;
        let logits = &mut to[..self.problem.slab_classes(slab) * lanes];
        let weight = self.problem.slab_weight(slab);
        multiply(
            logits,
            lanes,
            false,
            weight,
            self.hidden_matrix().transposed(),
        );
        for (token, class) in self.targets_in(slab) {
            stats.target[token] = logits[class * lanes + token];
        }
        dispatch(Exponentials {
            logits,
            max: &mut stats.max,
            sum: &mut stats.sum,
        });
    }

    fn normalisers(&self, stats: &[SlabStats]) -> Vec<Normaliser> {
        (0..self.targets.len())
            .map(|token| {
                let max = stats
                    .iter()
                    .fold(f32::NEG_INFINITY, |max, slab| max.max(slab.max[token]));
                let sum = stats
                    .iter()
                    .map(|slab| f64::from(slab.sum[token]) * f64::from(slab.max[token] - max).exp())
                    .sum();
                Normaliser { max, sum }
            })
            .collect()
    }

    fn losses(&self, stats: &[SlabStats], normalisers: &[Normaliser]) -> impl Iterator<Item = f64> {
        self.targets
            .iter()
            .zip(normalisers)
            .enumerate()
            .map(|(token, (target, normaliser))| {
                target.map_or(0.0, |target| {
                    let logit = stats[target / self.problem.classes].target[token];
                    normaliser.sum.ln() + f64::from(normaliser.max) - f64::from(logit)
                })
            })
    }

    /// Turns a slab's exponentials into the gradient of the mean loss by its logits,
    /// `(softmax - one_hot(target)) / counted`.
    fn gradient(
        &self,
        slab: usize,
        values: &mut [f32],
        stats: &SlabStats,
        normalisers: &[Normaliser],
    ) {
        let lanes = self.problem.tokens_per_chunk;
        let share = 1.0 / self.problem.counted as f64;
        let mut factors = vec![Lanes::ZERO; lanes / LANES];
        for (token, (target, normaliser)) in self.targets.iter().zip(normalisers).enumerate() {
            if target.is_some() {
                let relative = f64::from(stats.max[token] - normaliser.max).exp();
                let factor = relative / normaliser.sum * share;
                factors[token / LANES].0[token % LANES] = factor as f32;
            }
        }
        let values = &mut values[..self.problem.slab_classes(slab) * lanes];
        dispatch(Scale {
            values,
            factors: &factors,
        });
        for (token, class) in self.targets_in(slab) {
            values[class * lanes + token] -= share as f32;
        }
    }
}

#[cfg(test)]
mod tests;
