//! Configurations of Mamba-1 and Mamba-2.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Described, Family, File};
use crate::block::MixerKind;
use crate::checkpoint::CheckpointError;
use crate::language_model::LanguageModelConfig;
use crate::mamba1::Mamba1Config;
use crate::mamba2::Mamba2Config;

/// A rank, or "auto".
#[derive(Deserialize)]
#[serde(untagged)]
enum Rank {
    Given(usize),
    Named(String),
}

impl Rank {
    /// The rank, 0 for the one that follows from the width.
    fn resolve(&self, file: &File) -> Result<usize, CheckpointError> {
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

/// `MambaConfig` of `transformers`, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Mamba {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    state_size: usize,
    conv_kernel: usize,
    expand: usize,
    time_step_rank: Rank,
    use_bias: bool,
    use_conv_bias: bool,
    hidden_act: String,
    layer_norm_epsilon: f64,
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
            time_step_rank: Rank::default(),
            use_bias: false,
            use_conv_bias: true,
            hidden_act: "silu".into(),
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
        }
    }
}

impl Mamba {
    pub(super) fn describe(self, file: &File) -> Result<Described, CheckpointError> {
        file.expect("hidden_act", self.hidden_act == "silu")?;
        let mixer = Mamba1Config::new(0)
            .with_d_state(self.state_size)
            .with_d_conv(self.conv_kernel)
            .with_expand(self.expand)
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
    rms_norm: bool,
    norm_before_gate: bool,
    hidden_act: String,
    layer_norm_epsilon: f64,
    /// JSON has no infinity: what cannot be read as a number is one.
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
            rms_norm: true,
            norm_before_gate: false,
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
        file.expect("norm_before_gate", !self.norm_before_gate)?;
        if self.num_heads * self.head_dim != self.expand * self.hidden_size {
            return Err(file.wrong(format!(
                "num_heads * head_dim = {} is not expand * hidden_size = {}",
                self.num_heads * self.head_dim,
                self.expand * self.hidden_size
            )));
        }
        let [least, most] = &self.time_step_limit;
        let mixer = Mamba2Config::new(0)
            .with_d_state(self.state_size)
            .with_d_conv(self.conv_kernel)
            .with_expand(self.expand)
            .with_headdim(self.head_dim)
            .with_ngroups(self.n_groups)
            .with_rmsnorm(self.rms_norm)
            .with_dt_limit([
                least.as_f64().unwrap_or(0.0),
                most.as_f64().unwrap_or(f64::INFINITY),
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

/// `MambaConfig` of the authors' code.
#[derive(Deserialize)]
pub(super) struct Original {
    d_model: usize,
    n_layer: usize,
    vocab_size: usize,
    #[serde(default)]
    ssm_cfg: Map<String, Value>,
    #[serde(default)]
    attn_layer_idx: Vec<usize>,
    #[serde(default)]
    d_intermediate: usize,
    #[serde(default = "yes")]
    rms_norm: bool,
    #[serde(default = "eight")]
    pad_vocab_size_multiple: usize,
    #[serde(default = "yes")]
    tie_embeddings: bool,
}

fn yes() -> bool {
    true
}

fn eight() -> usize {
    8
}

/// What `ssm_cfg` may set of a Mamba-1.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OriginalMamba1 {
    d_state: usize,
    d_conv: usize,
    expand: usize,
    dt_rank: Rank,
    conv_bias: bool,
    bias: bool,
}

impl Default for OriginalMamba1 {
    fn default() -> Self {
        Self {
            d_state: 16,
            d_conv: 4,
            expand: 2,
            dt_rank: Rank::default(),
            conv_bias: true,
            bias: false,
        }
    }
}

/// What `ssm_cfg` may set of a Mamba-2.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OriginalMamba2 {
    d_state: usize,
    d_conv: usize,
    expand: usize,
    headdim: usize,
    d_ssm: Option<usize>,
    ngroups: usize,
    #[serde(rename = "D_has_hdim")]
    d_has_hdim: bool,
    rmsnorm: bool,
    norm_before_gate: bool,
    conv_bias: bool,
    bias: bool,
    chunk_size: usize,
}

impl Default for OriginalMamba2 {
    fn default() -> Self {
        Self {
            d_state: 128,
            d_conv: 4,
            expand: 2,
            headdim: 64,
            d_ssm: None,
            ngroups: 1,
            d_has_hdim: false,
            rmsnorm: true,
            norm_before_gate: false,
            conv_bias: true,
            bias: false,
            chunk_size: 256,
        }
    }
}

impl Original {
    pub(super) fn describe(mut self, file: &File) -> Result<Described, CheckpointError> {
        file.expect("attn_layer_idx", self.attn_layer_idx.is_empty())?;
        file.expect("d_intermediate", self.d_intermediate == 0)?;
        file.expect("rms_norm", self.rms_norm)?;
        let config = LanguageModelConfig::new()
            .with_vocab_size(self.vocab_size)
            .with_pad_vocab_size_multiple(self.pad_vocab_size_multiple)
            .with_d_model(self.d_model)
            .with_n_layer(self.n_layer)
            .with_tie_embeddings(self.tie_embeddings);
        let layer = self.ssm_cfg.remove("layer");
        let config = match layer.as_ref().and_then(Value::as_str) {
            Some("Mamba1") | None => {
                let mixer: OriginalMamba1 = file.parse(self.ssm_cfg)?;
                config.with_mamba1(
                    Mamba1Config::new(0)
                        .with_d_state(mixer.d_state)
                        .with_d_conv(mixer.d_conv)
                        .with_expand(mixer.expand)
                        .with_dt_rank(mixer.dt_rank.resolve(file)?)
                        .with_conv_bias(mixer.conv_bias)
                        .with_bias(mixer.bias),
                )
            }
            Some("Mamba2") => {
                let mixer: OriginalMamba2 = file.parse(self.ssm_cfg)?;
                config.with_pattern(vec![MixerKind::Mamba2]).with_mamba2(
                    Mamba2Config::new(0)
                        .with_d_state(mixer.d_state)
                        .with_d_conv(mixer.d_conv)
                        .with_expand(mixer.expand)
                        .with_headdim(mixer.headdim)
                        .with_d_ssm(mixer.d_ssm)
                        .with_ngroups(mixer.ngroups)
                        .with_d_has_hdim(mixer.d_has_hdim)
                        .with_rmsnorm(mixer.rmsnorm)
                        .with_norm_before_gate(mixer.norm_before_gate)
                        .with_conv_bias(mixer.conv_bias)
                        .with_bias(mixer.bias)
                        .with_chunk_size(mixer.chunk_size),
                )
            }
            Some(other) => return Err(file.unsupported(format!("ssm_cfg.layer = {other}"))),
        };
        let family = Family::Mamba;
        Ok(Described { config, family })
    }
}
