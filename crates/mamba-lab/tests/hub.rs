//! Models by name on the command line, from a hub on this machine.
#![cfg(feature = "flex")]

#[path = "../../mamba-train/tests/server/mod.rs"]
mod server;

use std::path::Path;

use assert_cmd::Command;
use mamba_core::LanguageModelConfig;
use predicates::prelude::{PredicateBooleanExt, predicate};
use predicates::str::contains;
use server::{Models, Server, tiny_model, tokenizer};
use tempfile::TempDir;

const TOKENIZER: &str = "EleutherAI/gpt-neox-20b";

fn models() -> Models {
    let tiny = LanguageModelConfig::new()
        .with_vocab_size(16)
        .with_d_model(8);
    // As Mamba's authors publish theirs: the vocabulary of GPT-NeoX, and nothing to read it with.
    let mut old = tiny_model(&tiny.clone().with_vocab_size(50_277));
    old.remove("tokenizer.json");
    [
        ("someone/tiny".into(), tiny_model(&tiny)),
        ("someone/old".into(), old),
        (TOKENIZER.into(), [gpt_neox()].into()),
    ]
    .into()
}

/// A tokenizer whose last entry is that of GPT-NeoX.
fn gpt_neox() -> (String, Vec<u8>) {
    let (name, file) = tokenizer();
    let file = String::from_utf8(file).unwrap();
    let grown = file.replace("\"[UNK]\": 15", "\"[UNK]\": 50276");
    assert_ne!(grown, file);
    (name, grown.into_bytes())
}

fn command(folder: &Path, endpoint: &str, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("mamba-lab").unwrap();
    command
        .args(arguments)
        .current_dir(folder)
        .env("MAMBA_LAB_CACHE", folder.join("cache"))
        .env("HF_HOME", folder.join("home"))
        .env("HF_ENDPOINT", endpoint)
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE");
    command
}

#[test]
fn a_name_is_as_good_as_a_folder_also_without_a_network() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(models());
    command(folder.path(), &server.endpoint, &["info", "someone/tiny"])
        .assert()
        .success()
        .stdout(contains("someone/tiny: a pretrained model"));
    let generate = [
        "generate",
        "someone/tiny",
        "the river",
        "-n",
        "4",
        "--device",
        "flex",
    ];
    command(folder.path(), "http://127.0.0.1:9", &generate)
        .env("HF_HUB_OFFLINE", "1")
        .assert()
        .success()
        .stdout(contains("the river"));
}

#[test]
fn mamba_without_a_tokenizer_gets_that_of_gpt_neox() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(models());
    let generate = ["generate", "someone/old", "the river", "-n", "1"];
    command(folder.path(), &server.endpoint, &generate)
        .args(["--device", "flex"])
        .assert()
        .success();
    assert_eq!(
        server
            .ranges(&format!(
                "{TOKENIZER}/resolve/{}/tokenizer.json",
                server::COMMIT
            ))
            .len(),
        1
    );
}

#[test]
fn what_cannot_be_had_is_one_line() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(models());
    for (endpoint, name, want) in [
        (
            server.endpoint.as_str(),
            "someone/absent",
            "no public model of that name",
        ),
        ("http://127.0.0.1:9", "someone/tiny", "cannot be reached"),
    ] {
        let one_line = predicate::function(|text: &str| text.trim_end().lines().count() == 1);
        command(
            folder.path(),
            endpoint,
            &["generate", name, "the", "--device", "flex"],
        )
        .assert()
        .failure()
        .stderr(contains(want).and(contains(name)).and(one_line));
    }
}
