//! Models of odd settings against Hugging Face transformers: read, stepped, packed, continued, trained and written.
#![recursion_limit = "256"]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, s};
use mamba_core::checkpoint;
use mamba_core::{LanguageModel, MixerKind, Sampler, SamplingConfig};
use mamba_tests::devices::device;
use mamba_tests::fixtures::Fixture;
use mamba_tests::hugging_face::{self, parities, parity_folder, parity_model};
use mamba_tests::tensors::{assert_fixture, assert_same, float, int, values};
use mamba_tests::tolerances::{LANGUAGE_MODEL_F32, LANGUAGE_MODEL_F32_GRADIENT};
use serde_json::{Value, json};
use tempfile::TempDir;

fn prompt(fixture: &Fixture, device: &Device) -> Tensor<2, Int> {
    int::<2>(fixture.ints("input_ids"), device)
}

#[test]
fn logits_and_hidden_states_equal_transformers() {
    let device = device();
    for name in parities() {
        let (model, _, fixture) = parity_model(&name, &device);
        let hidden = model.hidden(prompt(&fixture, &device), None);
        assert_fixture(
            &name,
            &fixture,
            "hidden",
            hidden.clone(),
            LANGUAGE_MODEL_F32,
        );
        let logits = model.logits(hidden);
        assert_fixture(&name, &fixture, "logits", logits, LANGUAGE_MODEL_F32);
    }
}

#[test]
fn a_prompt_in_pieces_and_tokens_equals_the_whole() {
    let device = device();
    for name in parities() {
        let (model, _, fixture) = parity_model(&name, &device);
        let ids = prompt(&fixture, &device);
        let want = float::<3>(fixture.floats("logits"), &device);
        let at = |t: usize| want.clone().slice(s![.., t..t + 1]).squeeze_dim::<2>(1);
        let mut state = model.initial_state(2, &device);
        for (from, to) in [(0, 4), (4, 7), (7, 8)] {
            let (logits, next) = model.prefill(ids.clone().slice(s![.., from..to]), state);
            state = next;
            assert_same(&name, logits, at(to - 1), LANGUAGE_MODEL_F32);
        }
        let last = ids.slice(s![.., 8..9]).squeeze_dim::<1>(1);
        let (logits, _) = model.step(last, state);
        assert_same(&name, logits, at(8), LANGUAGE_MODEL_F32);
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let device = device();
    for name in parities() {
        let (model, _, fixture) = parity_model(&name, &device);
        if model.max_positions().is_some() {
            continue; // learned positions cannot be packed
        }
        let ids = prompt(&fixture, &device);
        let [rows, length] = ids.dims();
        let packed = ids.reshape([1, rows * length]);
        let seq_idx = Tensor::<1, Int>::arange(0..(rows * length) as i64, &device);
        let seq_idx = (seq_idx / length as i64).unsqueeze::<2>();
        let logits = model.logits(model.hidden(packed, Some(seq_idx)));
        let [_, _, vocab_size] = logits.dims();
        let logits = logits.reshape([rows, length, vocab_size]);
        assert_fixture(&name, &fixture, "logits", logits, LANGUAGE_MODEL_F32);
    }
}

/// Both rows at once, a step of the modules a token.
fn stepped(model: &LanguageModel, ids: Tensor<2, Int>, count: usize) -> Vec<Vec<i64>> {
    let device = ids.device();
    let [rows, _] = ids.dims();
    let mut tokens = vec![Vec::new(); rows];
    let (mut logits, mut state) = model.prefill(ids, model.initial_state(rows, &device));
    for _ in 0..count {
        let best = logits.argmax(1).squeeze_dim::<1>(1);
        let chosen = best.clone().into_data();
        for (row, token) in tokens.iter_mut().zip(chosen.iter::<i64>()) {
            row.push(token);
        }
        (logits, state) = model.step(best, state);
    }
    tokens
}

#[test]
fn sixty_four_greedy_tokens_equal_transformers() {
    let device = device();
    for name in parities() {
        let (model, _, fixture) = parity_model(&name, &device);
        let (ids, want) = (fixture.ints("input_ids"), fixture.ints("greedy_ids"));
        let (length, count) = (ids.shape[1], want.shape[1]);
        assert_eq!(count, 64, "{name}");
        let want: Vec<&[i64]> = want.values.chunks(count).collect();
        assert_eq!(
            stepped(&model, prompt(&fixture, &device), count),
            want,
            "{name}, stepped"
        );
        for (row, want) in want.into_iter().enumerate() {
            let ids = ids.values[row * length..][..length].iter();
            let prompt: Vec<u32> = ids.map(|id| *id as u32).collect();
            let greedy = SamplingConfig {
                temperature: 0.0,
                ..Default::default()
            };
            let tokens = model
                .generate(&prompt, Sampler::new(greedy).unwrap(), &device)
                .unwrap();
            let got: Vec<i64> = tokens
                .take(count)
                .map(|it| i64::from(it.unwrap()))
                .collect();
            assert_eq!(got, want, "{name}, row {row}");
        }
    }
}

#[test]
fn losses_and_gradients_equal_transformers() {
    let device = device().autodiff();
    for name in parities() {
        let (model, _, fixture) = parity_model(&name, &device);
        let ids = prompt(&fixture, &device);
        let [_, length] = ids.dims();
        let (inputs, targets) = (
            ids.clone().slice(s![.., ..length - 1]),
            ids.slice(s![.., 1..]),
        );
        let loss = model.loss(inputs, targets);
        let want = Tensor::from_data(fixture.floats("loss").values.as_slice(), &device);
        assert_same(&name, loss.clone(), want, LANGUAGE_MODEL_F32);
        let gradient = model.embedding.grad(&loss.backward()).unwrap();
        assert_fixture(
            &name,
            &fixture,
            "grad.embedding",
            gradient,
            LANGUAGE_MODEL_F32_GRADIENT,
        );
    }
}

/// Names and shapes of a folder's weights, under the names of published files.
fn contents(folder: &TempDir) -> BTreeSet<(String, Vec<usize>)> {
    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let is_neox = file.names().iter().any(|name| name.starts_with("gpt_neox"));
    let tensors = file.iter();
    tensors
        .map(|(name, it)| match name {
            "lm_head.weight" if is_neox => ("embed_out.weight".to_owned(), it.shape().to_vec()),
            name => (name.to_owned(), it.shape().to_vec()),
        })
        .collect()
}

#[test]
fn what_is_written_is_what_was_read() {
    let device = device();
    for name in parities() {
        let (model, config, fixture) = parity_model(&name, &device);
        let folder = TempDir::new().unwrap();
        checkpoint::save(&model, &config, folder.path()).unwrap();
        assert_eq!(
            contents(&folder),
            contents(&parity_folder(&fixture)),
            "{name}"
        );
        let (again, read) = checkpoint::load(folder.path(), &device).unwrap();
        let mut config = config;
        // "auto" is written as the number that it stands for.
        config.mamba1.dt_rank = read.mamba1.dt_rank;
        assert_eq!(read.to_string(), config.to_string(), "{name}");
        let logits = |model: &LanguageModel| {
            let ids = prompt(&fixture, &device);
            values(model.logits(model.hidden(ids, None)))
        };
        assert_eq!(logits(&again), logits(&model), "{name}");
    }
}

/// The folder of a fixture, its configuration and weights changed.
fn changed(name: &str, change: impl FnOnce(&mut Value, &mut hugging_face::Tensors)) -> TempDir {
    let fixture = Fixture::load(name);
    let folder = parity_folder(&fixture);
    let mut config: Value = serde_json::from_str(&fixture.setting::<String>("config")).unwrap();
    let mut tensors = hugging_face::tensors(&fixture);
    change(&mut config, &mut tensors);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    hugging_face::write(&folder.path().join("model.safetensors"), &tensors);
    folder
}

#[test]
fn older_files_of_gpt_neox_are_read() {
    let device = device();
    let folder = changed("parity_pythia", |config, tensors| {
        // What versions before the fifth wrote: another name of the head, constants among the weights.
        for (name, _, _) in tensors.iter_mut() {
            if name == "lm_head.weight" {
                *name = "embed_out.weight".into();
            }
        }
        let layer = "gpt_neox.layers.1.attention";
        tensors.push((format!("{layer}.bias"), vec![1, 1, 2, 2], vec![1.0; 4]));
        tensors.push((format!("{layer}.masked_bias"), vec![1], vec![-1e9]));
        tensors.push((format!("{layer}.rotary_emb.inv_freq"), vec![1], vec![1.0]));
        config["classifier_dropout"] = json!(0.1);
    });
    let (model, _) = checkpoint::load(folder.path(), &device).unwrap();
    let fixture = Fixture::load("parity_pythia");
    let logits = model.logits(model.hidden(prompt(&fixture, &device), None));
    assert_fixture("pythia", &fixture, "logits", logits, LANGUAGE_MODEL_F32);
    // And what the fifth writes, where the share stands with the base.
    let folder = changed("parity_pythia", |config, _| {
        let fields = config.as_object_mut().unwrap();
        fields.remove("rotary_pct");
        fields.remove("rotary_emb_base");
        let rope =
            json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25});
        fields.insert("rope_parameters".into(), rope);
    });
    let (model, _) = checkpoint::load(folder.path(), &device).unwrap();
    let logits = model.logits(model.hidden(prompt(&fixture, &device), None));
    assert_fixture("version 5", &fixture, "logits", logits, LANGUAGE_MODEL_F32);
}

#[test]
fn what_is_not_computed_here_is_refused_by_name() {
    for (name, field, value, want) in [
        ("parity_pythia", "hidden_act", json!("relu"), "hidden_act"),
        ("parity_pythia", "rotary_pct", json!(0.2), "rotary_dim"),
        ("parity_pythia", "rotary_pct", json!(1.5), "rotary_pct"),
        (
            "parity_pythia",
            "num_attention_heads",
            json!(3),
            "num_attention_heads",
        ),
        (
            "parity_pythia",
            "rope_scaling",
            json!({"type": "linear", "factor": 2}),
            "rope_scaling",
        ),
        (
            "parity_pythia",
            "rope_parameters",
            json!({"rope_type": "yarn"}),
            "rope_type",
        ),
        (
            "parity_pythia",
            "rope_parameters",
            json!({"type": "linear", "factor": 2}),
            "rope_type",
        ),
        ("parity_pythia", "head_dim", json!(2), "head_dim"),
        (
            "parity_gpt2_exact_gelu",
            "scale_attn_weights",
            json!(false),
            "scale_attn_weights",
        ),
        (
            "parity_gpt2_exact_gelu",
            "scale_attn_by_inverse_layer_idx",
            json!(true),
            "scale_attn_by_inverse_layer_idx",
        ),
        (
            "parity_gpt2_exact_gelu",
            "add_cross_attention",
            json!(true),
            "add_cross_attention",
        ),
        (
            "parity_llama_grouped",
            "hidden_act",
            json!("gelu"),
            "hidden_act",
        ),
        (
            "parity_llama_grouped",
            "attention_bias",
            json!(true),
            "attention_bias",
        ),
        ("parity_llama_grouped", "mlp_bias", json!(true), "mlp_bias"),
        (
            "parity_llama_grouped",
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8}),
            "rope_scaling",
        ),
        (
            "parity_falcon_mamba",
            "intermediate_size",
            json!(33),
            "intermediate_size",
        ),
        (
            "parity_falcon_mamba",
            "mixer_rms_eps",
            json!(-1.0),
            "dt_bc_rms_epsilon",
        ),
        (
            "parity_mamba2_state16",
            "layer_norm_epsilon",
            json!(1e-6),
            "layer_norm_epsilon",
        ),
    ] {
        let folder = changed(name, |config, _| config[field] = value);
        let error = checkpoint::load(folder.path(), &device()).unwrap_err();
        assert!(error.to_string().contains(want), "{name}, {field}: {error}");
    }
    let folder = changed("parity_pythia", |_, tensors| {
        // 47 rows are of no number of heads.
        let fused = "gpt_neox.layers.0.attention.query_key_value.weight";
        let tensor = tensors.iter_mut().find(|it| it.0 == fused).unwrap();
        (tensor.1, tensor.2) = (vec![47, 16], vec![0.5; 47 * 16]);
    });
    let error = checkpoint::load(folder.path(), &device()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("of another shape") && message.contains("layers.0.mixer.in_proj.weight"),
        "{message}"
    );
}

#[test]
fn a_parallel_residual_reads_before_it_writes() {
    let device = device();
    let (_, config, fixture) = parity_model("parity_pythia", &device);
    assert_eq!(config.pattern, [MixerKind::Attention, MixerKind::Mlp]);
    let folder = changed("parity_pythia", |config, _| {
        config["use_parallel_residual"] = json!(false);
    });
    let (sequential, _) = checkpoint::load(folder.path(), &device).unwrap();
    let ids = prompt(&fixture, &device);
    let got = values(sequential.logits(sequential.hidden(ids, None)));
    let want = &fixture.floats("logits").values;
    let error = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    assert!(
        error.fold(0.0, f32::max) > 0.1,
        "the fixture tells no order from another"
    );
}

#[test]
fn files_of_the_fixtures_stay_small() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures"));
    let files = fs::read_dir(folder).unwrap();
    let bytes: u64 = files.map(|it| it.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 1_500_000, "{bytes} bytes");
}
