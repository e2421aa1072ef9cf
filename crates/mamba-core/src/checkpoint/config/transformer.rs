//! Configurations of transformers.

use serde::Deserialize;
use serde_json::Value;

use super::{Described, Family, File};
use crate::block::MixerKind;
use crate::checkpoint::CheckpointError;
use crate::language_model::LanguageModelConfig;
use crate::norm::NormKind;
use crate::transformer::{Activation, AttentionConfig, MlpConfig};

/// `GPT2Config` of `transformers`, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Gpt2 {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f64,
    tie_word_embeddings: bool,
    scale_attn_by_inverse_layer_idx: bool,
}

impl Default for Gpt2 {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: "gelu_new".into(),
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
            scale_attn_by_inverse_layer_idx: false,
        }
    }
}

impl Gpt2 {
    pub(super) fn describe(self, file: &File) -> Result<Described, CheckpointError> {
        let plain = !self.scale_attn_by_inverse_layer_idx;
        file.expect("scale_attn_by_inverse_layer_idx", plain)?;
        let activation = match self.activation_function.as_str() {
            "gelu_new" | "gelu_pytorch_tanh" => Activation::Gelu,
            "gelu" => Activation::GeluExact,
            _ => return Err(file.unsupported("the value of activation_function".into())),
        };
        let config = LanguageModelConfig::new()
            .with_vocab_size(self.vocab_size)
            .with_pad_vocab_size_multiple(1)
            .with_d_model(self.n_embd)
            .with_n_layer(self.n_layer)
            .with_pattern(vec![MixerKind::Attention, MixerKind::Mlp])
            .with_norm(NormKind::LayerNorm)
            .with_norm_epsilon(self.layer_norm_epsilon)
            .with_max_positions(self.n_positions)
            .with_tie_embeddings(self.tie_word_embeddings)
            .with_attention(
                AttentionConfig::new(0, self.n_head)
                    .with_qkv_bias(true)
                    .with_out_bias(true),
            )
            .with_mlp(
                MlpConfig::new(0)
                    .with_d_hidden(Some(self.n_inner.unwrap_or(4 * self.n_embd)))
                    .with_activation(activation)
                    .with_bias(true),
            );
        let family = Family::Gpt2;
        Ok(Described { config, family })
    }
}

/// `LlamaConfig` of `transformers`.
#[derive(Deserialize)]
pub(super) struct Llama {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "one_millionth")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

fn one_millionth() -> f64 {
    1e-6
}

impl Llama {
    pub(super) fn describe(self, file: &File) -> Result<Described, CheckpointError> {
        file.expect("attention_bias", !self.attention_bias)?;
        file.expect("mlp_bias", !self.mlp_bias)?;
        file.expect("rope_scaling", self.rope_scaling.is_none())?;
        let rope = self.rope_parameters.as_ref();
        let kind = rope.and_then(|it| it.rope_type.as_deref());
        file.expect(
            "rope_parameters.rope_type",
            kind.is_none_or(|it| it == "default"),
        )?;
        let base = rope.and_then(|it| it.rope_theta).or(self.rope_theta);
        let heads = self.num_attention_heads;
        if heads == 0 {
            return Err(file.wrong("num_attention_heads must be at least 1".into()));
        }
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads);
        let config = LanguageModelConfig::new()
            .with_vocab_size(self.vocab_size)
            .with_pad_vocab_size_multiple(1)
            .with_d_model(self.hidden_size)
            .with_n_layer(self.num_hidden_layers)
            .with_pattern(vec![MixerKind::Attention, MixerKind::Mlp])
            .with_norm_epsilon(self.rms_norm_eps)
            .with_tie_embeddings(self.tie_word_embeddings)
            .with_attention(
                AttentionConfig::new(0, heads)
                    .with_num_kv_heads(self.num_key_value_heads)
                    .with_head_dim(Some(head_dim))
                    .with_rotary_dim(head_dim)
                    .with_rotary_base(base.unwrap_or(10_000.0)),
            )
            .with_mlp(
                MlpConfig::new(0)
                    .with_d_hidden(Some(self.intermediate_size))
                    .with_activation(Activation::SwiGlu),
            );
        let family = Family::Llama;
        Ok(Described { config, family })
    }
}
