//! Models of the fixtures that Hugging Face transformers computed.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use mamba_core::transformer::{Activation, AttentionConfig, MlpConfig};
use mamba_core::{
    Block, LanguageModel, LanguageModelConfig, Mamba1Config, Mamba2Config, Mixer, MixerKind,
    NormKind,
};

use crate::fixtures::Fixture;
use crate::tensors::float;

/// A fixture's parameters by their Hugging Face names.
pub struct Weights {
    /// Parameters, settings and expected results.
    pub fixture: Fixture,
    /// Where the parameters go.
    pub device: Device,
}

impl Weights {
    /// Reads `tests/fixtures/<name>.safetensors`.
    pub fn load(name: &str, device: &Device) -> Self {
        Self {
            fixture: Fixture::load(name),
            device: device.clone(),
        }
    }

    fn get<const D: usize>(&self, name: &str) -> Param<Tensor<D>> {
        Param::from_tensor(float(self.fixture.floats(name), &self.device))
    }

    /// PyTorch's `nn.Linear` keeps `[d_output, d_input]`.
    fn linear(&self, name: &str) -> Linear {
        let weight = float::<2>(self.fixture.floats(&format!("{name}.weight")), &self.device);
        Linear {
            weight: Param::from_tensor(weight.transpose()),
            bias: self.bias(name),
        }
    }

    /// Several linear layers of one input, side by side.
    fn joined(&self, names: &[String]) -> Linear {
        let weights = names
            .iter()
            .map(|name| self.linear(name).weight.val())
            .collect();
        Linear {
            weight: Param::from_tensor(Tensor::cat(weights, 1).detach()),
            bias: None,
        }
    }

    /// GPT-2's `Conv1D` keeps `[d_input, d_output]`.
    fn conv1d(&self, name: &str) -> Linear {
        Linear {
            weight: self.get(&format!("{name}.weight")),
            bias: self.bias(name),
        }
    }

    fn bias(&self, name: &str) -> Option<Param<Tensor<1>>> {
        let bias = self.fixture.find_floats(&format!("{name}.bias"))?;
        Some(Param::from_tensor(float(bias, &self.device)))
    }

    fn norm(&self, mut norm: mamba_core::Norm, name: &str) -> mamba_core::Norm {
        norm.gamma = self.get(&format!("{name}.weight"));
        norm.beta = self.bias(name);
        norm
    }
}

/// A Mamba-1 of fixture `mamba1_lm`.
pub fn mamba1(weights: &Weights) -> LanguageModel {
    let setting = |key: &str| weights.fixture.setting::<usize>(key);
    let config = LanguageModelConfig::new()
        .with_vocab_size(setting("vocab_size"))
        .with_d_model(setting("hidden_size"))
        .with_n_layer(setting("num_hidden_layers"))
        .with_norm_epsilon(weights.fixture.setting("layer_norm_epsilon"))
        .with_mamba1(
            Mamba1Config::new(0)
                .with_d_state(setting("state_size"))
                .with_d_conv(setting("conv_kernel"))
                .with_expand(setting("expand"))
                .with_dt_rank(setting("time_step_rank")),
        );
    let mut model = config.init(&weights.device);
    model.embedding = weights.get("backbone.embeddings.weight");
    model.norm = weights.norm(model.norm, "backbone.norm_f");
    model.layers = model
        .layers
        .into_iter()
        .enumerate()
        .map(|(index, block)| {
            let name = |part: &str| format!("backbone.layers.{index}.mixer.{part}");
            let Mixer::Mamba1(mut mixer) = block.mixer else {
                panic!("a Mamba-1 model")
            };
            mixer.in_proj = weights.linear(&name("in_proj"));
            mixer.conv_weight = Param::from_tensor(
                weights
                    .get::<3>(&name("conv1d.weight"))
                    .val()
                    .squeeze_dim(1)
                    .detach(),
            );
            mixer.conv_bias = weights.bias(&name("conv1d"));
            mixer.x_proj = weights.linear(&name("x_proj"));
            mixer.dt_proj = weights.linear(&name("dt_proj"));
            mixer.a_log = weights.get(&name("A_log"));
            mixer.d = weights.get(&name("D"));
            mixer.out_proj = weights.linear(&name("out_proj"));
            let norm = weights.norm(block.norm, &format!("backbone.layers.{index}.norm"));
            Block {
                norm,
                mixer: Mixer::Mamba1(mixer),
            }
        })
        .collect();
    model
}

/// A Mamba-2 of fixture `mamba2_lm`.
pub fn mamba2(weights: &Weights) -> LanguageModel {
    let setting = |key: &str| weights.fixture.setting::<usize>(key);
    let config = LanguageModelConfig::new()
        .with_vocab_size(setting("vocab_size"))
        .with_d_model(setting("hidden_size"))
        .with_n_layer(setting("num_hidden_layers"))
        .with_norm_epsilon(weights.fixture.setting("layer_norm_epsilon"))
        .with_pattern(vec![MixerKind::Mamba2])
        .with_mamba2(
            Mamba2Config::new(0)
                .with_d_state(setting("state_size"))
                .with_d_conv(setting("conv_kernel"))
                .with_expand(setting("expand"))
                .with_headdim(setting("head_dim"))
                .with_ngroups(setting("n_groups"))
                .with_chunk_size(setting("chunk_size")),
        );
    let mut model = config.init(&weights.device);
    model.embedding = weights.get("backbone.embeddings.weight");
    model.norm = weights.norm(model.norm, "backbone.norm_f");
    let replace = |index: usize, block: Block| {
        let name = |part: &str| format!("backbone.layers.{index}.mixer.{part}");
        let Mixer::Mamba2(mut mixer) = block.mixer else {
            panic!("a Mamba-2 model")
        };
        let filters = weights.get::<3>(&name("conv1d.weight")).val();
        mixer.in_proj = weights.linear(&name("in_proj"));
        mixer.conv_weight = Param::from_tensor(filters.squeeze_dim(1).detach());
        mixer.conv_bias = weights.bias(&name("conv1d"));
        mixer.dt_bias = weights.get(&name("dt_bias"));
        mixer.a_log = weights.get(&name("A_log"));
        mixer.d = weights.get(&name("D"));
        mixer.norm_weight = Some(weights.get(&name("norm.weight")));
        mixer.out_proj = weights.linear(&name("out_proj"));
        Block {
            norm: weights.norm(block.norm, &format!("backbone.layers.{index}.norm")),
            mixer: Mixer::Mamba2(mixer),
        }
    };
    let layers = model.layers.into_iter().enumerate();
    model.layers = layers.map(|(index, block)| replace(index, block)).collect();
    model
}

/// The part of a transformer layer that a block of ours is.
fn transformer_layers(model: &mut LanguageModel, replace: impl Fn(usize, Block) -> Block) {
    let layers = std::mem::take(&mut model.layers);
    model.layers = layers
        .into_iter()
        .enumerate()
        .map(|(i, block)| replace(i / 2, block))
        .collect();
}

/// A GPT-2 of fixture `gpt2_lm`.
pub fn gpt2(weights: &Weights) -> LanguageModel {
    let setting = |key: &str| weights.fixture.setting::<usize>(key);
    let config = LanguageModelConfig::new()
        .with_vocab_size(setting("vocab_size"))
        .with_d_model(setting("n_embd"))
        .with_n_layer(setting("n_layer"))
        .with_pattern(vec![MixerKind::Attention, MixerKind::Mlp])
        .with_norm(NormKind::LayerNorm)
        .with_max_positions(setting("n_positions"))
        .with_attention(
            AttentionConfig::new(0, setting("n_head"))
                .with_qkv_bias(true)
                .with_out_bias(true),
        )
        .with_mlp(MlpConfig::new(0).with_bias(true));
    let mut model = config.init(&weights.device);
    model.embedding = weights.get("transformer.wte.weight");
    model.positions = Some(weights.get("transformer.wpe.weight"));
    model.norm = weights.norm(model.norm, "transformer.ln_f");
    transformer_layers(&mut model, |index, block| {
        let name = |part: &str| format!("transformer.h.{index}.{part}");
        match block.mixer {
            Mixer::Attention(mut mixer) => {
                mixer.in_proj = weights.conv1d(&name("attn.c_attn"));
                mixer.out_proj = weights.conv1d(&name("attn.c_proj"));
                let norm = weights.norm(block.norm, &name("ln_1"));
                Block {
                    norm,
                    mixer: Mixer::Attention(mixer),
                }
            }
            Mixer::Mlp(mut mixer) => {
                mixer.fc_in = weights.conv1d(&name("mlp.c_fc"));
                mixer.fc_out = weights.conv1d(&name("mlp.c_proj"));
                let norm = weights.norm(block.norm, &name("ln_2"));
                Block {
                    norm,
                    mixer: Mixer::Mlp(mixer),
                }
            }
            Mixer::Mamba1(_) | Mixer::Mamba2(_) => panic!("a transformer"),
        }
    });
    model
}

/// A transformer of the modern form, of fixture `llama_lm`.
pub fn llama(weights: &Weights) -> LanguageModel {
    let setting = |key: &str| weights.fixture.setting::<usize>(key);
    let (d_model, heads) = (setting("hidden_size"), setting("num_attention_heads"));
    let config = LanguageModelConfig::new()
        .with_vocab_size(setting("vocab_size"))
        .with_d_model(d_model)
        .with_n_layer(setting("num_hidden_layers"))
        .with_pattern(vec![MixerKind::Attention, MixerKind::Mlp])
        .with_norm_epsilon(weights.fixture.setting("rms_norm_eps"))
        .with_tie_embeddings(false)
        .with_attention(AttentionConfig::new(0, heads).with_rotary_dim(d_model / heads))
        .with_mlp(
            MlpConfig::new(0)
                .with_activation(Activation::SwiGlu)
                .with_d_hidden(Some(setting("intermediate_size"))),
        );
    let mut model = config.init(&weights.device);
    model.embedding = weights.get("model.embed_tokens.weight");
    model.head = Some(weights.get("lm_head.weight"));
    model.norm = weights.norm(model.norm, "model.norm");
    transformer_layers(&mut model, |index, block| {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        match block.mixer {
            Mixer::Attention(mut mixer) => {
                let parts = ["q", "k", "v"].map(|part| name(&format!("self_attn.{part}_proj")));
                mixer.in_proj = weights.joined(&parts);
                mixer.out_proj = weights.linear(&name("self_attn.o_proj"));
                let norm = weights.norm(block.norm, &name("input_layernorm"));
                Block {
                    norm,
                    mixer: Mixer::Attention(mixer),
                }
            }
            Mixer::Mlp(mut mixer) => {
                mixer.fc_in = weights.joined(&[name("mlp.gate_proj"), name("mlp.up_proj")]);
                mixer.fc_out = weights.linear(&name("mlp.down_proj"));
                let norm = weights.norm(block.norm, &name("post_attention_layernorm"));
                Block {
                    norm,
                    mixer: Mixer::Mlp(mixer),
                }
            }
            Mixer::Mamba1(_) | Mixer::Mamba2(_) => panic!("a transformer"),
        }
    });
    model
}
