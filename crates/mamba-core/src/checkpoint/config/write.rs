//! A language model's configuration as `transformers` reads it.

use serde_json::{Value, json};

use super::Family;
use crate::block::MixerKind;
use crate::checkpoint::CheckpointError;
use crate::language_model::LanguageModelConfig;
use crate::norm::NormKind;
use crate::transformer::Activation;

/// `config.json` of a model that has a counterpart, and the family of its files.
pub(in crate::checkpoint) fn written(
    config: &LanguageModelConfig,
) -> Result<(Value, Family), CheckpointError> {
    use MixerKind::{Attention, Mamba1, Mamba2, Mlp};
    match (&config.pattern[..], config.norm) {
        // Of one layer a repetition, `parallel_residual` changes nothing.
        ([Mamba1], NormKind::RmsNorm) if config.max_positions == 0 => {
            Ok((mamba(config), Family::Mamba))
        }
        ([Mamba2], NormKind::RmsNorm) if config.max_positions == 0 => {
            Ok((mamba2(config)?, Family::Mamba))
        }
        ([Attention, Mlp], NormKind::LayerNorm) if config.max_positions > 0 => {
            Ok((gpt2(config)?, Family::Gpt2))
        }
        ([Attention, Mlp], NormKind::LayerNorm) => Ok((gpt_neox(config)?, Family::GptNeox)),
        ([Attention, Mlp], NormKind::RmsNorm) => Ok((llama(config)?, Family::Llama)),
        _ => Err(CheckpointError::NoCounterpart(format!(
            "no published architecture has layers {:?} with this norm and these positions",
            config.pattern
        ))),
    }
}

fn require(what: &str, holds: bool) -> Result<(), CheckpointError> {
    match holds {
        true => Ok(()),
        false => Err(CheckpointError::NoCounterpart(what.into())),
    }
}

fn mamba(config: &LanguageModelConfig) -> Value {
    let mixer = &config.mamba1;
    let (architecture, model_type) = match mixer.dt_bc_rms_epsilon {
        Some(_) => ("FalconMambaForCausalLM", "falcon_mamba"),
        None => ("MambaForCausalLM", "mamba"),
    };
    let mut fields = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "state_size": mixer.d_state,
        "conv_kernel": mixer.d_conv,
        "expand": mixer.expand,
        "intermediate_size": mixer.expand * config.d_model,
        "time_step_rank": match mixer.dt_rank {
            0 => config.d_model.div_ceil(16),
            rank => rank,
        },
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_epsilon,
        "residual_in_fp32": true,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
    });
    if let Some(epsilon) = mixer.dt_bc_rms_epsilon {
        fields["mixer_rms_eps"] = json!(epsilon);
    }
    fields
}

fn mamba2(config: &LanguageModelConfig) -> Result<Value, CheckpointError> {
    let mixer = &config.mamba2;
    require(
        "mamba2.norm_before_gate has no counterpart",
        !mixer.norm_before_gate,
    )?;
    require("mamba2.rmsnorm = false has no counterpart", mixer.rmsnorm)?;
    require("mamba2.d_has_hdim has no counterpart", !mixer.d_has_hdim)?;
    let d_inner = mixer.expand * config.d_model;
    let whole = mixer.d_ssm.is_none_or(|d_ssm| d_ssm == d_inner);
    require("mamba2.d_ssm has no counterpart", whole)?;
    require(
        "norm_epsilon must be 1e-5, that of the mixers' norms",
        config.norm_epsilon == 1e-5,
    )?;
    // JSON has no infinity, and a limit far beyond any time step is none.
    let limit = mixer.dt_limit.map(|it| it.min(f64::from(f32::MAX)));
    Ok(json!({
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "num_heads": d_inner / mixer.headdim,
        "head_dim": mixer.headdim,
        "state_size": mixer.d_state,
        "n_groups": mixer.ngroups,
        "conv_kernel": mixer.d_conv,
        "expand": mixer.expand,
        "chunk_size": mixer.chunk_size,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "rms_norm": true,
        "norm_before_gate": false,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_epsilon,
        "time_step_limit": limit,
        "residual_in_fp32": true,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
    }))
}

fn gpt2(config: &LanguageModelConfig) -> Result<Value, CheckpointError> {
    let (attention, mlp) = (&config.attention, &config.mlp);
    require(
        "parallel_residual has no counterpart in GPT-2",
        !config.parallel_residual,
    )?;
    require(
        "attention.rotary_dim has no counterpart in GPT-2",
        attention.rotary_dim == 0,
    )?;
    require(
        "attention.num_kv_heads and head_dim have no counterpart in GPT-2",
        has_plain_heads(config),
    )?;
    let biased = attention.qkv_bias && attention.out_bias && mlp.bias;
    require("every linear layer of GPT-2 has a bias", biased)?;
    let activation = match mlp.activation {
        Activation::Gelu => "gelu_new",
        Activation::GeluExact => "gelu",
        Activation::SwiGlu => {
            return Err(CheckpointError::NoCounterpart(
                "mlp.activation = swiglu in GPT-2".into(),
            ));
        }
    };
    Ok(json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": attention.num_heads,
        "n_inner": mlp.d_hidden.unwrap_or(4 * config.d_model),
        "activation_function": activation,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
    }))
}

/// As many keys and values as queries, together as wide as the model.
fn has_plain_heads(config: &LanguageModelConfig) -> bool {
    let attention = &config.attention;
    let heads = attention.num_heads;
    attention.num_kv_heads.is_none_or(|it| it == heads)
        && attention
            .head_dim
            .is_none_or(|width| width * heads == config.d_model)
}

fn gpt_neox(config: &LanguageModelConfig) -> Result<Value, CheckpointError> {
    let (attention, mlp) = (&config.attention, &config.mlp);
    require(
        "with layer norms positions must be learned (max_positions) or rotary (attention.rotary_dim)",
        attention.rotary_dim > 0 && !attention.rotary_interleaved,
    )?;
    require(
        "attention.num_kv_heads and head_dim have no counterpart in GPT-NeoX",
        has_plain_heads(config),
    )?;
    let biased = mlp.bias && attention.qkv_bias == attention.out_bias;
    require(
        "GPT-NeoX has biases in its MLP, and in both or none of the layers of its attention",
        biased,
    )?;
    let activation = match mlp.activation {
        Activation::Gelu => "gelu_new",
        Activation::GeluExact => "gelu",
        Activation::SwiGlu => {
            return Err(CheckpointError::NoCounterpart(
                "mlp.activation = swiglu in GPT-NeoX".into(),
            ));
        }
    };
    let (head_dim, rotary_dim) = (config.d_model / attention.num_heads, attention.rotary_dim);
    Ok(json!({
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": attention.num_heads,
        "intermediate_size": mlp.d_hidden.unwrap_or(4 * config.d_model),
        "hidden_act": activation,
        "max_position_embeddings": 2048,
        "layer_norm_eps": config.norm_epsilon,
        "attention_bias": attention.qkv_bias,
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": share(rotary_dim, head_dim),
        "rotary_emb_base": attention.rotary_base,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
    }))
}

/// A share of `whole` that is `part` again when it is multiplied and rounded down.
fn share(part: usize, whole: usize) -> f64 {
    let exact = part as f64 / whole as f64;
    match (whole as f64 * exact) as usize == part {
        true => exact,
        false => (part as f64 + 0.5) / whole as f64,
    }
}

fn llama(config: &LanguageModelConfig) -> Result<Value, CheckpointError> {
    let (attention, mlp) = (&config.attention, &config.mlp);
    require(
        "parallel_residual has no counterpart in Llama",
        !config.parallel_residual,
    )?;
    let head_dim = attention
        .head_dim
        .unwrap_or(config.d_model / attention.num_heads);
    let rotary = attention.rotary_dim == head_dim && !attention.rotary_interleaved;
    require(
        "positions must be rotary over whole heads",
        rotary && config.max_positions == 0,
    )?;
    let plain = !attention.qkv_bias && !attention.out_bias && !mlp.bias;
    require("biases have no counterpart in Llama", plain)?;
    require(
        "mlp.activation must be swiglu",
        mlp.activation == Activation::SwiGlu,
    )?;
    let mut sized = mlp.clone();
    sized.d_model = config.d_model;
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": sized.d_hidden(),
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads.unwrap_or(attention.num_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": attention.rotary_base,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
    }))
}
