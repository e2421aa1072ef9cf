//! The shapes of a model's parameters, before there is a model.
//!
//! Making one allocates: what a file says of a model is compared with the tensors that it holds before that.

use crate::block::MixerKind;
use crate::language_model::LanguageModelConfig;
use crate::mamba1::Mamba1Config;
use crate::mamba2::Mamba2Config;
use crate::transformer::{Activation, AttentionConfig, MlpConfig};

/// Of the parameter at `path` in the module, variants of enums left out; none where there is no such parameter.
pub(super) fn shape(config: &LanguageModelConfig, path: &str) -> Option<Vec<usize>> {
    let width = config.d_model;
    match path {
        "embedding" | "head" => Some(vec![config.padded_vocab_size(), width]),
        "positions" => Some(vec![config.max_positions, width]),
        "norm.gamma" | "norm.beta" => Some(vec![width]),
        _ => {
            let (layer, name) = path.strip_prefix("layers.")?.split_once('.')?;
            let layer: usize = layer.parse().ok()?;
            let (module, name) = name.split_once('.')?;
            if module == "norm" {
                return Some(vec![width]);
            }
            let (name, part) = name.split_once('.').unwrap_or((name, ""));
            match config.pattern[layer % config.pattern.len()] {
                MixerKind::Mamba1 => mamba1(&config.mamba1, width, name, part),
                MixerKind::Mamba2 => mamba2(&config.mamba2, width, name, part),
                MixerKind::Attention => attention(&config.attention, width, name, part),
                MixerKind::Mlp => mlp(&config.mlp, width, name, part),
            }
        }
    }
}

/// Of a part of a linear layer.
fn linear(part: &str, input: usize, output: usize) -> Option<Vec<usize>> {
    match part {
        "weight" => Some(vec![input, output]),
        "bias" => Some(vec![output]),
        _ => None,
    }
}

fn mamba1(config: &Mamba1Config, width: usize, name: &str, part: &str) -> Option<Vec<usize>> {
    let mut config = config.clone();
    config.d_model = width;
    let (d_inner, d_state) = (config.d_inner(), config.d_state);
    let dt_rank = config.resolved_dt_rank();
    match name {
        "in_proj" => linear(part, width, 2 * d_inner),
        "x_proj" => linear(part, d_inner, dt_rank + 2 * d_state),
        "dt_proj" => linear(part, dt_rank, d_inner),
        "out_proj" => linear(part, d_inner, width),
        "conv_weight" => Some(vec![d_inner, config.d_conv]),
        "a_log" => Some(vec![d_inner, d_state]),
        "conv_bias" | "d" => Some(vec![d_inner]),
        _ => None,
    }
}

fn mamba2(config: &Mamba2Config, width: usize, name: &str, part: &str) -> Option<Vec<usize>> {
    let mut config = config.clone();
    config.d_model = width;
    let (d_inner, d_ssm, nheads) = (config.d_inner(), config.resolved_d_ssm(), config.nheads());
    match name {
        "in_proj" => linear(part, width, config.in_width()),
        "out_proj" => linear(part, d_inner, width),
        "conv_weight" => Some(vec![config.conv_dim(), config.d_conv]),
        "conv_bias" => Some(vec![config.conv_dim()]),
        "d" if config.d_has_hdim => Some(vec![d_ssm]),
        "dt_bias" | "a_log" | "d" => Some(vec![nheads]),
        "norm_weight" => Some(vec![d_ssm]),
        _ => None,
    }
}

fn attention(config: &AttentionConfig, width: usize, name: &str, part: &str) -> Option<Vec<usize>> {
    let mut config = config.clone();
    config.d_model = width;
    let (heads, kv_heads) = (config.num_heads, config.num_kv_heads());
    match name {
        "in_proj" => linear(part, width, (heads + 2 * kv_heads) * config.head_dim()),
        "out_proj" => linear(part, heads * config.head_dim(), width),
        _ => None,
    }
}

fn mlp(config: &MlpConfig, width: usize, name: &str, part: &str) -> Option<Vec<usize>> {
    let mut config = config.clone();
    config.d_model = width;
    let hidden = config.d_hidden();
    match (name, config.activation) {
        ("fc_in", Activation::SwiGlu) => linear(part, width, 2 * hidden),
        ("fc_in", _) => linear(part, width, hidden),
        ("fc_out", _) => linear(part, hidden, width),
        _ => None,
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::store::ModuleSnapshot;
    use burn::tensor::Device;

    use super::*;
    use crate::norm::NormKind;

    /// Odd sizes that tell all axes apart, in two models that have every optional parameter and none.
    fn configs() -> [LanguageModelConfig; 2] {
        let pattern = vec![
            MixerKind::Mamba1,
            MixerKind::Mamba2,
            MixerKind::Attention,
            MixerKind::Mlp,
        ];
        let mamba2 = Mamba2Config::new(0)
            .with_d_state(7)
            .with_headdim(6)
            .with_ngroups(2);
        let bare = LanguageModelConfig::new()
            .with_vocab_size(29)
            .with_d_model(12)
            .with_n_layer(2)
            .with_pattern(pattern)
            .with_mamba1(Mamba1Config::new(0).with_d_state(5).with_conv_bias(false))
            .with_mamba2(mamba2.clone().with_rmsnorm(false).with_conv_bias(false))
            .with_mlp(MlpConfig::new(0).with_activation(Activation::SwiGlu));
        let whole = bare
            .clone()
            .with_norm(NormKind::LayerNorm)
            .with_max_positions(17)
            .with_tie_embeddings(false)
            .with_mamba1(
                Mamba1Config::new(0)
                    .with_bias(true)
                    .with_dt_rank(3)
                    .with_d_conv(2),
            )
            .with_mamba2(
                mamba2
                    .with_bias(true)
                    .with_d_has_hdim(true)
                    .with_d_ssm(Some(12)),
            )
            .with_attention(
                AttentionConfig::new(0, 4)
                    .with_num_kv_heads(Some(2))
                    .with_head_dim(Some(5))
                    .with_qkv_bias(true)
                    .with_out_bias(true),
            )
            .with_mlp(MlpConfig::new(0).with_d_hidden(Some(19)).with_bias(true));
        [bare, whole]
    }

    #[test]
    fn shapes_are_those_of_the_model() {
        for config in configs() {
            let parameters = config.init(&Device::flex()).collect(None, None, true);
            assert!(parameters.len() > 30, "{}", parameters.len());
            for parameter in parameters {
                let name = &parameter.name;
                assert_eq!(
                    shape(&config, name),
                    Some(parameter.shape.to_vec()),
                    "{name}"
                );
            }
            for name in ["heads", "layers.0.mixer.in_proj.scale", "layers.x.norm"] {
                assert_eq!(shape(&config, name), None, "{name}");
            }
        }
    }
}
