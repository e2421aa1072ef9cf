//! What a language model is made of.

use burn::config::Config;
use burn::module::Initializer;
use burn::tensor::Device;

use super::LanguageModel;
use crate::block::{Block, Mixer, MixerKind};
use crate::mamba1::{Mamba1, Mamba1Config};
use crate::mamba2::{Mamba2, Mamba2Config};
use crate::norm::{NormConfig, NormKind};
use crate::transformer::{Attention, AttentionConfig, Mlp, MlpConfig};

/// Configuration to create a [`LanguageModel`] with [`LanguageModelConfig::init`].
///
/// The model has `n_layer` repetitions of `pattern`: `["mamba1"]` is a Mamba, `["attention",
/// "mlp"]` a transformer, and any other list a hybrid.
#[derive(Config, Debug)]
pub struct LanguageModelConfig {
    /// Entries of the vocabulary. Default: 50257
    #[config(default = 50257)]
    pub vocab_size: usize,
    /// The embedding has a multiple of this many rows. Default: 8
    #[config(default = 8)]
    pub pad_vocab_size_multiple: usize,
    /// Width of the residual stream. Default: 128
    #[config(default = 128)]
    pub d_model: usize,
    /// Repetitions of `pattern`. Default: 1
    #[config(default = 1)]
    pub n_layer: usize,
    /// Mixers of one repetition, first one first. Default: `["mamba1"]`
    #[config(default = "vec![MixerKind::Mamba1]")]
    pub pattern: Vec<MixerKind>,
    /// Whether the mixers of one repetition all read what was before the first of them, as in GPT-NeoX, instead of each
    /// what is before it. Default: false
    #[config(default = false)]
    pub parallel_residual: bool,
    /// Norm of every layer and of the end. Default: rms_norm
    #[config(default = "NormKind::RmsNorm")]
    pub norm: NormKind,
    /// Added to a mean square or variance before its root. Default: 1e-5
    #[config(default = 1e-5)]
    pub norm_epsilon: f64,
    /// Learned positions, which bound the sequence length; 0 for none. Default: 0
    #[config(default = 0)]
    pub max_positions: usize,
    /// Whether the head is the embedding. Default: true
    #[config(default = true)]
    pub tie_embeddings: bool,
    /// Of the `mamba1` mixers.
    #[config(default = "Mamba1Config::new(0)")]
    pub mamba1: Mamba1Config,
    /// Of the `mamba2` mixers.
    #[config(default = "Mamba2Config::new(0)")]
    pub mamba2: Mamba2Config,
    /// Of the `attention` mixers.
    #[config(default = "AttentionConfig::new(0, 4)")]
    pub attention: AttentionConfig,
    /// Of the `mlp` mixers.
    #[config(default = "MlpConfig::new(0)")]
    pub mlp: MlpConfig,
}

impl Default for LanguageModelConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl LanguageModelConfig {
    /// The official Mamba-130M: 24 layers of width 768, vocabulary of GPT-NeoX.
    pub fn mamba_130m() -> Self {
        Self::new()
            .with_vocab_size(50_280)
            .with_d_model(768)
            .with_n_layer(24)
    }

    /// The official Mamba-2-130M: 24 layers of width 768, vocabulary of GPT-NeoX.
    pub fn mamba2_130m() -> Self {
        Self::mamba_130m()
            .with_pad_vocab_size_multiple(16)
            .with_pattern(vec![MixerKind::Mamba2])
    }

    /// Rows of the embedding: the vocabulary rounded up to a multiple of
    /// `pad_vocab_size_multiple`.
    pub fn padded_vocab_size(&self) -> usize {
        self.vocab_size
            .next_multiple_of(self.pad_vocab_size_multiple.max(1))
    }

    /// Initialises a model: embeddings `N(0, 0.02)`, every branch that writes to the residual
    /// stream scaled by one over the root of their number.
    ///
    /// # Panics
    ///
    /// With the message of [`LanguageModelConfig::validate`], if that returns one.
    pub fn init(&self, device: &Device) -> LanguageModel {
        let branches = self.n_layer * self.pattern.len();
        self.build(device, Some((branches as f64).sqrt().recip()))
    }

    /// A model whose weights are about to be replaced by those of a record. None of its large ones takes time or memory
    /// before it is used; one that was not replaced has not the scale of [`LanguageModelConfig::init`].
    ///
    /// # Panics
    ///
    /// As [`LanguageModelConfig::init`].
    pub fn init_to_load(&self, device: &Device) -> LanguageModel {
        self.build(device, None)
    }

    /// Branches that write to the residual stream are scaled by `factor`.
    fn build(&self, device: &Device, factor: Option<f64>) -> LanguageModel {
        if let Err(problem) = self.validate() {
            panic!("LanguageModelConfig: {problem}");
        }
        let rows = self.padded_vocab_size();
        let table = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        let norm = NormConfig::new(self.d_model)
            .with_kind(self.norm)
            .with_epsilon(self.norm_epsilon);
        let layers = self
            .pattern
            .iter()
            .cycle()
            .take(self.n_layer * self.pattern.len())
            .map(|kind| Block {
                norm: norm.init(device),
                mixer: self.init_mixer(*kind, factor, device),
            });
        LanguageModel {
            layers: layers.collect(),
            norm: norm.init(device),
            embedding: table.init([rows, self.d_model], device),
            positions: (self.max_positions > 0)
                .then(|| table.init([self.max_positions, self.d_model], device)),
            head: (!self.tie_embeddings).then(|| table.init([rows, self.d_model], device)),
            vocab_size: self.vocab_size,
            stage: match self.parallel_residual {
                true => self.pattern.len(),
                false => 1,
            },
        }
    }

    fn init_mixer(&self, kind: MixerKind, factor: Option<f64>, device: &Device) -> Mixer {
        match kind {
            MixerKind::Mamba1 => {
                let mut config = self.mamba1.clone();
                config.d_model = self.d_model;
                let mixer = config.init(device);
                Mixer::Mamba1(scaled(mixer, factor, Mamba1::rescale_residual))
            }
            MixerKind::Mamba2 => {
                let mut config = self.mamba2.clone();
                config.d_model = self.d_model;
                let mixer = config.init(device);
                Mixer::Mamba2(scaled(mixer, factor, Mamba2::rescale_residual))
            }
            MixerKind::Attention => {
                let mut config = self.attention.clone();
                config.d_model = self.d_model;
                let mixer = config.init(device);
                Mixer::Attention(scaled(mixer, factor, Attention::rescale_residual))
            }
            MixerKind::Mlp => {
                let mut config = self.mlp.clone();
                config.d_model = self.d_model;
                let mixer = config.init(device);
                Mixer::Mlp(scaled(mixer, factor, Mlp::rescale_residual))
            }
        }
    }
}

fn scaled<M>(mixer: M, factor: Option<f64>, rescale: fn(M, f64) -> M) -> M {
    match factor {
        Some(factor) => rescale(mixer, factor),
        None => mixer,
    }
}
