//! A model that computes in bf16 beside the same model in f32.
#![recursion_limit = "256"]

use burn::tensor::{DType, Int, Tensor};
use mamba_core::{LanguageModel, LanguageModelConfig, MixerKind, Precision};
use mamba_tests::devices::{device, seeded};

const VOCABULARY: usize = 61;

fn model(mixers: &[MixerKind]) -> Option<LanguageModel> {
    let device = device().autodiff();
    if !Precision::Bf16.is_supported(&device) {
        println!("not tested: the device has no bf16");
        return None;
    }
    let config = LanguageModelConfig::new()
        .with_vocab_size(VOCABULARY)
        .with_d_model(32)
        .with_n_layer(2)
        .with_pattern(mixers.to_vec());
    Some(seeded(5, &device, |device| config.init(device)))
}

/// Inputs and targets, `[3, 20]`.
fn tokens() -> [Tensor<2, Int>; 2] {
    let device = device().autodiff();
    let all: Vec<i32> = (0..63).map(|i| i * 7919 % VOCABULARY as i32).collect();
    let all = Tensor::<2, Int>::from_data(burn::tensor::TensorData::new(all, [3, 21]), &device);
    [all.clone().narrow(1, 0, 20), all.narrow(1, 1, 20)]
}

/// The loss and the gradients of the embedding and of the first layer's norm, in f32.
fn loss_and_gradients(model: &LanguageModel) -> (f64, [Vec<f32>; 2]) {
    let [inputs, targets] = tokens();
    let loss = model.loss(inputs, targets);
    assert_eq!(loss.dtype(), DType::F32);
    let gradients = loss.backward();
    let embedding = model.embedding.val().grad(&gradients).expect("a gradient");
    let norm = model.layers[0]
        .norm
        .gamma
        .val()
        .grad(&gradients)
        .expect("a gradient");
    assert_eq!([embedding.dtype(), norm.dtype()], [DType::F32; 2]);
    let values = [embedding.into_data(), norm.into_data()].map(|it| it.iter::<f32>().collect());
    (f64::from(loss.into_scalar::<f32>()), values)
}

/// The length of the difference over the length of `want`.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|it| f64::from(it).powi(2)).sum::<f64>().sqrt()
    };
    norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied())
}

fn bf16_follows_f32(mixers: &[MixerKind]) {
    let Some(model) = model(mixers) else { return };
    let (loss, gradients) = loss_and_gradients(&model);
    let half = model.with_precision(Precision::Bf16);
    let (half_loss, half_gradients) = loss_and_gradients(&half);
    assert!(
        (half_loss - loss).abs() < 5e-3 * loss,
        "{half_loss} instead of {loss}"
    );
    for (got, want) in half_gradients.iter().zip(&gradients) {
        let distance = distance(got, want);
        // Rounded to eight bits all the way, but not the same.
        assert!((1e-4..3e-2).contains(&distance), "off by {distance}");
    }
}

#[test]
fn mamba1_in_bf16() {
    bf16_follows_f32(&[MixerKind::Mamba1]);
}

#[test]
fn mamba2_in_bf16() {
    bf16_follows_f32(&[MixerKind::Mamba2]);
}

#[test]
fn a_transformer_in_bf16() {
    bf16_follows_f32(&[MixerKind::Attention, MixerKind::Mlp]);
}

/// The last logits of a prompt read in one pass beside those of its tokens read one at a time.
fn steps_follow_the_prompt(mixers: &[MixerKind]) {
    let Some(model) = model(mixers) else { return };
    let model = model.with_precision(Precision::Bf16);
    let device = device().autodiff();
    let [tokens, _] = tokens();
    let (whole, _) = model.prefill(tokens.clone(), model.initial_state(3, &device));
    let mut state = model.initial_state(3, &device);
    let mut stepped = None;
    for column in tokens.iter_dim(1) {
        let (logits, after) = model.step(column.reshape([3]), state);
        (stepped, state) = (Some(logits), after);
    }
    let [got, want]: [Vec<f32>; 2] = [stepped.expect("there are tokens"), whole]
        .map(|it| it.into_data().iter::<f32>().collect());
    let distance = distance(&got, &want);
    assert!(distance < 3e-2, "off by {distance}");
}

#[test]
fn mamba1_steps_in_bf16() {
    steps_follow_the_prompt(&[MixerKind::Mamba1]);
}

#[test]
fn mamba2_steps_in_bf16() {
    steps_follow_the_prompt(&[MixerKind::Mamba2]);
}

#[test]
fn attention_steps_in_bf16() {
    steps_follow_the_prompt(&[MixerKind::Mamba2, MixerKind::Attention, MixerKind::Mlp]);
}
