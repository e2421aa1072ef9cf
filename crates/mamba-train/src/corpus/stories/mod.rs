//! A generated corpus for machines without a network.
//!
//! Every story introduces a few people, each with a trade, a home and a treasure kept in some
//! place, then moves treasures from hand to hand among sentences that carry no such fact, asks for
//! them again, and ends by telling where everything is. Names and objects can only be predicted
//! by a model that remembers them over many sentences.

mod story;
mod words;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use serde::{Deserialize, Serialize};

use super::Split;
use story::Story;

/// The size and seed of the generated stories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoriesConfig {
    /// Other seeds tell other stories; the splits of one seed share none. Default: 0.
    pub seed: u64,
    /// The least size of the train split, in bytes. Default: 4,000,000.
    pub train_bytes: usize,
    /// The least size of the valid split, in bytes. Default: 250,000.
    pub valid_bytes: usize,
    /// The least size of the test split, in bytes. Default: 250,000.
    pub test_bytes: usize,
}

impl Default for StoriesConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            train_bytes: 4_000_000,
            valid_bytes: 250_000,
            test_bytes: 250_000,
        }
    }
}

impl StoriesConfig {
    /// The text of a split: whole stories until its size is reached. The same on every platform.
    pub(super) fn generate(&self, split: Split) -> String {
        let (stream, bytes) = match split {
            Split::Train => (0, self.train_bytes),
            Split::Valid => (1, self.valid_bytes),
            Split::Test => (2, self.test_bytes),
        };
        let seed = self.seed.wrapping_mul(3).wrapping_add(stream);
        // A generator with a published algorithm: `StdRng` may change between releases.
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut text = String::with_capacity(bytes + 8_192);
        loop {
            Story::new(&mut rng).tell(&mut rng, &mut text);
            if text.len() >= bytes {
                return text;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::cache::sha256_hex;

    fn small() -> StoriesConfig {
        StoriesConfig {
            train_bytes: 100_000,
            ..Default::default()
        }
    }

    #[test]
    fn the_text_of_a_seed_is_pinned() {
        let text = small().generate(Split::Train);
        assert_eq!(
            sha256_hex(text.as_bytes()),
            "b2ff4ae69a958c8b3efb018217432f435d6baf26c030eec295aa6feeda208e65"
        );
    }

    #[test]
    fn splits_and_seeds_share_no_story() {
        let other = StoriesConfig { seed: 1, ..small() };
        let texts = [
            small().generate(Split::Train),
            small().generate(Split::Valid),
            small().generate(Split::Test),
            other.generate(Split::Train),
        ];
        let mut openings = HashSet::new();
        let mut stories = 0;
        for text in &texts {
            assert!(text.is_ascii() && text.len() >= 100_000);
            for story in text.split_inclusive("\n\n\n") {
                stories += 1;
                openings.insert(story);
            }
        }
        assert!(stories > 100, "{stories}");
        assert_eq!(openings.len(), stories);
    }
}
