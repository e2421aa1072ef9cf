use mamba_core::LanguageModelConfig;

use super::Numbers;

/// The language model of the tutorial: one Mamba-1 layer between an embedding and a head of its
/// own, against a small transformer.
#[derive(Clone, Copy, Debug)]
pub struct Tutorial {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Sequences at once.
    pub batch: usize,
    /// Positions of a sequence.
    pub seq_len: usize,
}

impl Tutorial {
    /// Layers of the transformer.
    pub const TRANSFORMER_LAYERS: usize = 2;
    /// Attention heads of the transformer.
    pub const TRANSFORMER_HEADS: usize = 4;
    /// Step size of Adam.
    pub const LEARNING_RATE: f64 = 3e-4;

    /// The size that is timed.
    pub fn at_length(seq_len: usize) -> Self {
        Self {
            vocab_size: 50_257,
            d_model: 128,
            batch: 32,
            seq_len,
        }
    }

    /// The size that proofs run at: sequences that end within a chunk of the scan.
    pub fn small() -> Self {
        Self {
            vocab_size: 97,
            d_model: 48,
            batch: 3,
            seq_len: 70,
        }
    }

    /// The Mamba. Its vocabulary is not padded, so that peers have the same softmax.
    pub fn config(&self) -> LanguageModelConfig {
        LanguageModelConfig::new()
            .with_vocab_size(self.vocab_size)
            .with_pad_vocab_size_multiple(1)
            .with_d_model(self.d_model)
            .with_tie_embeddings(false)
    }

    /// Tokens of a batch.
    pub fn tokens(&self) -> usize {
        self.batch * self.seq_len
    }

    /// Sequences with the token that follows, `[batch, seq_len + 1]`.
    pub fn sequences(&self) -> Vec<i64> {
        let mut numbers = Numbers::new(7);
        let len = self.batch * (self.seq_len + 1);
        (0..len)
            .map(|_| numbers.below(self.vocab_size) as i64)
            .collect()
    }
}
