//! Batches as a pure function of their position in the run.

use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::{Dataset, DatasetError};
use burn::tensor::Device;

use crate::windows::{BatchPlan, Tail, TokenBatch, TokenBatcher, Windows};

/// The order in which a [`TokenLoader`] visits the windows.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// One pass, front to back, every window.
    Sequential,
    /// Endless passes, each in its own random order and cut to `batches_per_epoch` whole batches.
    Shuffled {
        /// Seeds every pass, together with its number.
        seed: u64,
        /// Batches in a pass.
        batches_per_epoch: usize,
    },
}

/// Yields the batches `start..end` of a run, each of which does not depend on `start`.
///
/// A run that resumes at batch `n` therefore sees what an uninterrupted one would have seen.
#[derive(Clone)]
pub struct TokenLoader {
    windows: Arc<Windows>,
    batch_size: usize,
    order: Order,
    start: usize,
    end: usize,
    device: Device,
}

impl TokenLoader {
    /// One front-to-back pass over `windows`.
    pub fn sequential(windows: Arc<Windows>, batch_size: usize, device: &Device) -> Self {
        let end = windows.sequential(batch_size, Tail::Keep).len();
        let order = Order::Sequential;
        Self {
            windows,
            batch_size,
            order,
            start: 0,
            end,
            device: device.clone(),
        }
    }

    /// The first `end` batches of shuffled passes over `windows`.
    ///
    /// # Panics
    ///
    /// Panics if a pass of `batches_per_epoch` batches needs more windows than there are.
    pub fn shuffled(
        windows: Arc<Windows>,
        batch_size: usize,
        seed: u64,
        batches_per_epoch: usize,
        end: usize,
        device: &Device,
    ) -> Self {
        assert!(
            batches_per_epoch * batch_size <= windows.len(),
            "TokenLoader: {batches_per_epoch} batches of {batch_size} need more than {} windows",
            windows.len()
        );
        let order = Order::Shuffled {
            seed,
            batches_per_epoch,
        };
        Self {
            windows,
            batch_size,
            order,
            start: 0,
            end,
            device: device.clone(),
        }
    }

    /// Leaves out the batches before `start`.
    pub fn starting_at(mut self, start: usize) -> Self {
        self.start = start.min(self.end);
        self
    }

    /// Keeps at most `batches` batches; 0 keeps all.
    pub fn take(mut self, batches: usize) -> Self {
        if batches > 0 {
            self.end = self.end.min(self.start + batches);
        }
        self
    }
}

impl DataLoader<TokenBatch> for TokenLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch> + 'a> {
        Box::new(TokenIterator {
            loader: self,
            next: self.start,
            pass: None,
        })
    }

    /// Counts batches: the unit of an optimizer step, whose size is the same throughout.
    fn num_items(&self) -> usize {
        self.end - self.start
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<TokenBatch>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<TokenBatch>> {
        let (start, end) = (self.start + start, (self.start + end).min(self.end));
        Arc::new(Self {
            start,
            end,
            ..self.clone()
        })
    }
}

struct TokenIterator<'a> {
    loader: &'a TokenLoader,
    next: usize,
    /// The pass whose plan is at hand, and that plan.
    pass: Option<(usize, BatchPlan)>,
}

impl TokenIterator<'_> {
    fn indices(&mut self, batch: usize) -> Vec<usize> {
        let TokenLoader {
            windows,
            batch_size,
            order,
            ..
        } = self.loader;
        let (pass, batch) = match *order {
            Order::Sequential => (0, batch),
            Order::Shuffled {
                batches_per_epoch, ..
            } => (batch / batches_per_epoch, batch % batches_per_epoch),
        };
        let plan = match self.pass.take() {
            Some((current, plan)) if current == pass => plan,
            _ => match *order {
                Order::Sequential => windows.sequential(*batch_size, Tail::Keep),
                Order::Shuffled { seed, .. } => {
                    windows.shuffled(seed, pass as u64, *batch_size, Tail::Drop)
                }
            },
        };
        let indices = plan.batch(batch).to_vec();
        self.pass = Some((pass, plan));
        indices
    }
}

impl Iterator for TokenIterator<'_> {
    type Item = Result<TokenBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.loader.end {
            return None;
        }
        let indices = self.indices(self.next);
        self.next += 1;
        let windows = self.loader.windows.get_many(indices);
        Some(windows.map(|windows| TokenBatcher.batch(windows, &self.loader.device)))
    }
}

impl DataLoaderIterator<TokenBatch> for TokenIterator<'_> {
    fn progress(&self) -> Progress {
        let TokenLoader { start, end, .. } = self.loader;
        Progress::new(self.next - start, end - start, Some("batches".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoded::EncodedCorpus;

    fn windows(count: u32) -> Arc<Windows> {
        let tokens: Vec<u32> = (0..=count * 2).collect();
        let corpus = Arc::new(EncodedCorpus::from_tokens(&tokens));
        Arc::new(Windows::new(corpus, 2, Tail::Keep).unwrap())
    }

    fn first_tokens(loader: &TokenLoader) -> Vec<Vec<i64>> {
        let batches = loader.iter().map(Result::unwrap);
        batches
            .map(|batch| {
                batch
                    .inputs
                    .narrow(1, 0, 1)
                    .into_data()
                    .iter::<i64>()
                    .collect()
            })
            .collect()
    }

    #[test]
    fn sequential_visits_every_window_once() {
        let loader = TokenLoader::sequential(windows(5), 2, &Device::default());
        assert_eq!(first_tokens(&loader), [vec![0, 2], vec![4, 6], vec![8]]);
        assert_eq!(first_tokens(&loader.take(1)), [vec![0, 2]]);
    }

    #[test]
    fn shuffled_continues_from_any_batch() {
        let loader = TokenLoader::shuffled(windows(7), 2, 3, 3, 9, &Device::default());
        let whole = first_tokens(&loader);
        assert_eq!(first_tokens(&loader.clone().starting_at(4)), whole[4..]);

        let mut pass: Vec<i64> = whole[..3].concat();
        pass.sort();
        pass.dedup();
        assert_eq!(pass.len(), 6, "a pass repeats no window");
        assert_ne!(whole[..3], whole[3..6], "passes differ in their order");
    }
}
