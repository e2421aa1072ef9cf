//! Folders in Hugging Face's layout: read, written, sharded, of the authors' form, and wrong in every way.
#![recursion_limit = "256"]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, Tensor};
use mamba_core::checkpoint::{self, CheckpointError};
use mamba_core::transformer::AttentionConfig;
use mamba_core::{LanguageModel, LanguageModelConfig, MixerKind};
use mamba_tests::devices::device;
use mamba_tests::fixtures::{self, Fixture};
use mamba_tests::hugging_face::{self, MODELS, Tensors};
use mamba_tests::tensors::{assert_fixture, int, values};
use mamba_tests::tolerances::LANGUAGE_MODEL_F32;
use serde_json::{Value, json};
use tempfile::TempDir;

fn logits(model: &LanguageModel, fixture: &Fixture) -> Tensor<3> {
    let ids = int::<2>(fixture.ints("input_ids"), &device());
    model.logits(model.hidden(ids, None))
}

/// Names and shapes of a file.
fn contents(path: &Path) -> BTreeSet<(String, Vec<usize>)> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter();
    tensors
        .map(|(name, it)| (name.to_owned(), it.shape().to_vec()))
        .collect()
}

#[test]
fn what_is_written_is_what_was_read() {
    for (name, model_type) in MODELS {
        let (model, config, fixture) = hugging_face::model(name, &device());
        let folder = TempDir::new().unwrap();
        checkpoint::save(&model, &config, folder.path()).unwrap();
        let source = hugging_face::folder(&fixture, model_type);
        let file = |folder: &TempDir| contents(&folder.path().join("model.safetensors"));
        assert_eq!(file(&folder), file(&source), "{name}");

        let (again, _) = checkpoint::load(folder.path(), &device()).unwrap();
        let (got, want) = (logits(&again, &fixture), logits(&model, &fixture));
        assert_eq!(values(got), values(want), "{name}");

        let error = checkpoint::save(&model, &config, folder.path()).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn what_is_broken_off_is_not_in_the_way() {
    let device = device();
    let config = LanguageModelConfig::new()
        .with_vocab_size(29)
        .with_d_model(16);
    let model = config.init(&device);
    for blocked in ["model.safetensors", "config.json"] {
        let folder = TempDir::new().unwrap();
        // Where the file would be written before it has its name.
        let part = format!("{blocked}.{}.part", std::process::id());
        fs::create_dir(folder.path().join(&part)).unwrap();
        let error = checkpoint::save(&model, &config, folder.path()).unwrap_err();
        assert!(error.to_string().contains(blocked), "{error}");
        fs::remove_dir(folder.path().join(&part)).unwrap();
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "{blocked}");
        checkpoint::save(&model, &config, folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

#[test]
fn rows_past_the_vocabulary_are_not_written() {
    let device = device();
    let config = LanguageModelConfig::new()
        .with_vocab_size(29)
        .with_d_model(16);
    let model = config.init(&device);
    let folder = TempDir::new().unwrap();
    checkpoint::save(&model, &config, folder.path()).unwrap();
    let (again, read) = checkpoint::load(folder.path(), &device).unwrap();
    assert_eq!(again.embedding.dims(), [29, 16]);
    assert_eq!(read.padded_vocab_size(), 29);
}

#[test]
fn shards_are_one_model() {
    let fixture = Fixture::load("mamba2_lm");
    let folder = hugging_face::folder(&fixture, "mamba2");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut first = hugging_face::tensors(&fixture);
    let second = first.split_off(first.len() / 2);
    let mut weight_map = serde_json::Map::new();
    for (name, part) in [
        ("model-00001-of-00002.safetensors", first),
        ("model-00002-of-00002.safetensors", second),
    ] {
        hugging_face::write(&folder.path().join(name), &part);
        weight_map.extend(
            part.iter()
                .map(|(tensor, _, _)| (tensor.clone(), json!(name))),
        );
    }
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, json!({ "weight_map": weight_map }).to_string()).unwrap();
    let (model, _) = checkpoint::load(folder.path(), &device()).unwrap();
    let got = logits(&model, &fixture);
    assert_fixture("shards", &fixture, "logits", got, LANGUAGE_MODEL_F32);

    // No file outside the folder, whatever an index says.
    fs::write(
        &index,
        json!({ "weight_map": { "x": "../model.safetensors" } }).to_string(),
    )
    .unwrap();
    let error = checkpoint::load(folder.path(), &device()).unwrap_err();
    assert!(
        error.to_string().contains("../model.safetensors"),
        "{error}"
    );
    // And a shard that is not there is named.
    fs::write(
        &index,
        json!({ "weight_map": { "x": "lost.safetensors" } }).to_string(),
    )
    .unwrap();
    let error = checkpoint::load(folder.path(), &device()).unwrap_err();
    assert!(error.to_string().contains("lost.safetensors"), "{error}");
}

#[test]
fn half_precision_files_become_f32() {
    let fixture = Fixture::load("mamba1_lm");
    let folder = hugging_face::folder(&fixture, "mamba");
    let tensors = hugging_face::tensors(&fixture);
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|it| it.to_le_bytes()[2..].to_vec())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    let (model, _) = checkpoint::load(folder.path(), &device()).unwrap();
    assert_eq!(model.embedding.val().dtype(), DType::F32);
    // Cut to eight bits of mantissa, not the same, but close.
    let want = fixture.floats("logits").values.clone();
    let got = values(logits(&model, &fixture));
    let error = got
        .iter()
        .zip(&want)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!((1e-4..0.5).contains(&error), "{error}");
}

#[test]
fn the_authors_own_files_are_read() {
    for kind in ["mamba1", "mamba2"] {
        let fixture = Fixture::load(&format!("{kind}_lm"));
        let folder = fixtures::folder().join(format!("{kind}_original"));
        let (model, config) = checkpoint::load(&folder, &device()).unwrap();
        // 37 tokens in 40 rows.
        assert_eq!((config.vocab_size, model.embedding.dims()), (37, [40, 16]));
        let got = logits(&model, &fixture);
        let want = fixture.floats("logits");
        let (got, width) = (values(got), want.shape[2]);
        for (row, want) in want.values.chunks(width).enumerate() {
            for (column, want) in want[..37].iter().enumerate() {
                let got = got[row * 37 + column];
                assert!(
                    (got - want).abs() < 1e-4,
                    "{kind}, row {row}: {got} instead of {want}"
                );
            }
        }
    }
}

/// Whatever is wrong with a folder made right.
fn error_of(spoil: impl FnOnce(&Path, &mut Tensors, &mut Value)) -> CheckpointError {
    let fixture = Fixture::load("mamba1_lm");
    let folder = TempDir::new().unwrap();
    let mut tensors = hugging_face::tensors(&fixture);
    let mut config = hugging_face::config(&fixture, "mamba");
    let weights = folder.path().join("model.safetensors");
    spoil(folder.path(), &mut tensors, &mut config);
    if !weights.exists() {
        hugging_face::write(&weights, &tensors);
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    checkpoint::load(folder.path(), &device()).unwrap_err()
}

#[test]
fn tensors_that_do_not_fit_are_listed() {
    let error = error_of(|_, tensors, _| {
        let place = |tensors: &Tensors, end: &str| {
            tensors.iter().position(|it| it.0.ends_with(end)).unwrap()
        };
        let lost = place(tensors, "layers.1.mixer.A_log");
        tensors.remove(lost);
        let flat = place(tensors, "layers.0.mixer.D");
        tensors[flat].1 = vec![2, 16];
        tensors.push(("visitor".into(), vec![1], vec![0.0]));
    });
    let CheckpointError::Tensors {
        missing,
        unused,
        misshapen,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(missing, &["backbone.layers.1.mixer.A_log"]);
    assert_eq!(unused, &["visitor"]);
    assert!(
        misshapen.len() == 1 && misshapen[0].contains("layers.0.mixer.d"),
        "{misshapen:?}"
    );
    assert!(
        error
            .to_string()
            .contains("missing: backbone.layers.1.mixer.A_log"),
        "{error}"
    );
}

/// Tensors of every layout: as they are, transposed, depthwise filters, and parts that are joined.
#[test]
fn tensors_with_values_that_are_not_finite_are_named() {
    let spoilt = [
        ("layers.0.mixer.conv1d.weight", f32::NAN),
        ("layers.1.mixer.in_proj.weight", f32::INFINITY),
        ("layers.1.mixer.D", f32::NEG_INFINITY),
    ];
    let error = error_of(|_, tensors, _| {
        for (end, value) in spoilt {
            let tensor = tensors.iter_mut().find(|it| it.0.ends_with(end));
            *tensor.unwrap().2.last_mut().unwrap() = value;
        }
    });
    let CheckpointError::NotFinite { broken, .. } = &error else {
        panic!("{error}")
    };
    let want = [
        "0.mixer.conv1d.weight",
        "1.mixer.D",
        "1.mixer.in_proj.weight",
    ];
    assert_eq!(*broken, want.map(|it| format!("backbone.layers.{it}")));
    assert!(
        error.to_string().contains("NaN or infinite values are in"),
        "{error}"
    );

    let fixture = Fixture::load("llama_lm");
    let folder = hugging_face::folder(&fixture, "llama");
    let mut tensors = hugging_face::tensors(&fixture);
    let up = tensors
        .iter_mut()
        .find(|it| it.0.ends_with("1.mlp.up_proj.weight"));
    up.unwrap().2[3] = f32::NAN;
    hugging_face::write(&folder.path().join("model.safetensors"), &tensors);
    let error = checkpoint::load(folder.path(), &device()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("in: model.layers.1.mlp.up_proj.weight"),
        "{error}"
    );
}

#[test]
fn damaged_files_end_in_an_error() {
    let truncated = error_of(|folder, tensors, _| {
        let path = folder.join("model.safetensors");
        hugging_face::write(&path, tensors);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    });
    assert!(
        matches!(truncated, CheckpointError::Damaged { .. }),
        "{truncated}"
    );
    // A header that claims to be longer than any file.
    let hostile = error_of(|folder, _, _| {
        let bytes = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
    });
    assert!(
        matches!(hostile, CheckpointError::Damaged { .. }),
        "{hostile}"
    );
    let empty = error_of(|folder, _, _| fs::write(folder.join("model.safetensors"), b"").unwrap());
    assert!(matches!(empty, CheckpointError::Damaged { .. }), "{empty}");

    let folder = TempDir::new().unwrap();
    let error = checkpoint::load(folder.path(), &device()).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    fs::write(
        folder.path().join("config.json"),
        r#"{"model_type": "mamba"}"#,
    )
    .unwrap();
    let error = checkpoint::load(folder.path(), &device()).unwrap_err();
    assert!(
        matches!(error, CheckpointError::NoWeights { .. }),
        "{error}"
    );
    fs::write(folder.path().join("pytorch_model.bin"), b"PK no archive").unwrap();
    let error = checkpoint::load(folder.path(), &device()).unwrap_err();
    assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
}

#[test]
fn a_text_ends_as_the_settings_of_generation_say_or_else_the_model_s() {
    let folder = TempDir::new().unwrap();
    let ends = |file: &str, json: &str| {
        fs::write(folder.path().join(file), json).unwrap();
        checkpoint::read_end_tokens(folder.path())
    };
    let told = |file, json| ends(file, json).unwrap();
    assert!(told("config.json", "{}").is_empty());
    assert!(told("config.json", r#"{"eos_token_id": null}"#).is_empty());
    assert_eq!(told("config.json", r#"{"eos_token_id": 7}"#), [7]);
    assert_eq!(told("generation_config.json", "{}"), [7]);
    let several = r#"{"eos_token_id": [2, -1, 9]}"#;
    assert_eq!(told("generation_config.json", several), [2, 9]);
    let error = ends("generation_config.json", "{").unwrap_err();
    assert!(
        error.to_string().contains("generation_config.json"),
        "{error}"
    );
}

#[test]
fn configurations_that_are_not_ours_are_refused() {
    let error = |change: fn(&mut Value)| error_of(|_, _, config| change(config)).to_string();
    let other = error(|config| config["model_type"] = json!("rwkv"));
    assert!(
        other.contains("model_type = rwkv is not supported"),
        "{other}"
    );
    let activation = error(|config| config["hidden_act"] = json!("relu"));
    assert!(activation.contains("hidden_act"), "{activation}");
    let size = error(|config| config["state_size"] = json!("many"));
    assert!(
        size.contains("config.json") && size.contains("many"),
        "{size}"
    );
    let none = error(|config| config["num_hidden_layers"] = json!(0));
    assert!(none.contains("n_layer must be at least 1"), "{none}");
}

/// Sizes that would take terabytes, or overflow, if the files did not have to bear them out first.
#[test]
fn sizes_that_no_file_bears_out_are_refused_by_name() {
    let large = 1u64 << 30;
    for (model, field, value, want) in [
        (
            "mamba1_lm",
            "num_hidden_layers",
            1_000_000_000_000,
            "n_layer",
        ),
        ("mamba1_lm", "num_hidden_layers", large, "1073741824 layers"),
        ("mamba1_lm", "hidden_size", 1_000_000_000_000, "d_model"),
        ("mamba1_lm", "hidden_size", 1 << 63, "d_model"),
        (
            "mamba1_lm",
            "hidden_size",
            large,
            "backbone.embeddings.weight",
        ),
        (
            "mamba1_lm",
            "vocab_size",
            large,
            "backbone.embeddings.weight",
        ),
        ("mamba1_lm", "expand", large, "0.mixer.in_proj.weight"),
        (
            "mamba1_lm",
            "time_step_rank",
            large,
            "0.mixer.x_proj.weight",
        ),
        ("mamba1_lm", "time_step_rank", u64::MAX, "dt_rank"),
        ("mamba1_lm", "conv_kernel", large, "0.mixer.conv1d.weight"),
        ("mamba2_lm", "hidden_size", 1 << 63, "hidden_size"),
        ("mamba2_lm", "n_groups", 0, "ngroups"),
        ("mamba2_lm", "conv_kernel", large, "0.mixer.conv1d.weight"),
        ("gpt2_lm", "n_positions", large, "wpe.weight"),
        ("gpt2_lm", "n_inner", large, "h.0.mlp.c_fc.weight"),
        ("gpt2_lm", "n_embd", u64::MAX, "d_model"),
        ("llama_lm", "intermediate_size", large, "0.mlp.gate_proj"),
        ("llama_lm", "head_dim", large, "0.self_attn.q_proj"),
        ("llama_lm", "head_dim", 0, "attention.head_dim"),
        ("llama_lm", "intermediate_size", 0, "mlp.d_hidden"),
    ] {
        let (_, model_type) = MODELS.into_iter().find(|it| it.0 == model).unwrap();
        let fixture = Fixture::load(model);
        let folder = hugging_face::folder(&fixture, model_type);
        let mut config = hugging_face::config(&fixture, model_type);
        config[field] = json!(value);
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = checkpoint::load(folder.path(), &device()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(want), "{model}, {field}: {message}");
    }
}

/// The same number of rows in all, cut elsewhere.
#[test]
fn parts_of_a_joined_matrix_have_sizes_of_their_own() {
    let fixture = Fixture::load("llama_lm");
    let folder = hugging_face::folder(&fixture, "llama");
    let mut tensors = hugging_face::tensors(&fixture);
    for (name, more) in [("gate_proj", true), ("up_proj", false)] {
        let end = format!("0.mlp.{name}.weight");
        let (_, shape, values) = tensors.iter_mut().find(|it| it.0.ends_with(&end)).unwrap();
        shape[0] = if more { shape[0] + 1 } else { shape[0] - 1 };
        values.resize(shape[0] * shape[1], 0.5);
    }
    hugging_face::write(&folder.path().join("model.safetensors"), &tensors);
    let error = checkpoint::load(folder.path(), &device()).unwrap_err();
    assert!(error.to_string().contains("0.mlp.up_proj"), "{error}");
}

#[test]
fn models_without_a_counterpart_are_not_written() {
    let device = device();
    let config = LanguageModelConfig::new()
        .with_vocab_size(29)
        .with_d_model(16)
        .with_pattern(vec![MixerKind::Mamba1, MixerKind::Attention])
        .with_attention(AttentionConfig::new(0, 4));
    let folder = TempDir::new().unwrap();
    let error = checkpoint::save(&config.init(&device), &config, folder.path()).unwrap_err();
    assert!(
        matches!(error, CheckpointError::NoCounterpart(_)),
        "{error}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
