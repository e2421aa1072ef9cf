//! Operations that a model's definition needs: a multiplication and an addition are two, an exponential is one.
//!
//! Recurrences count as recurrences, whatever form a kernel computes them in; attention counts the keys up to each
//! query's own; norms, activations and residual sums count nothing.

use mamba_core::{LanguageModelConfig, MixerKind};

/// Operations of a state of Mamba-1: decay, its exponential, its product with the state, input, sum, output.
pub(super) const PER_SCAN_STATE: f64 = 7.0;
/// Operations of a state of Mamba-2, whose decay is that of its head.
pub(super) const PER_SSD_STATE: f64 = 5.0;

/// Operations of a forward pass over `batch` sequences of `length`, with the logits of `scored` positions each.
pub fn forward(config: &LanguageModelConfig, batch: usize, length: usize, scored: usize) -> f64 {
    let positions = batch as f64 * length as f64;
    let layers: f64 = config
        .pattern
        .iter()
        .map(|kind| mixer(config, *kind, length))
        .sum();
    let head = 2.0 * (config.d_model * config.padded_vocab_size()) as f64;
    config.n_layer as f64 * layers * positions + head * batch as f64 * scored as f64
}

/// Operations of a training step: backward needs each product twice.
pub fn training(config: &LanguageModelConfig, batch: usize, length: usize) -> f64 {
    3.0 * forward(config, batch, length, length)
}

/// Operations of a mixer for a position of a sequence of `length`, on average.
fn mixer(config: &LanguageModelConfig, kind: MixerKind, length: usize) -> f64 {
    let d_model = config.d_model;
    let float = |count: usize| count as f64;
    match kind {
        MixerKind::Mamba1 => {
            let mut mamba = config.mamba1.clone();
            mamba.d_model = d_model;
            let (d_inner, rank) = (mamba.d_inner(), mamba.resolved_dt_rank());
            let weights = 3 * d_model * d_inner + d_inner * (2 * rank + 2 * mamba.d_state);
            2.0 * float(weights + d_inner * mamba.d_conv)
                + PER_SCAN_STATE * float(d_inner * mamba.d_state)
        }
        MixerKind::Mamba2 => {
            let mut mamba = config.mamba2.clone();
            mamba.d_model = d_model;
            let (d_ssm, conv) = (mamba.resolved_d_ssm(), mamba.conv_dim());
            let weights = d_model * (d_ssm + conv + mamba.nheads()) + d_ssm * d_model;
            2.0 * float(weights + conv * mamba.d_conv)
                + PER_SSD_STATE * float(d_ssm * mamba.d_state)
        }
        MixerKind::Attention => {
            let mut attention = config.attention.clone();
            attention.d_model = d_model;
            let width = attention.num_heads * attention.head_dim();
            let shared = attention.num_kv_heads() * attention.head_dim();
            let weights = d_model * (width + 2 * shared) + width * d_model;
            2.0 * float(weights) + 4.0 * float(width) * (float(length) + 1.0) / 2.0
        }
        MixerKind::Mlp => {
            let mut mlp = config.mlp.clone();
            mlp.d_model = d_model;
            4.0 * float(d_model * mlp.d_hidden())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::{Family, Model, Size};

    #[test]
    fn a_token_costs_about_twice_the_parameters() {
        for (family, parameters) in [
            (Family::Mamba1, 129e6),
            (Family::Mamba2, 129e6),
            (Family::Gpt2, 124e6),
        ] {
            let config = Model::new(family, Size::Official, 1024).config;
            let flops = forward(&config, 2, 64, 64) / 128.0;
            assert!(
                (1.9..2.4).contains(&(flops / parameters)),
                "{family:?}: {flops}"
            );
            assert_eq!(training(&config, 1, 64), 3.0 * forward(&config, 1, 64, 64));
        }
    }

    #[test]
    fn only_attention_grows_faster_than_length() {
        let growth = |family| {
            let config = Model::new(family, Size::Tutorial, 1 << 16).config;
            forward(&config, 1, 1 << 16, 0) / forward(&config, 1, 1 << 15, 0)
        };
        assert_eq!(growth(Family::Mamba1), 2.0);
        assert_eq!(growth(Family::Mamba2), 2.0);
        assert!(growth(Family::Gpt2) > 3.8);
    }
}
