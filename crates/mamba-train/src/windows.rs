//! Cutting a sequence of tokens into training examples, and examples into batches.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, DatasetError};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use crate::encoded::EncodedCorpus;

/// What becomes of the part at the end that is not whole: the last window of a corpus, or the last
/// batch of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// It is left out, so that all shapes are equal.
    #[default]
    Drop,
    /// It is kept, shorter than the others.
    Keep,
}

/// Consecutive tokens: each but the last is an input, each but the first a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    tokens: Vec<u32>,
}

impl Window {
    /// The number of inputs, and of targets.
    pub fn seq_len(&self) -> usize {
        self.tokens.len() - 1
    }

    /// What the model reads.
    pub fn inputs(&self) -> &[u32] {
        &self.tokens[..self.seq_len()]
    }

    /// What the model must predict: at each position the token after the input.
    pub fn targets(&self) -> &[u32] {
        &self.tokens[1..]
    }
}

/// A corpus as windows of `seq_len + 1` tokens at a stride of `seq_len`: every token but the first
/// is a target exactly once.
#[derive(Clone, Debug)]
pub struct Windows {
    corpus: Arc<EncodedCorpus>,
    seq_len: usize,
    whole: usize,
    len: usize,
}

impl Windows {
    /// The windows of `corpus`, each with `seq_len` inputs and as many targets.
    ///
    /// # Errors
    ///
    /// Where `seq_len` is 0, or the corpus is shorter than one window (with [`Tail::Keep`]: than
    /// two tokens).
    pub fn new(corpus: Arc<EncodedCorpus>, seq_len: usize, tail: Tail) -> Result<Self> {
        ensure!(seq_len > 0, "seq_len must be at least 1");
        let targets = corpus.len().saturating_sub(1);
        let whole = targets / seq_len;
        let len = match tail {
            Tail::Drop => whole,
            Tail::Keep => targets.div_ceil(seq_len),
        };
        if len == 0 {
            bail!(
                "the corpus has {} tokens, but one window of seq_len {seq_len} needs {}; give more \
                 text or a smaller seq_len",
                corpus.len(),
                match tail {
                    Tail::Drop => seq_len + 1,
                    Tail::Keep => 2,
                }
            );
        }
        Ok(Self {
            corpus,
            seq_len,
            whole,
            len,
        })
    }

    /// The text that they are cut from.
    pub fn corpus(&self) -> &EncodedCorpus {
        &self.corpus
    }

    /// The inputs of a whole window.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The number of targets in all windows together.
    pub fn num_targets(&self) -> usize {
        if self.len > self.whole {
            self.corpus.len() - 1
        } else {
            self.whole * self.seq_len
        }
    }

    /// All windows in the order of the text.
    ///
    /// # Panics
    ///
    /// Where `batch_size` is 0.
    pub fn sequential(&self, batch_size: usize, tail: Tail) -> BatchPlan {
        BatchPlan::new((0..self.len).collect(), self.whole, batch_size, tail)
    }

    /// The batches of an epoch: a pure function of its arguments, so that a run can go on from any
    /// batch. A shorter last window stays last.
    ///
    /// # Panics
    ///
    /// Where `batch_size` is 0.
    pub fn shuffled(&self, seed: u64, epoch: u64, batch_size: usize, tail: Tail) -> BatchPlan {
        let mut order = epoch_order(self.whole, seed, epoch);
        order.extend(self.whole..self.len);
        BatchPlan::new(order, self.whole, batch_size, tail)
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = index * self.seq_len;
        start..(start + self.seq_len + 1).min(self.corpus.len())
    }
}

impl Dataset<Window> for Windows {
    fn get(&self, index: usize) -> Result<Window, DatasetError> {
        assert!(index < self.len, "window {index} of {}", self.len);
        Ok(Window {
            tokens: self.corpus.tokens(self.range(index)),
        })
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// A permutation of `0..len`, the same on every platform for the same `seed` and `epoch`.
pub fn epoch_order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    // The odd multiplier spreads epochs over all seeds, so that epoch 1 of seed 0 is not epoch 0
    // of seed 1.
    let seed = seed.wrapping_add(epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
    order
}

/// Which windows form which batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    order: Vec<usize>,
    batches: Vec<Range<usize>>,
}

impl BatchPlan {
    fn new(order: Vec<usize>, whole: usize, batch_size: usize, tail: Tail) -> Self {
        assert!(batch_size > 0, "batch_size must be at least 1");
        let batched = match tail {
            Tail::Drop => whole / batch_size * batch_size,
            Tail::Keep => whole,
        };
        let mut batches: Vec<_> = (0..batched)
            .step_by(batch_size)
            .map(|start| start..(start + batch_size).min(batched))
            .collect();
        // Windows of two lengths do not fit into one tensor.
        if tail == Tail::Keep && order.len() > whole {
            batches.push(whole..order.len());
        }
        Self { order, batches }
    }

    /// The number of batches. 0 only where [`Tail::Drop`] left nothing: the corpus has fewer whole
    /// windows than a batch.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there is no batch.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The indices of the windows in batch `k`.
    ///
    /// # Panics
    ///
    /// Where `k` is not below [`len`](Self::len).
    pub fn batch(&self, k: usize) -> &[usize] {
        &self.order[self.batches[k].clone()]
    }

    /// The batches from number `start` on.
    pub fn iter_from(&self, start: usize) -> impl Iterator<Item = &[usize]> {
        self.batches
            .iter()
            .skip(start)
            .map(|range| &self.order[range.clone()])
    }
}

/// Windows as tensors.
#[derive(Clone, Debug)]
pub struct TokenBatch {
    /// `[batch, seq_len]`
    pub inputs: Tensor<2, Int>,
    /// `[batch, seq_len]`
    pub targets: Tensor<2, Int>,
}

/// Stacks windows of one length.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBatcher;

impl Batcher<Window, TokenBatch> for TokenBatcher {
    /// # Panics
    ///
    /// Where there are no windows, or their lengths differ.
    fn batch(&self, items: Vec<Window>, device: &Device) -> TokenBatch {
        let seq_len = items
            .first()
            .expect("a batch should have a window")
            .seq_len();
        if let Some(other) = items.iter().find(|window| window.seq_len() != seq_len) {
            panic!(
                "TokenBatcher: all windows must have length {seq_len}, got {}",
                other.seq_len()
            );
        }
        let shape = [items.len(), seq_len];
        let stack = |part: fn(&Window) -> &[u32]| {
            let ids: Vec<i32> = items.iter().flat_map(part).map(|&id| id as i32).collect();
            Tensor::from_data(TensorData::new(ids, shape), device)
        };
        TokenBatch {
            inputs: stack(Window::inputs),
            targets: stack(Window::targets),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn windows(tokens: u32, seq_len: usize, tail: Tail) -> Windows {
        let tokens: Vec<u32> = (0..tokens).collect();
        Windows::new(Arc::new(EncodedCorpus::from_tokens(&tokens)), seq_len, tail).unwrap()
    }

    #[test]
    fn every_token_but_the_first_is_a_target_once() {
        for tokens in [5, 9, 10, 12] {
            let windows = windows(tokens, 4, Tail::Keep);
            let all: Vec<Window> = windows.iter().map(Result::unwrap).collect();
            let targets: Vec<u32> = all.iter().flat_map(Window::targets).copied().collect();
            assert_eq!(targets, (1..tokens).collect::<Vec<_>>());
            let inputs: Vec<u32> = all.iter().flat_map(Window::inputs).copied().collect();
            assert_eq!(inputs, (0..tokens - 1).collect::<Vec<_>>());
            assert_eq!(windows.num_targets(), targets.len());
        }
    }

    #[test]
    fn dropping_leaves_whole_windows_only() {
        let windows = windows(12, 4, Tail::Drop);
        assert_eq!((windows.len(), windows.num_targets()), (2, 8));
        assert!(windows.iter().all(|window| window.unwrap().seq_len() == 4));
    }

    #[test]
    fn a_corpus_shorter_than_a_window_names_both_numbers() {
        let corpus = Arc::new(EncodedCorpus::from_tokens(&[1; 128]));
        let error = Windows::new(corpus.clone(), 128, Tail::Drop)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("128 tokens") && error.contains("needs 129"),
            "{error}"
        );
        assert_eq!(
            Windows::new(corpus.clone(), 128, Tail::Keep).unwrap().len(),
            1
        );
        assert!(Windows::new(corpus, 0, Tail::Keep).is_err());
    }

    #[test]
    fn epoch_orders_are_pinned_permutations() {
        assert_eq!(epoch_order(8, 42, 0), [2, 1, 4, 6, 0, 5, 3, 7]);
        let orders: HashSet<Vec<usize>> = (0..4)
            .flat_map(|seed| (0..4).map(move |epoch| epoch_order(100, seed, epoch)))
            .collect();
        assert_eq!(orders.len(), 16);
        for order in orders {
            assert_eq!(order.iter().collect::<HashSet<_>>().len(), 100);
        }
    }

    #[test]
    fn a_plan_continues_from_any_batch() {
        let windows = windows(103, 4, Tail::Drop);
        let plan = windows.shuffled(1, 2, 6, Tail::Drop);
        assert_eq!((windows.len(), plan.len()), (25, 4));
        let again = windows.shuffled(1, 2, 6, Tail::Drop);
        let rest: Vec<&[usize]> = again.iter_from(2).collect();
        assert_eq!(rest, [plan.batch(2), plan.batch(3)]);
        assert_eq!(again.iter_from(4).count(), 0);
    }

    #[test]
    fn a_kept_tail_gets_a_batch_of_its_own() {
        let windows = windows(103, 4, Tail::Keep);
        for plan in [
            windows.sequential(6, Tail::Keep),
            windows.shuffled(0, 0, 6, Tail::Keep),
        ] {
            let sizes: Vec<usize> = plan.iter_from(0).map(<[usize]>::len).collect();
            assert_eq!(sizes, [6, 6, 6, 6, 1, 1]);
            assert_eq!(plan.batch(5), [25]);
            let seen: HashSet<usize> = plan.iter_from(0).flatten().copied().collect();
            assert_eq!(seen.len(), 26);
        }
        assert_eq!(windows.sequential(6, Tail::Drop).len(), 4);
        assert!(windows.sequential(26, Tail::Drop).is_empty());
    }

    #[test]
    fn batches_are_stacked_windows() {
        let windows = windows(12, 4, Tail::Drop);
        let items = windows.get_many(vec![1, 0]).unwrap();
        let batch = TokenBatcher.batch(items, &Device::default());
        assert_eq!(batch.inputs.dims(), [2, 4]);
        let ids = |tensor: Tensor<2, Int>| tensor.into_data().convert::<i64>().try_to_vec::<i64>();
        assert_eq!(ids(batch.inputs).unwrap(), [4, 5, 6, 7, 0, 1, 2, 3]);
        assert_eq!(ids(batch.targets).unwrap(), [5, 6, 7, 8, 1, 2, 3, 4]);
    }

    #[test]
    #[should_panic(expected = "all windows must have length 4, got 3")]
    fn lengths_do_not_mix() {
        let windows = windows(12, 4, Tail::Keep);
        TokenBatcher.batch(windows.get_many(vec![0, 2]).unwrap(), &Device::default());
    }
}
