//! Configurations of Mamba-1 and Mamba-2 as their authors publish them.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::mamba::Rank;
use super::{Described, Family, File};
use crate::block::MixerKind;
use crate::checkpoint::CheckpointError;
use crate::language_model::LanguageModelConfig;
use crate::mamba1::Mamba1Config;
use crate::mamba2::Mamba2Config;

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
