//! Configurations of Mamba-1, FalconMamba and Mamba-2.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Described, Family, File};
use crate::block::MixerKind;
use crate::checkpoint::CheckpointError;
use crate::language_model::LanguageModelConfig;
use crate::mamba1::Mamba1Config;
use crate::mamba2::Mamba2Config;

/// A rank, or "auto".
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Rank {
    Given(usize),
    Named(String),
}

impl Rank {
    /// The rank, 0 for the one that follows from the width.
    pub(super) fn resolve(&self, file: &File) -> Result<usize, CheckpointError> {
        match self {
            Self::Given(rank) => Ok(*rank),
            Self::Named(name) if name == "auto" => Ok(0),
            Self::Named(name) => Err(file.wrong(format!(
                "a rank of the time step is a number or \"auto\", not \"{name}\""
            ))),
        }
    }
}

impl Default for Rank {
    fn default() -> Self {
        Self::Named("auto".into())
    }
}

/// `MambaConfig` and `FalconMambaConfig` of `transformers`, with their defaults.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Mamba {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    state_size: usize,
    conv_kernel: usize,
    expand: usize,
    /// Wins over `expand`, which is 16 in FalconMamba-7B and means nothing.
    intermediate_size: Option<usize>,
    time_step_rank: Rank,
    use_bias: bool,
    use_conv_bias: bool,
    hidden_act: String,
    layer_norm_epsilon: f64,
    /// Of FalconMamba.
    mixer_rms_eps: f64,
    tie_word_embeddings: bool,
}

impl Default for Mamba {
    fn default() -> Self {
        Self {
            vocab_size: 50280,
            hidden_size: 768,
            num_hidden_layers: 32,
            state_size: 16,
            conv_kernel: 4,
            expand: 2,
            intermediate_size: None,
            time_step_rank: Rank::default(),
            use_bias: false,
            use_conv_bias: true,
            hidden_act: "silu".into(),
            layer_norm_epsilon: 1e-5,
            mixer_rms_eps: 1e-6,
            tie_word_embeddings: true,
        }
    }
}

impl Mamba {
    pub(super) fn describe_falcon(self, file: &File) -> Result<Described, CheckpointError> {
        let epsilon = self.mixer_rms_eps;
        let mut described = self.describe(file)?;
        described.config.mamba1.dt_bc_rms_epsilon = Some(epsilon);
        Ok(described)
    }

    pub(super) fn describe(self, file: &File) -> Result<Described, CheckpointError> {
        file.expect("hidden_act", self.hidden_act == "silu")?;
        let expand = match self.intermediate_size {
            Some(width) if width.is_multiple_of(self.hidden_size.max(1)) => {
                width / self.hidden_size.max(1)
            }
            Some(width) => {
                return Err(file.unsupported(format!(
                    "intermediate_size = {width}, which is no multiple of hidden_size = {},",
                    self.hidden_size
                )));
            }
            None => self.expand,
        };
        let mixer = Mamba1Config::new(0)
            .with_d_state(self.state_size)
            .with_d_conv(self.conv_kernel)
            .with_expand(expand)
            .with_dt_rank(self.time_step_rank.resolve(file)?)
            .with_bias(self.use_bias)
            .with_conv_bias(self.use_conv_bias);
        let config = LanguageModelConfig::new()
            .with_vocab_size(self.vocab_size)
            .with_pad_vocab_size_multiple(1)
            .with_d_model(self.hidden_size)
            .with_n_layer(self.num_hidden_layers)
            .with_norm_epsilon(self.layer_norm_epsilon)
            .with_tie_embeddings(self.tie_word_embeddings)
            .with_mamba1(mixer);
        let family = Family::Mamba;
        Ok(Described { config, family })
    }
}

/// `Mamba2Config` of `transformers`, with its defaults.
///
/// Some files, Codestral's among them, have `rms_norm` and `norm_before_gate`, too. `transformers` takes no notice of
/// either: outputs are gated, then normalised.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Mamba2 {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_heads: usize,
    head_dim: usize,
    state_size: usize,
    n_groups: usize,
    conv_kernel: usize,
    expand: usize,
    chunk_size: usize,
    use_bias: bool,
    use_conv_bias: bool,
    hidden_act: String,
    layer_norm_epsilon: f64,
    /// JSON has no infinity: what cannot be read as a number is one, and so is what we write for it.
    time_step_limit: [Value; 2],
    tie_word_embeddings: bool,
}

impl Default for Mamba2 {
    fn default() -> Self {
        Self {
            vocab_size: 32768,
            hidden_size: 4096,
            num_hidden_layers: 64,
            num_heads: 128,
            head_dim: 64,
            state_size: 128,
            n_groups: 8,
            conv_kernel: 4,
            expand: 2,
            chunk_size: 256,
            use_bias: false,
            use_conv_bias: true,
            hidden_act: "silu".into(),
            layer_norm_epsilon: 1e-5,
            time_step_limit: [json!(0.0), Value::Null],
            tie_word_embeddings: false,
        }
    }
}

impl Mamba2 {
    pub(super) fn describe(self, file: &File) -> Result<Described, CheckpointError> {
        file.expect("hidden_act", self.hidden_act == "silu")?;
        // The gated norm of a mixer has one of its own, which is not in the file.
        file.expect("layer_norm_epsilon", self.layer_norm_epsilon == 1e-5)?;
        // What is too large for a product is refused as a size later.
        let channels = self.num_heads.saturating_mul(self.head_dim);
        let d_inner = self.expand.saturating_mul(self.hidden_size);
        if channels != d_inner {
            return Err(file.wrong(format!(
                "num_heads * head_dim = {channels} is not expand * hidden_size = {d_inner}"
            )));
        }
        let [least, most] = &self.time_step_limit;
        let mixer = Mamba2Config::new(0)
            .with_d_state(self.state_size)
            .with_d_conv(self.conv_kernel)
            .with_expand(self.expand)
            .with_headdim(self.head_dim)
            .with_ngroups(self.n_groups)
            .with_dt_limit([
                least.as_f64().unwrap_or(0.0),
                most.as_f64()
                    .filter(|it| *it < f64::from(f32::MAX))
                    .unwrap_or(f64::INFINITY),
            ])
            .with_bias(self.use_bias)
            .with_conv_bias(self.use_conv_bias)
            .with_chunk_size(self.chunk_size);
        let config = LanguageModelConfig::new()
            .with_vocab_size(self.vocab_size)
            .with_pad_vocab_size_multiple(1)
            .with_d_model(self.hidden_size)
            .with_n_layer(self.num_hidden_layers)
            .with_pattern(vec![MixerKind::Mamba2])
            .with_norm_epsilon(self.layer_norm_epsilon)
            .with_tie_embeddings(self.tie_word_embeddings)
            .with_mamba2(mixer);
        let family = Family::Mamba;
        Ok(Described { config, family })
    }
}
