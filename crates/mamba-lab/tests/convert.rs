//! Models on their way to Hugging Face's layout and back.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use tempfile::TempDir;

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("mamba-lab").unwrap();
    command
        .args(arguments)
        .current_dir(folder)
        .env("MAMBA_LAB_CACHE", folder.join("cache"))
        .env("HF_HUB_OFFLINE", "1");
    command
}

/// Trains a tiny model of one mixer with that tokenizer for two steps, as run `tiny`.
fn train(folder: &Path, mixer: &str, tokenizer: &str) {
    let text = "the cat sat on the mat and the dog ran to the sea. ".repeat(40);
    fs::create_dir_all(folder.join("text")).unwrap();
    for split in ["train", "valid", "test"] {
        fs::write(folder.join(format!("text/{split}.txt")), &text).unwrap();
    }
    let experiment = format!(
        "name = \"tiny\"\n[model]\nd_model = 16\npattern = [\"{mixer}\"]\n\
         [model.mamba2]\nd_state = 8\nheaddim = 8\n[data]\ntokenizer = \"{tokenizer}\"\nseq_len = 16\n\
         batch_size = 4\n[training]\nmax_steps = 2\n[sample]\ntokens = 0\n"
    );
    fs::write(folder.join("tiny.toml"), experiment).unwrap();
    command(
        folder,
        &[
            "train",
            "tiny.toml",
            "--data-dir",
            "text",
            "--display",
            "plain",
        ],
    )
    .args(["--device", "flex"])
    .assert()
    .success();
}

#[test]
fn a_converted_model_writes_what_the_run_writes() {
    for mixer in ["mamba1", "mamba2"] {
        let folder = TempDir::new().unwrap();
        let folder = folder.path();
        train(folder, mixer, "gpt2");
        command(folder, &["convert", "tiny", "out/hub"])
            .assert()
            .success();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            assert!(folder.join("out/hub").join(file).is_file(), "{file}");
        }
        let text = |model: &str| {
            let output = command(folder, &["generate", model, "the cat", "-n", "12"])
                .args(["--temperature", "0", "--device", "flex"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(text("out/hub"), text("tiny"), "{mixer}");
        command(
            folder,
            &[
                "evaluate",
                "out/hub",
                "--data-dir",
                "text",
                "--device",
                "flex",
            ],
        )
        .assert()
        .success()
        .stdout(contains("test: loss"));
        // Nothing is overwritten, be it one file alone.
        for file in ["tokenizer.json", "model.safetensors"] {
            command(folder, &["convert", "tiny", "out/hub"])
                .assert()
                .failure()
                .stderr(contains(format!("out/hub/{file}")));
            fs::remove_file(folder.join("out/hub").join(file)).unwrap();
        }
    }
}

#[test]
fn folders_that_are_no_models_are_refused() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    train(folder, "mamba1", "bytes");
    command(folder, &["convert", "tiny", "hub"])
        .assert()
        .success();
    // Bytes have no tokenizer.json.
    command(folder, &["generate", "hub", "the"])
        .assert()
        .failure()
        .stderr(contains("tokenizer.json").and(contains("panicked").not()));
    fs::write(folder.join("hub/tokenizer.json"), "{}").unwrap();
    command(folder, &["generate", "hub", "the"])
        .assert()
        .failure()
        .stderr(contains("tokenizer.json"));
    fs::write(folder.join("hub/config.json"), "{\"model_type\": \"rwkv\"}").unwrap();
    command(folder, &["generate", "hub", "the"])
        .assert()
        .failure()
        .stderr(contains("model_type = rwkv is not supported"));
    fs::create_dir(folder.join("empty")).unwrap();
    command(folder, &["generate", "empty", "the"])
        .assert()
        .failure()
        .stderr(contains("empty"));
}
