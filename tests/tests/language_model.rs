//! Whole language models against Hugging Face transformers and against themselves.
#![recursion_limit = "256"]

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, s};
use mamba_core::transformer::{AttentionConfig, MlpConfig};
use mamba_core::{
    GenerateError, LanguageModel, LanguageModelConfig, Mamba1Config, Mamba2Config, Mixer,
    MixerKind, Sampler, SamplingConfig,
};
use mamba_tests::devices::{device, seeded};
use mamba_tests::fixtures::Fixture;
use mamba_tests::hugging_face;
use mamba_tests::tensors::{assert_fixture, assert_same, int, values};
use mamba_tests::tolerances::{LANGUAGE_MODEL_F32, LANGUAGE_MODEL_F32_GRADIENT};

/// Inputs and targets of next-token prediction.
fn next_tokens(fixture: &Fixture, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let ids = int::<2>(fixture.ints("input_ids"), device);
    let [_, length] = ids.dims();
    (
        ids.clone().slice(s![.., ..length - 1]),
        ids.slice(s![.., 1..]),
    )
}

#[test]
fn logits_and_loss_equal_transformers() {
    let device = device();
    for (name, _) in hugging_face::MODELS {
        let (model, _, fixture) = hugging_face::model(name, &device);
        let ids = int::<2>(fixture.ints("input_ids"), &device);
        let logits = model.logits(model.hidden(ids, None));
        assert_fixture(name, &fixture, "logits", logits, LANGUAGE_MODEL_F32);
        let (inputs, targets) = next_tokens(&fixture, &device);
        let loss = model.loss(inputs.clone(), targets.clone());
        let want = Tensor::from_data(fixture.floats("loss").values.as_slice(), &device);
        assert_same(name, loss.clone(), want, LANGUAGE_MODEL_F32);
        let (scores, _) = model.score(inputs, targets, model.initial_state(2, &device));
        assert_same(name, scores.mean(), loss, LANGUAGE_MODEL_F32);
    }
}

#[test]
fn gradients_of_the_embedding_equal_transformers() {
    let device = device().autodiff();
    for (name, key) in [
        ("mamba1_lm", "grad.backbone.embeddings.weight"),
        ("mamba2_lm", "grad.backbone.embeddings.weight"),
        ("gpt2_lm", "grad.transformer.wte.weight"),
        ("llama_lm", "grad.model.embed_tokens.weight"),
    ] {
        let (model, _, fixture) = hugging_face::model(name, &device);
        let (inputs, targets) = next_tokens(&fixture, &device);
        let gradients = model.loss(inputs, targets).backward();
        let gradient = model.embedding.grad(&gradients).unwrap();
        assert_fixture(name, &fixture, key, gradient, LANGUAGE_MODEL_F32_GRADIENT);
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
    let device = device();
    for (name, _) in hugging_face::MODELS {
        let (model, _, fixture) = hugging_face::model(name, &device);
        let ids = fixture.ints("input_ids");
        let want = fixture.ints("greedy_ids");
        let length = ids.shape[1];
        let count = want.shape[1];
        for row in 0..2 {
            let prompt: Vec<u32> = ids.values[row * length..][..length]
                .iter()
                .map(|id| *id as u32)
                .collect();
            let got: Vec<i64> = model
                .generate(&prompt, greedy(), &device)
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

fn small_mamba2() -> Mamba2Config {
    Mamba2Config::new(0)
        .with_d_state(6)
        .with_headdim(8)
        .with_chunk_size(8)
}

fn hybrid(device: &Device) -> LanguageModel {
    seeded_hybrid(3, device)
}

fn seeded_hybrid(seed: u64, device: &Device) -> LanguageModel {
    let config = LanguageModelConfig::new()
        .with_vocab_size(29)
        .with_d_model(16)
        .with_n_layer(2)
        .with_pattern(vec![
            MixerKind::Mamba1,
            MixerKind::Attention,
            MixerKind::Mamba2,
            MixerKind::Mlp,
        ])
        .with_mamba2(small_mamba2())
        .with_attention(AttentionConfig::new(0, 4).with_rotary_dim(4));
    seeded(seed, device, |device| config.init(device))
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
    let (model, _, _) = hugging_face::model("gpt2_lm", &device);
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
    let other = seeded_hybrid(99, &device).load_record(record);
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

    let mamba1 = |it: Mamba1Config| LanguageModelConfig::new().with_mamba1(it);
    let mamba2 = |it: Mamba2Config| {
        LanguageModelConfig::new()
            .with_pattern(vec![MixerKind::Mamba2])
            .with_mamba2(it)
    };
    let transformer = |heads: AttentionConfig, mlp: MlpConfig| {
        LanguageModelConfig::new()
            .with_pattern(vec![MixerKind::Attention, MixerKind::Mlp])
            .with_attention(heads)
            .with_mlp(mlp)
    };
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let (first, second) = (Mamba1Config::new(0), Mamba2Config::new(0));
    let (heads, mlp) = (AttentionConfig::new(0, 4), MlpConfig::new(0));
    for (config, field) in [
        (mamba1(first.clone().with_dt_max(inf)), "mamba1.dt_min"),
        (mamba1(first.clone().with_dt_min(nan)), "mamba1.dt_min"),
        (
            mamba1(first.clone().with_dt_init_floor(nan)),
            "mamba1.dt_init_floor",
        ),
        (mamba1(first.clone().with_dt_scale(nan)), "mamba1.dt_scale"),
        (mamba1(first.clone().with_dt_scale(0.0)), "mamba1.dt_scale"),
        (mamba1(first.clone().with_expand(0)), "mamba1.expand"),
        (mamba1(first.with_expand(usize::MAX)), "mamba1.expand"),
        (mamba2(second.clone().with_dt_max(inf)), "mamba2.dt_min"),
        (
            mamba2(second.clone().with_dt_init_floor(inf)),
            "mamba2.dt_init_floor",
        ),
        (
            mamba2(second.clone().with_conv_init(Some(nan))),
            "mamba2.conv_init",
        ),
        (mamba2(second.with_ngroups(usize::MAX)), "mamba2.ngroups"),
        (
            transformer(heads.clone().with_head_dim(Some(0)), mlp.clone()),
            "attention.head_dim",
        ),
        (
            transformer(heads.with_num_kv_heads(Some(0)), mlp.clone()),
            "attention.num_kv_heads",
        ),
        (
            transformer(AttentionConfig::new(0, 4), mlp.with_d_hidden(Some(0))),
            "mlp.d_hidden",
        ),
        (
            LanguageModelConfig::new().with_norm_epsilon(inf),
            "norm_epsilon",
        ),
        (
            LanguageModelConfig::new().with_pad_vocab_size_multiple(usize::MAX),
            "pad_vocab_size_multiple",
        ),
    ] {
        let problem = problem(config);
        assert!(problem.starts_with(field), "{field}: {problem}");
    }
    // What is odd, and works.
    let second = mamba2(Mamba2Config::new(0).with_a_init_range([2.0, 2.0])).with_d_model(64);
    let a_log = match &seeded(1, &device(), |device| second.init(device)).layers[0].mixer {
        Mixer::Mamba2(mixer) => values(mixer.a_log.val()),
        other => panic!("{other:?}"),
    };
    assert_eq!(a_log, [2.0f32.ln(); 2]);
}
