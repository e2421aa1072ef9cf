//! Configurations of transformers.

use serde::Deserialize;
use serde_json::Value;

use super::{Described, Family, File};
use crate::block::MixerKind;
use crate::checkpoint::CheckpointError;
use crate::language_model::LanguageModelConfig;
use crate::norm::NormKind;
use crate::transformer::{Activation, AttentionConfig, MlpConfig};

/// `GPT2Config` of `transformers`, with its defaults and the other names that it has for some fields.
///
/// `reorder_and_upcast_attn` changes nothing in f32.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Gpt2 {
    vocab_size: usize,
    #[serde(alias = "max_position_embeddings")]
    n_positions: usize,
    #[serde(alias = "hidden_size")]
    n_embd: usize,
    #[serde(alias = "num_hidden_layers")]
    n_layer: usize,
    #[serde(alias = "num_attention_heads")]
    n_head: usize,
    n_inner: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f64,
    tie_word_embeddings: bool,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    add_cross_attention: bool,
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
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            add_cross_attention: false,
        }
    }
}

impl Gpt2 {
    pub(super) fn describe(self, file: &File) -> Result<Described, CheckpointError> {
        let plain = !self.scale_attn_by_inverse_layer_idx;
        file.expect("scale_attn_by_inverse_layer_idx", plain)?;
        file.expect("scale_attn_weights", self.scale_attn_weights)?;
        file.expect("add_cross_attention", !self.add_cross_attention)?;
        let activation = gelu(&self.activation_function);
        let activation = activation
            .ok_or_else(|| file.unsupported("the value of activation_function".into()))?;
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
                    .with_d_hidden(Some(self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))))
                    .with_activation(activation)
                    .with_bias(true),
            );
        let family = Family::Gpt2;
        Ok(Described { config, family })
    }
}

/// The two forms of GELU, under all names that `transformers` has for them.
fn gelu(name: &str) -> Option<Activation> {
    match name {
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate" => {
            Some(Activation::Gelu)
        }
        "gelu" | "gelu_python" => Some(Activation::GeluExact),
        _ => None,
    }
}

/// `GPTNeoXConfig` of `transformers`, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct GptNeox {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    head_dim: Option<usize>,
    intermediate_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    tie_word_embeddings: bool,
    use_parallel_residual: bool,
    attention_bias: bool,
    rotary_pct: f64,
    rotary_emb_base: f64,
    rope_scaling: Option<Value>,
    rope_parameters: Option<RopeParameters>,
}

impl Default for GptNeox {
    fn default() -> Self {
        Self {
            vocab_size: 50432,
            hidden_size: 6144,
            num_hidden_layers: 44,
            num_attention_heads: 64,
            head_dim: None,
            intermediate_size: 24576,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-5,
            tie_word_embeddings: false,
            use_parallel_residual: true,
            attention_bias: true,
            rotary_pct: 0.25,
            rotary_emb_base: 10_000.0,
            rope_scaling: None,
            rope_parameters: None,
        }
    }
}

impl GptNeox {
    pub(super) fn describe(self, file: &File) -> Result<Described, CheckpointError> {
        file.expect("rope_scaling", self.rope_scaling.is_none())?;
        let rope = self.rope_parameters.unwrap_or_default();
        rope.expect_plain(file)?;
        let activation = gelu(&self.hidden_act);
        let activation =
            activation.ok_or_else(|| file.unsupported("the value of hidden_act".into()))?;
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(file.wrong(format!(
                "num_attention_heads = {heads} must divide hidden_size = {width}"
            )));
        }
        let plain = self.head_dim.is_none_or(|it| it == width / heads);
        file.expect("head_dim", plain)?;
        let share = rope.partial_rotary_factor.unwrap_or(self.rotary_pct);
        if !(0.0..=1.0).contains(&share) {
            return Err(file.wrong(format!("rotary_pct = {share} is no share of a head")));
        }
        let rotary_dim = ((width / heads) as f64 * share) as usize;
        let config = LanguageModelConfig::new()
            .with_vocab_size(self.vocab_size)
            .with_pad_vocab_size_multiple(1)
            .with_d_model(width)
            .with_n_layer(self.num_hidden_layers)
            .with_pattern(vec![MixerKind::Attention, MixerKind::Mlp])
            .with_parallel_residual(self.use_parallel_residual)
            .with_norm(NormKind::LayerNorm)
            .with_norm_epsilon(self.layer_norm_eps)
            .with_tie_embeddings(self.tie_word_embeddings)
            .with_attention(
                AttentionConfig::new(0, heads)
                    .with_qkv_bias(self.attention_bias)
                    .with_out_bias(self.attention_bias)
                    .with_rotary_dim(rotary_dim)
                    .with_rotary_base(rope.rope_theta.unwrap_or(self.rotary_emb_base)),
            )
            .with_mlp(
                MlpConfig::new(0)
                    .with_d_hidden(Some(self.intermediate_size))
                    .with_activation(activation)
                    .with_bias(true),
            );
        let family = Family::GptNeox;
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
    #[serde(default = "silu")]
    hidden_act: String,
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

#[derive(Default, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// What older files call the same.
    #[serde(rename = "type")]
    old_type: Option<String>,
    partial_rotary_factor: Option<f64>,
}

impl RopeParameters {
    /// Refuses positions that are scaled.
    fn expect_plain(&self, file: &File) -> Result<(), CheckpointError> {
        let kind = self.rope_type.as_ref().or(self.old_type.as_ref());
        file.expect(
            "rope_parameters.rope_type",
            kind.is_none_or(|it| it == "default"),
        )
    }
}

fn silu() -> String {
    "silu".into()
}

fn one_millionth() -> f64 {
    1e-6
}

impl Llama {
    pub(super) fn describe(self, file: &File) -> Result<Described, CheckpointError> {
        file.expect("hidden_act", self.hidden_act == silu())?;
        file.expect("attention_bias", !self.attention_bias)?;
        file.expect("mlp_bias", !self.mlp_bias)?;
        file.expect("rope_scaling", self.rope_scaling.is_none())?;
        let rope = self.rope_parameters.unwrap_or_default();
        rope.expect_plain(file)?;
        let whole = rope.partial_rotary_factor.is_none_or(|it| it == 1.0);
        file.expect("rope_parameters.partial_rotary_factor", whole)?;
        let base = rope.rope_theta.or(self.rope_theta);
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
