//! Whole language models against Hugging Face transformers and against themselves.
#![recursion_limit = "256"]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor, s};
use mamba_core::transformer::{Activation, AttentionConfig, MlpConfig};
use mamba_core::{
    Block, GenerateError, LanguageModel, LanguageModelConfig, Mamba1Config, Mixer, MixerKind,
    NormKind, Sampler, SamplingConfig,
};
use mamba_tests::devices::device;
use mamba_tests::fixtures::Fixture;
use mamba_tests::tensors::{assert_fixture, assert_same, float, int};
use mamba_tests::tolerances::{LANGUAGE_MODEL_F32, LANGUAGE_MODEL_F32_GRADIENT};

/// A fixture's parameters by their Hugging Face names.
struct Weights {
    fixture: Fixture,
    device: Device,
}

impl Weights {
    fn load(name: &str, device: &Device) -> Self {
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

fn mamba1(weights: &Weights) -> LanguageModel {
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

/// The part of a transformer layer that a block of ours is.
fn transformer_layers(model: &mut LanguageModel, replace: impl Fn(usize, Block) -> Block) {
    let layers = std::mem::take(&mut model.layers);
    model.layers = layers
        .into_iter()
        .enumerate()
        .map(|(i, block)| replace(i / 2, block))
        .collect();
}

fn gpt2(weights: &Weights) -> LanguageModel {
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
            Mixer::Mamba1(_) => panic!("a transformer"),
        }
    });
    model
}

fn llama(weights: &Weights) -> LanguageModel {
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
            Mixer::Mamba1(_) => panic!("a transformer"),
        }
    });
    model
}

type Build = fn(&Weights) -> LanguageModel;
const MODELS: [(&str, Build); 3] = [
    ("mamba1_lm", mamba1),
    ("gpt2_lm", gpt2),
    ("llama_lm", llama),
];

/// Inputs and targets of next-token prediction.
fn next_tokens(weights: &Weights) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let ids = int::<2>(weights.fixture.ints("input_ids"), &weights.device);
    let [_, length] = ids.dims();
    (
        ids.clone().slice(s![.., ..length - 1]),
        ids.slice(s![.., 1..]),
    )
}

#[test]
fn logits_and_loss_equal_transformers() {
    for (name, build) in MODELS {
        let weights = Weights::load(name, &device());
        let model = build(&weights);
        let ids = int::<2>(weights.fixture.ints("input_ids"), &weights.device);
        let logits = model.logits(model.hidden(ids, None));
        assert_fixture(name, &weights.fixture, "logits", logits, LANGUAGE_MODEL_F32);
        let (inputs, targets) = next_tokens(&weights);
        let loss = model.loss(inputs.clone(), targets.clone());
        let want = Tensor::from_data(
            weights.fixture.floats("loss").values.as_slice(),
            &weights.device,
        );
        assert_same(name, loss.clone(), want, LANGUAGE_MODEL_F32);
        let (scores, _) = model.score(inputs, targets, model.initial_state(2, &weights.device));
        assert_same(name, scores.mean(), loss, LANGUAGE_MODEL_F32);
    }
}

#[test]
fn gradients_of_the_embedding_equal_transformers() {
    for (name, build, key) in [
        (
            "mamba1_lm",
            mamba1 as Build,
            "grad.backbone.embeddings.weight",
        ),
        ("gpt2_lm", gpt2, "grad.transformer.wte.weight"),
        ("llama_lm", llama, "grad.model.embed_tokens.weight"),
    ] {
        let weights = Weights::load(name, &device().autodiff());
        let model = build(&weights);
        let (inputs, targets) = next_tokens(&weights);
        let gradients = model.loss(inputs, targets).backward();
        let gradient = model.embedding.grad(&gradients).unwrap();
        assert_fixture(
            name,
            &weights.fixture,
            key,
            gradient,
            LANGUAGE_MODEL_F32_GRADIENT,
        );
    }
}

fn greedy() -> Sampler {
    Sampler::new(SamplingConfig {
        temperature: 0.0,
        ..Default::default()
    })
    .unwrap()
}

#[test]
fn greedy_tokens_equal_transformers() {
    for (name, build) in MODELS {
        let weights = Weights::load(name, &device());
        let model = build(&weights);
        let ids = weights.fixture.ints("input_ids");
        let want = weights.fixture.ints("greedy_ids");
        let length = ids.shape[1];
        let count = want.shape[1];
        for row in 0..2 {
            let prompt: Vec<u32> = ids.values[row * length..][..length]
                .iter()
                .map(|id| *id as u32)
                .collect();
            let got: Vec<i64> = model
                .generate(&prompt, greedy(), &weights.device)
                .unwrap()
                .take(count)
                .map(|token| i64::from(token.unwrap()))
                .collect();
            assert_eq!(
                got,
                want.values[row * count..][..count],
                "{name}, row {row}"
            );
        }
    }
}

fn hybrid(device: &Device) -> LanguageModel {
    device.seed(3);
    LanguageModelConfig::new()
        .with_vocab_size(29)
        .with_d_model(16)
        .with_n_layer(2)
        .with_pattern(vec![
            MixerKind::Mamba1,
            MixerKind::Attention,
            MixerKind::Mlp,
        ])
        .with_attention(AttentionConfig::new(0, 4).with_rotary_dim(4))
        .init(device)
}

fn tokens(shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let count = (shape[0] * shape[1]) as i64;
    let ids = Tensor::<1, Int>::arange(0..count, device);
    ((ids.clone() * 7 + ids / 3).remainder_scalar(29)).reshape(shape)
}

#[test]
fn a_hybrid_steps_as_it_reads() {
    let device = device();
    let model = hybrid(&device);
    let ids = tokens([2, 11], &device);
    let whole = model.logits(model.hidden(ids.clone(), None));
    let (first, mut state) = model.prefill(
        ids.clone().slice(s![.., ..4]),
        model.initial_state(2, &device),
    );
    let at = |t: usize| whole.clone().slice(s![.., t..t + 1]).squeeze_dim::<2>(1);
    assert_same("prefill", first, at(3), LANGUAGE_MODEL_F32);
    for t in 4..11 {
        let token = ids.clone().slice(s![.., t..t + 1]).squeeze_dim::<1>(1);
        let (logits, next) = model.step(token, state);
        state = next;
        assert_same(&format!("position {t}"), logits, at(t), LANGUAGE_MODEL_F32);
    }
    assert_eq!(state.position, 11);
}

#[test]
fn packed_losses_are_those_of_the_sequences() {
    let device = device();
    let model = hybrid(&device);
    let ids = tokens([1, 12], &device);
    let (inputs, targets) = (ids.clone().slice(s![.., ..11]), ids.slice(s![.., 1..]));
    let seq_idx = Tensor::<2, Int>::from_data([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]], &device);
    let packed = model.packed_loss(inputs.clone(), targets.clone(), seq_idx);
    let part = |from: usize, to: usize| {
        let cut = |ids: &Tensor<2, Int>| ids.clone().slice(s![.., from..to]);
        model.loss(cut(&inputs), cut(&targets)) * (to - from) as f32
    };
    let separate = (part(0, 4) + part(4, 11)) / 11.0;
    assert_same("loss", packed, separate, LANGUAGE_MODEL_F32);
}

#[test]
fn bad_prompts_are_refused() {
    let device = device();
    let model = hybrid(&device);
    let error = |prompt: &[u32]| model.generate(prompt, greedy(), &device).err().unwrap();
    assert!(matches!(error(&[]), GenerateError::EmptyPrompt));
    assert!(matches!(
        error(&[1, 29]),
        GenerateError::UnknownToken {
            token: 29,
            vocab_size: 29
        }
    ));
    let weights = Weights::load("gpt2_lm", &device);
    let model = gpt2(&weights);
    let last = model
        .generate(&[1; 31], greedy(), &device)
        .unwrap()
        .take(4)
        .last()
        .unwrap();
    assert!(
        matches!(last, Err(GenerateError::OutOfPositions(32))),
        "{last:?}"
    );
}

#[test]
fn weights_survive_a_record() {
    let device = device();
    let model = hybrid(&device);
    let ids = tokens([1, 9], &device);
    let want = model.hidden(ids.clone(), None).into_data();
    let record = model.into_record();
    device.seed(99);
    let other = LanguageModelConfig::new()
        .with_vocab_size(29)
        .with_d_model(16)
        .with_n_layer(2)
        .with_pattern(vec![
            MixerKind::Mamba1,
            MixerKind::Attention,
            MixerKind::Mlp,
        ])
        .with_attention(AttentionConfig::new(0, 4).with_rotary_dim(4))
        .init(&device)
        .load_record(record);
    assert_eq!(other.hidden(ids, None).into_data(), want);
}

#[test]
fn a_config_that_cannot_work_names_the_field() {
    let problem = |config: LanguageModelConfig| config.validate().unwrap_err();
    assert!(problem(LanguageModelConfig::new().with_n_layer(0)).contains("n_layer"));
    assert!(problem(LanguageModelConfig::new().with_pattern(vec![])).contains("pattern"));
    let narrow = LanguageModelConfig::new().with_mamba1(Mamba1Config::new(64));
    assert!(problem(narrow).contains("mamba1.d_model"));
    let heads = LanguageModelConfig::new()
        .with_pattern(vec![MixerKind::Attention])
        .with_attention(AttentionConfig::new(0, 3));
    assert!(problem(heads).contains("attention.num_heads"));
}
