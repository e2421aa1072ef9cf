//! Validation, and how tokens and classes are cut.

use super::{
    super::{matrix::Matrix, rows::check_len, simd::LANES},
    LossInputs,
    chunk::{Chunk, SlabStats},
};
use rayon::prelude::*;

/// Bytes that the exponentials of a chunk may take.
const CHUNK_BYTES: usize = 64 << 20;

/// Most tokens of a chunk: from here on reading and writing the gradient of the weight, once a
/// chunk, takes less than a tenth of the time of the products.
const MAX_TOKENS: usize = 256;

/// Most classes of a slab: a slab of `MAX_TOKENS` tokens fits in a second-level cache of 1 MiB
/// beside the weights of its classes.
const MAX_CLASSES: usize = 512;

/// Groups of slabs, each with its part of the hidden states' gradient.
pub const GROUPS: usize = 32;

/// As many as have exponentials that fit, one at least; a multiple of [`LANES`].
fn tokens_per_chunk(vocab_size: usize, tokens: usize) -> usize {
    let fitting = CHUNK_BYTES / size_of::<f32>() / vocab_size;
    fitting
        .clamp(1, MAX_TOKENS)
        .min(tokens)
        .next_multiple_of(LANES)
}

/// Validated inputs and how they are cut.
pub struct Problem<'a> {
    pub hidden: &'a [f32],
    pub weight: &'a [f32],
    pub d_model: usize,
    pub vocab_size: usize,
    /// The class of each token, `None` where it does not count.
    pub targets: Vec<Option<usize>>,
    pub counted: usize,
    /// Multiple of [`LANES`].
    pub tokens_per_chunk: usize,
    /// Classes of every slab but the last.
    pub classes: usize,
}

impl<'a> Problem<'a> {
    pub fn new<T: Copy + Into<i64>>(inputs: &LossInputs<'a, T>) -> Self {
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
        let tokens_per_chunk = tokens_per_chunk(vocab_size, targets.len());
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

    pub fn slabs(&self) -> usize {
        self.vocab_size.div_ceil(self.classes)
    }

    pub fn slab_classes(&self, slab: usize) -> usize {
        self.classes.min(self.vocab_size - slab * self.classes)
    }

    /// `[classes, d_model]`.
    pub fn slab_weight(&self, slab: usize) -> Matrix<'a> {
        let weight = &self.weight[slab * self.classes * self.d_model..];
        Matrix::new(weight, self.slab_classes(slab), self.d_model, self.d_model)
    }

    /// In f64, so that their sum over a corpus is exact enough for a perplexity.
    pub fn token_losses(&self) -> Vec<f64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_has_tokens_whatever_the_vocabulary() {
        for (vocab_size, tokens, want) in [
            (50_257, 1000, 256),
            (1 << 20, 1000, 16),
            (1 << 25, 1000, LANES),
            (1 << 25, 3, LANES),
            (70, 0, 0),
        ] {
            assert_eq!(tokens_per_chunk(vocab_size, tokens), want, "{vocab_size}");
        }
    }
}
