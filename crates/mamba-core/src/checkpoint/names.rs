//! Which tensor of a file is which parameter.

use super::config::Family;
use super::layout::{Layout, Rule};
use super::tensors::Tensors;
use crate::block::MixerKind;
use crate::language_model::LanguageModelConfig;

/// A rule for every parameter, named as `tensors` names them.
pub(super) fn rules(config: &LanguageModelConfig, family: Family, tensors: &Tensors) -> Vec<Rule> {
    let names = Names {
        // The authors' files and Hugging Face's differ here alone.
        mamba_embedding: match tensors.has("backbone.embedding.weight") {
            true => "backbone.embedding.weight",
            false => "backbone.embeddings.weight",
        },
        gpt2_prefix: match tensors.has("wte.weight") {
            true => "",
            false => "transformer.",
        },
        gpt_neox_head: match tensors.has("lm_head.weight") {
            true => "lm_head.weight",
            false => GPT_NEOX_HEAD,
        },
    };
    names.rules(config, family)
}

/// Spellings that vary from file to file.
pub(super) struct Names {
    mamba_embedding: &'static str,
    gpt2_prefix: &'static str,
    gpt_neox_head: &'static str,
}

/// The head of GPT-NeoX as all published files call it.
const GPT_NEOX_HEAD: &str = "embed_out.weight";

/// How a norm and a linear layer are called by us and by everyone else.
const NORM: [[&str; 2]; 2] = [["gamma", "weight"], ["beta", "bias"]];
const LINEAR: [[&str; 2]; 2] = [["weight", "weight"], ["bias", "bias"]];

impl Names {
    /// Those that today's `transformers` writes.
    pub const WRITTEN: Self = Self {
        mamba_embedding: "backbone.embeddings.weight",
        gpt2_prefix: "transformer.",
        gpt_neox_head: GPT_NEOX_HEAD,
    };

    pub fn rules(&self, config: &LanguageModelConfig, family: Family) -> Vec<Rule> {
        let mut rules = match family {
            Family::Mamba => self.mamba(config),
            Family::Gpt2 => self.gpt2(config),
            Family::GptNeox => gpt_neox(config),
            Family::Llama => llama(config),
        };
        if !config.tie_embeddings {
            let head = match family {
                Family::GptNeox => self.gpt_neox_head,
                Family::Mamba | Family::Gpt2 | Family::Llama => "lm_head.weight",
            };
            rules.push(Rule::new("head", head, Layout::Same));
        }
        rules
    }

    /// Mamba-1 and Mamba-2.
    fn mamba(&self, config: &LanguageModelConfig) -> Vec<Rule> {
        let mut rules = vec![
            Rule::new("embedding", self.mamba_embedding, Layout::Same),
            Rule::new("norm.gamma", "backbone.norm_f.weight", Layout::Same),
        ];
        for layer in 0..config.n_layer {
            let (ours, theirs) = (
                format!("layers.{layer}"),
                format!("backbone.layers.{layer}"),
            );
            rules.push(Rule::new(
                format!("{ours}.norm.gamma"),
                format!("{theirs}.norm.weight"),
                Layout::Same,
            ));
            let mut add = |our: &str, their: &str, layout| {
                rules.push(Rule::new(
                    format!("{ours}.mixer.{our}"),
                    format!("{theirs}.mixer.{their}"),
                    layout,
                ));
            };
            add("in_proj.weight", "in_proj.weight", Layout::Transposed);
            add("conv_weight", "conv1d.weight", Layout::Depthwise);
            add("a_log", "A_log", Layout::Same);
            add("d", "D", Layout::Same);
            add("out_proj.weight", "out_proj.weight", Layout::Transposed);
            let (bias, conv_bias) = match config.pattern[0] {
                MixerKind::Mamba2 => {
                    add("dt_bias", "dt_bias", Layout::Same);
                    if config.mamba2.rmsnorm {
                        add("norm_weight", "norm.weight", Layout::Same);
                    }
                    (config.mamba2.bias, config.mamba2.conv_bias)
                }
                _ => {
                    add("x_proj.weight", "x_proj.weight", Layout::Transposed);
                    add("dt_proj.weight", "dt_proj.weight", Layout::Transposed);
                    add("dt_proj.bias", "dt_proj.bias", Layout::Same);
                    (config.mamba1.bias, config.mamba1.conv_bias)
                }
            };
            if bias {
                add("in_proj.bias", "in_proj.bias", Layout::Same);
                add("out_proj.bias", "out_proj.bias", Layout::Same);
            }
            if conv_bias {
                add("conv_bias", "conv1d.bias", Layout::Same);
            }
        }
        rules
    }

    /// Its linear layers are `[d_input, d_output]` already.
    fn gpt2(&self, config: &LanguageModelConfig) -> Vec<Rule> {
        let prefix = self.gpt2_prefix;
        let mut rules = vec![
            Rule::new("embedding", format!("{prefix}wte.weight"), Layout::Same),
            Rule::new("positions", format!("{prefix}wpe.weight"), Layout::Same),
        ];
        let mut add = |ours: &str, theirs: &str, part: [&str; 2]| {
            rules.push(Rule::new(
                format!("{ours}.{}", part[0]),
                format!("{prefix}{theirs}.{}", part[1]),
                Layout::Same,
            ));
        };
        for part in NORM {
            add("norm", "ln_f", part);
        }
        for layer in 0..config.n_layer {
            let (attention, mlp) = (
                format!("layers.{}", 2 * layer),
                format!("layers.{}", 2 * layer + 1),
            );
            let theirs = |name: &str| format!("h.{layer}.{name}");
            for part in NORM {
                add(&format!("{attention}.norm"), &theirs("ln_1"), part);
                add(&format!("{mlp}.norm"), &theirs("ln_2"), part);
            }
            for part in LINEAR {
                add(
                    &format!("{attention}.mixer.in_proj"),
                    &theirs("attn.c_attn"),
                    part,
                );
                add(
                    &format!("{attention}.mixer.out_proj"),
                    &theirs("attn.c_proj"),
                    part,
                );
                add(&format!("{mlp}.mixer.fc_in"), &theirs("mlp.c_fc"), part);
                add(&format!("{mlp}.mixer.fc_out"), &theirs("mlp.c_proj"), part);
            }
        }
        rules
    }
}

fn gpt_neox(config: &LanguageModelConfig) -> Vec<Rule> {
    let mut rules = vec![Rule::new(
        "embedding",
        "gpt_neox.embed_in.weight",
        Layout::Same,
    )];
    let mut add = |ours: String, theirs: String, parts: &[[&str; 2]], matrix: &Layout| {
        rules.extend(parts.iter().map(|[our, their]| {
            let layout = match (matrix, *our) {
                (Layout::Transposed, "bias") => Layout::Same,
                (layout, _) => layout.clone(),
            };
            Rule::new(format!("{ours}.{our}"), format!("{theirs}.{their}"), layout)
        }));
    };
    let biased = |bias| &LINEAR[..1 + usize::from(bias)];
    let by_head = Layout::ByHead(config.attention.num_heads);
    add(
        "norm".into(),
        "gpt_neox.final_layer_norm".into(),
        &NORM,
        &Layout::Same,
    );
    for layer in 0..config.n_layer {
        let first = |name: &str| format!("layers.{}.{name}", 2 * layer);
        let second = |name: &str| format!("layers.{}.{name}", 2 * layer + 1);
        let theirs = |name: &str| format!("gpt_neox.layers.{layer}.{name}");
        add(
            first("norm"),
            theirs("input_layernorm"),
            &NORM,
            &Layout::Same,
        );
        add(
            second("norm"),
            theirs("post_attention_layernorm"),
            &NORM,
            &Layout::Same,
        );
        add(
            first("mixer.in_proj"),
            theirs("attention.query_key_value"),
            biased(config.attention.qkv_bias),
            &by_head,
        );
        for (ours, name, bias) in [
            (
                first("mixer.out_proj"),
                "attention.dense",
                config.attention.out_bias,
            ),
            (second("mixer.fc_in"), "mlp.dense_h_to_4h", config.mlp.bias),
            (second("mixer.fc_out"), "mlp.dense_4h_to_h", config.mlp.bias),
        ] {
            add(ours, theirs(name), biased(bias), &Layout::Transposed);
        }
    }
    rules
}

fn llama(config: &LanguageModelConfig) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new("embedding", "model.embed_tokens.weight", Layout::Same),
        Rule::new("norm.gamma", "model.norm.weight", Layout::Same),
    ];
    let attention = &config.attention;
    let head_dim = attention
        .head_dim
        .unwrap_or(config.d_model / attention.num_heads);
    let keys = attention.num_kv_heads.unwrap_or(attention.num_heads) * head_dim;
    let hidden = config.mlp.d_hidden.unwrap_or_default();
    for layer in 0..config.n_layer {
        let (first, second) = (
            format!("layers.{}", 2 * layer),
            format!("layers.{}", 2 * layer + 1),
        );
        let theirs = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let joined = |ours: String, names: &[&str], sizes: Vec<usize>| Rule {
            ours,
            theirs: names.iter().map(|name| theirs(name)).collect(),
            layout: Layout::Joined(sizes),
        };
        rules.extend([
            Rule::new(
                format!("{first}.norm.gamma"),
                theirs("input_layernorm"),
                Layout::Same,
            ),
            joined(
                format!("{first}.mixer.in_proj.weight"),
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                vec![attention.num_heads * head_dim, keys, keys],
            ),
            Rule::new(
                format!("{first}.mixer.out_proj.weight"),
                theirs("self_attn.o_proj"),
                Layout::Transposed,
            ),
            Rule::new(
                format!("{second}.norm.gamma"),
                theirs("post_attention_layernorm"),
                Layout::Same,
            ),
            joined(
                format!("{second}.mixer.fc_in.weight"),
                &["mlp.gate_proj", "mlp.up_proj"],
                vec![hidden, hidden],
            ),
            Rule::new(
                format!("{second}.mixer.fc_out.weight"),
                theirs("mlp.down_proj"),
                Layout::Transposed,
            ),
        ]);
    }
    rules
}
