use burn::tensor::{Device, Int, Tensor, TensorData};
use mamba_core::transformer::{Activation, AttentionConfig, MlpConfig};
use mamba_core::{LanguageModelConfig, MixerKind, NormKind};

use super::Numbers;

/// How large the models of the catalogue are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Of the proofs: nothing comes out even.
    Tiny,
    /// Of the tutorial: width 128, one Mamba layer against two of the transformer.
    Tutorial,
    /// Of `--quick`: width 256, four layers of Mamba against two of a transformer.
    Small,
    /// Of the official checkpoints of about 130 million parameters.
    Official,
}

/// The kinds of models that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Layers of Mamba-1.
    Mamba1,
    /// Layers of Mamba-2.
    Mamba2,
    /// Attention with rotary positions on a quarter of the channels, as in Pythia, with its blocks in sequence.
    Pythia,
    /// Attention and MLP with learned positions, as in GPT-2; the tutorial's transformer.
    Gpt2,
}

impl Family {
    /// As people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Mamba1 => "Mamba-1",
            Self::Mamba2 => "Mamba-2",
            Self::Pythia => "Pythia",
            Self::Gpt2 => "GPT-2",
        }
    }
}

/// A language model of the catalogue, to be given random weights.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its name in results.
    pub name: &'static str,
    /// Its kind.
    pub family: Family,
    /// Its sizes.
    pub config: LanguageModelConfig,
}

impl Model {
    /// The catalogue of a size. `positions` is the longest sequence, for those that learn positions.
    pub fn all(size: Size, positions: usize) -> Vec<Self> {
        let families: &[Family] = match size {
            Size::Tutorial => &[Family::Mamba1, Family::Mamba2, Family::Gpt2],
            _ => &[Family::Mamba1, Family::Mamba2, Family::Pythia, Family::Gpt2],
        };
        families
            .iter()
            .map(|&family| Self::new(family, size, positions))
            .collect()
    }

    /// One of them.
    pub fn new(family: Family, size: Size, positions: usize) -> Self {
        Self {
            name: name(family, size),
            family,
            config: config(family, size, positions),
        }
    }

    /// The model of that name among all sizes.
    pub fn find(name: &str, positions: usize) -> Option<Self> {
        let sizes = [Size::Tutorial, Size::Small, Size::Official];
        let mut all = sizes
            .into_iter()
            .flat_map(|size| Self::all(size, positions));
        all.find(|model| model.name == name)
    }

    /// The same kind at the size of the proofs.
    pub fn tiny(&self) -> Self {
        Self::new(self.family, Size::Tiny, TINY_POSITIONS)
    }

    /// Whether time and memory of a token grow with those before it.
    pub fn attends(&self) -> bool {
        self.config.pattern.contains(&MixerKind::Attention)
    }

    /// Numbers that it remembers of every token: none, if its memory does not grow.
    pub fn cached_values(&self) -> usize {
        let mut attention = self.config.attention.clone();
        attention.d_model = self.config.d_model;
        let layers = self.config.pattern.iter();
        let layers = layers.filter(|kind| **kind == MixerKind::Attention).count();
        self.config.n_layer * layers * 2 * attention.num_kv_heads() * attention.head_dim()
    }

    /// Reproducible tokens, `[batch, length]`.
    pub fn tokens(&self, batch: usize, length: usize, device: &Device) -> Tensor<2, Int> {
        let tokens = TensorData::new(self.token_values(batch, length), [batch, length]);
        Tensor::from_data(tokens, device)
    }

    /// The same on the host, row by row.
    pub fn token_values(&self, batch: usize, length: usize) -> Vec<i64> {
        let mut numbers = Numbers::new(7);
        (0..batch * length)
            .map(|_| numbers.below(self.config.vocab_size) as i64)
            .collect()
    }
}

/// Room for the sequences of the proofs.
const TINY_POSITIONS: usize = 96;

fn name(family: Family, size: Size) -> &'static str {
    match (family, size) {
        (Family::Mamba1, Size::Tutorial) => "mamba1",
        (Family::Mamba2, Size::Tutorial) => "mamba2",
        (Family::Pythia, Size::Tutorial) => "pythia",
        (Family::Gpt2, Size::Tutorial) => "transformer",
        (Family::Mamba1, Size::Official) => "mamba1-130m",
        (Family::Mamba2, Size::Official) => "mamba2-130m",
        (Family::Pythia, Size::Official) => "pythia-160m",
        (Family::Gpt2, Size::Official) => "gpt2-124m",
        (Family::Mamba1, Size::Small | Size::Tiny) => "mamba1-small",
        (Family::Mamba2, Size::Small | Size::Tiny) => "mamba2-small",
        (Family::Pythia, Size::Small | Size::Tiny) => "pythia-small",
        (Family::Gpt2, Size::Small | Size::Tiny) => "gpt2-small",
    }
}

fn config(family: Family, size: Size, positions: usize) -> LanguageModelConfig {
    // Vocabulary, width, Mamba's layers, the transformer's.
    let (vocab_size, d_model, recurrent, attentive) = match size {
        Size::Tiny => (97, 48, 2, 2),
        Size::Tutorial => (50_257, 128, 1, 2),
        Size::Small => (8_192, 256, 4, 2),
        Size::Official => (50_280, 768, 24, 12),
    };
    let heads = match size {
        Size::Official => 12,
        _ => 4,
    };
    let config = LanguageModelConfig::new()
        .with_vocab_size(vocab_size)
        .with_pad_vocab_size_multiple(1)
        .with_d_model(d_model);
    let transformer = || {
        config
            .clone()
            .with_n_layer(attentive)
            .with_pattern(vec![MixerKind::Attention, MixerKind::Mlp])
            .with_norm(NormKind::LayerNorm)
            .with_attention(
                AttentionConfig::new(0, heads)
                    .with_qkv_bias(true)
                    .with_out_bias(true),
            )
            .with_mlp(MlpConfig::new(0).with_bias(true))
    };
    match family {
        Family::Mamba1 => config.with_n_layer(recurrent),
        Family::Mamba2 => {
            let mut mamba2 = config.mamba2.clone();
            if size == Size::Tiny {
                mamba2.headdim = 24;
            }
            config
                .with_n_layer(recurrent)
                .with_pattern(vec![MixerKind::Mamba2])
                .with_mamba2(mamba2)
        }
        Family::Pythia => {
            let mut config = transformer();
            config.attention.rotary_dim = (d_model / heads / 4).next_multiple_of(2);
            config.mlp.activation = Activation::GeluExact;
            config.tie_embeddings = false;
            config
        }
        Family::Gpt2 => transformer().with_max_positions(positions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_attention_remembers_every_token() {
        let cached = |family| Model::new(family, Size::Official, 96).cached_values();
        assert_eq!((cached(Family::Mamba1), cached(Family::Mamba2)), (0, 0));
        // Keys and values of width 768 in twelve layers.
        assert_eq!(cached(Family::Gpt2), 2 * 768 * 12);
    }

    #[test]
    fn names_are_unique_and_found_and_configurations_are_valid() {
        let mut names = Vec::new();
        for size in [Size::Tutorial, Size::Small, Size::Official] {
            for model in Model::all(size, 128) {
                model.config.validate().unwrap();
                model.tiny().config.validate().unwrap();
                assert_eq!(
                    Model::find(model.name, 128).unwrap().config.d_model,
                    model.config.d_model
                );
                names.push(model.name);
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
