//! The two passes over the slabs of one chunk of tokens.

use super::{
    super::{
        matrix::{Matrix, multiply},
        simd::{LANES, Lanes, dispatch},
    },
    problem::Problem,
    slab::{Exponentials, Scale},
};

/// What pass 1 learns about a slab, `[tokens]` each.
#[derive(Clone)]
pub struct SlabStats {
    pub max: Vec<f32>,
    pub sum: Vec<f32>,
    /// The logit of the target, for tokens whose target is in this slab.
    pub target: Vec<f32>,
}

impl SlabStats {
    pub fn new(tokens: usize) -> Self {
        Self {
            max: vec![0.0; tokens],
            sum: vec![0.0; tokens],
            target: vec![0.0; tokens],
        }
    }
}

/// What a token's slabs make together.
#[derive(Clone, Copy)]
pub struct Normaliser {
    pub max: f32,
    /// Sum of `exp(logit - max)` over all classes.
    pub sum: f64,
}

/// Consecutive tokens.
pub struct Chunk<'a> {
    pub problem: &'a Problem<'a>,
    pub hidden: &'a [f32],
    pub targets: &'a [Option<usize>],
}

impl<'a> Chunk<'a> {
    pub fn new(problem: &'a Problem<'a>, first: usize) -> Self {
        let end = problem.targets.len().min(first + problem.tokens_per_chunk);
        Self {
            problem,
            hidden: &problem.hidden[first * problem.d_model..end * problem.d_model],
            targets: &problem.targets[first..end],
        }
    }

    /// `[tokens, d_model]`.
    pub fn hidden_matrix(&self) -> Matrix<'a> {
        let d_model = self.problem.d_model;
        Matrix::new(self.hidden, self.targets.len(), d_model, d_model)
    }

    /// `[classes, tokens]`, of a buffer whose rows are as long as a full chunk.
    pub fn slab_matrix<'b>(&self, slab: usize, values: &'b [f32]) -> Matrix<'b> {
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
    pub fn exponentials(&self, slab: usize, to: &mut [f32], stats: &mut SlabStats) {
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

    pub fn normalisers(&self, stats: &[SlabStats]) -> Vec<Normaliser> {
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

    pub fn losses(
        &self,
        stats: &[SlabStats],
        normalisers: &[Normaliser],
    ) -> impl Iterator<Item = f64> {
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
    pub fn gradient(
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
