//! Generation against stepping through the modules: on CubeCL devices Mamba-1 and Mamba-2 are decoded by kernels of their own.
#![recursion_limit = "256"]

use burn::module::Param;
use burn::tensor::{Device, Int, Tensor, TensorData};
use mamba_core::{
    LanguageModel, LanguageModelConfig, Mamba1Config, Mamba2Config, MixerKind, Precision, Sampler,
    SamplingConfig,
};
use mamba_tests::devices::{device, seeded};

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];
const TOKENS: usize = 12;

fn config() -> LanguageModelConfig {
    LanguageModelConfig::new()
        .with_vocab_size(301)
        .with_d_model(32)
        .with_n_layer(2)
}

/// Whose prompts go through the modules.
fn biased() -> LanguageModelConfig {
    config()
        .with_d_model(36)
        .with_tie_embeddings(false)
        .with_mamba1(
            Mamba1Config::new(0)
                .with_bias(true)
                .with_conv_bias(false)
                .with_d_state(5),
        )
}

/// Layers of Mamba-2, and of Mamba-1 between them.
fn hybrid() -> LanguageModelConfig {
    config()
        .with_n_layer(3)
        .with_pattern(vec![MixerKind::Mamba2, MixerKind::Mamba1])
        .with_mamba2(Mamba2Config::new(0).with_headdim(16).with_d_state(24))
}

/// Whose gated norm is a launch of its own, over groups of heads.
fn grouped() -> LanguageModelConfig {
    config().with_pattern(vec![MixerKind::Mamba2]).with_mamba2(
        Mamba2Config::new(0)
            .with_headdim(16)
            .with_d_state(8)
            .with_ngroups(2)
            .with_norm_before_gate(true)
            .with_d_has_hdim(true)
            .with_dt_limit([0.0, 0.05]),
    )
}

/// Whose prompts go through the modules.
fn unnormed() -> LanguageModelConfig {
    config().with_pattern(vec![MixerKind::Mamba2]).with_mamba2(
        Mamba2Config::new(0)
            .with_headdim(16)
            .with_d_state(8)
            .with_rmsnorm(false),
    )
}

/// Embeddings so large that tokens tell each other apart.
fn model(config: LanguageModelConfig, device: &Device) -> LanguageModel {
    let mut model = seeded(7, device, |device| config.init(device));
    model.embedding = scaled(model.embedding);
    model.head = model.head.map(scaled);
    model
}

fn scaled(table: Param<Tensor<2>>) -> Param<Tensor<2>> {
    table.map(|table| table * 25.0)
}

fn generated(model: &LanguageModel, config: &SamplingConfig, device: &Device) -> Vec<u32> {
    let sampler = Sampler::new(config.clone()).unwrap();
    let generator = model.generate(&PROMPT, sampler, device).unwrap();
    generator.take(TOKENS).map(|token| token.unwrap()).collect()
}

/// What the modules and the sampler on the host say.
fn stepped(model: &LanguageModel, config: &SamplingConfig, device: &Device) -> Vec<u32> {
    let mut sampler = Sampler::new(config.clone()).unwrap();
    let prompt = TensorData::new(PROMPT.map(|token| token as i32).to_vec(), [1, PROMPT.len()]);
    let prompt = Tensor::<2, Int>::from_data(prompt, device);
    let (mut logits, mut state) = model.prefill(prompt, model.initial_state(1, device));
    let mut history = PROMPT.to_vec();
    for _ in 0..TOKENS {
        let mut values: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let token = sampler.sample(&mut values, &history).unwrap();
        history.push(token);
        let token = Tensor::<1, Int>::from_data([token as i32], device);
        (logits, state) = model.step(token, state);
    }
    history.split_off(PROMPT.len())
}

fn greedy() -> SamplingConfig {
    SamplingConfig {
        temperature: 0.0,
        ..Default::default()
    }
}

#[test]
fn the_most_likely_tokens_are_those_of_the_modules() {
    let device = device();
    for config in [config(), biased(), hybrid(), grouped(), unnormed()] {
        let model = model(config, &device);
        let want = stepped(&model, &greedy(), &device);
        assert_eq!(generated(&model, &greedy(), &device), want);
    }
}

#[test]
fn a_seed_names_the_same_tokens_whoever_chooses() {
    let device = device();
    let model = model(biased(), &device);
    for seed in 0..3 {
        let config = SamplingConfig {
            seed,
            ..Default::default()
        };
        let want = stepped(&model, &config, &device);
        assert_eq!(generated(&model, &config, &device), want, "seed {seed}");
    }
}

#[test]
fn filters_apply() {
    let device = device();
    let model = model(config(), &device);
    let config = SamplingConfig {
        top_k: Some(20),
        top_p: 0.9,
        repetition_penalty: 1.3,
        seed: 5,
        ..Default::default()
    };
    let want = stepped(&model, &config, &device);
    assert_eq!(generated(&model, &config, &device), want);
}

/// Two mixers of which one has no kernel to decode it, and one with an MLP beside its recurrence.
#[test]
fn other_mixers_are_stepped() {
    let device = device();
    let mixed = config().with_pattern(vec![MixerKind::Mamba1, MixerKind::Mlp]);
    let beside = config().with_pattern(vec![MixerKind::Mamba2]).with_mamba2(
        Mamba2Config::new(0)
            .with_headdim(16)
            .with_d_state(8)
            .with_d_ssm(Some(32)),
    );
    for config in [mixed, beside] {
        let model = model(config, &device);
        let want = stepped(&model, &greedy(), &device);
        assert_eq!(generated(&model, &greedy(), &device), want);
    }
}

/// The kernels know one epsilon.
#[test]
fn norms_that_differ_are_stepped() {
    let device = device();
    let mut model = model(config(), &device);
    model.layers[0].norm.epsilon = 30.0;
    let want = stepped(&model, &greedy(), &device);
    assert_eq!(generated(&model, &greedy(), &device), want);
}

/// Products in bf16 round each a little: the tokens are likely ones all the same.
#[test]
fn bf16_chooses_likely_tokens() {
    let device = device();
    if !Precision::Bf16.is_supported(&device) {
        println!("not tested: {device:?} has no bf16");
        return;
    }
    let single = model(config(), &device);
    let half = single.clone().with_precision(Precision::Bf16);
    let mut history = PROMPT.to_vec();
    history.extend(generated(&half, &greedy(), &device));
    for end in PROMPT.len()..history.len() {
        let ids: Vec<i32> = history[..end].iter().map(|&it| it as i32).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, end]), &device);
        let (logits, _) = single.prefill(ids, single.initial_state(1, &device));
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        let spread = most - logits.iter().copied().fold(f32::MAX, f32::min);
        let chosen = logits[history[end] as usize];
        assert!(most - chosen < 0.02 * spread, "{chosen} of {most} at {end}");
    }
}

#[test]
fn a_model_that_diverged_is_an_error() {
    let device = device();
    let mut model = model(config(), &device);
    model.norm.gamma = model.norm.gamma.map(|gamma| gamma * f32::NAN);
    for temperature in [0.0, 1.0] {
        let config = SamplingConfig {
            temperature,
            ..Default::default()
        };
        let sampler = Sampler::new(config).unwrap();
        let first = model.generate(&PROMPT, sampler, &device).unwrap().next();
        let error = first.unwrap().unwrap_err().to_string();
        assert!(error.contains("diverged"), "{error}");
    }
}
