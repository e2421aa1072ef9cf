//! Tokenizers of other models, and none.
#![cfg(feature = "flex")]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use burn::tensor::Device;
use mamba_core::{LanguageModelConfig, checkpoint};
use mamba_train::tokenizer::Tokenizer;
use predicates::prelude::{PredicateBooleanExt, predicate};
use predicates::str::{contains, is_empty};
use tempfile::TempDir;

struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(TempDir::new().unwrap());
        let text = "the cat sat on the mat and the dog ran to the sea. ".repeat(40);
        fs::create_dir(workshop.path("text")).unwrap();
        for split in ["train", "valid", "test"] {
            fs::write(workshop.path(&format!("text/{split}.txt")), &text).unwrap();
        }
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A pretrained model of so many entries, whose texts end by `end`, with GPT-2's tokenizer.
    fn model(&self, name: &str, vocab_size: usize, end: Option<u32>) {
        let config = LanguageModelConfig::new()
            .with_vocab_size(vocab_size)
            .with_pad_vocab_size_multiple(1)
            .with_d_model(8)
            .with_n_layer(1);
        let model = config.init(&Device::flex());
        checkpoint::save_ending_with(end.as_slice(), &model, &config, &self.path(name)).unwrap();
        let gpt2 = Tokenizer::gpt2().unwrap().to_json().unwrap().unwrap();
        fs::write(self.path(name).join("tokenizer.json"), gpt2).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("mamba-lab").unwrap();
        command
            .args(arguments)
            .args(["--device", "flex"])
            .current_dir(self.0.path())
            .env("MAMBA_LAB_CACHE", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1")
            .env("RUST_BACKTRACE", "0")
            .write_stdin("the cat\n");
        command
    }

    fn refused(&self, arguments: &[&str], message: &str) {
        let one_line = predicate::function(|text: &str| text.trim_end().lines().count() == 1);
        self.command(arguments)
            .assert()
            .code(1)
            .stdout(is_empty())
            .stderr(contains(message).and(one_line));
    }

    /// Every command that reads text for the model, or writes what others read it with.
    fn uses<'a>(&self, model: &'a str) -> [Vec<&'a str>; 5] {
        [
            vec!["generate", model, "the cat", "-n", "2"],
            vec!["chat", model, "-n", "2"],
            vec!["evaluate", model, "--data-dir", "text", "--context", "64"],
            vec![
                "train",
                "--from",
                model,
                "--data-dir",
                "text",
                "--display",
                "quiet",
                "--set",
                "data.seq_len=64",
                "--set",
                "training.max_steps=1",
                "--set",
                "sample.tokens=2",
            ],
            vec!["convert", model, "converted"],
        ]
    }
}

#[test]
fn a_tokenizer_too_small_for_the_model_is_refused_unless_it_is_given() {
    let workshop = Workshop::new();
    // As large as Mamba's vocabulary, which 50,257 entries leave 23 of.
    workshop.model("mamba", 50_280, None);
    for arguments in workshop.uses("mamba") {
        workshop.refused(
            &arguments,
            "50257 entries and the model 50280, more than a padding",
        );
        let insisting = [&arguments[..], &["--tokenizer", "gpt2"]].concat();
        workshop
            .command(&insisting)
            .assert()
            .success()
            .stderr(contains("Warning: the tokenizer gpt2 has 50257 entries"));
    }
    // What was made that way goes on without being asked again.
    let quiet = contains("Warning").not();
    let generate = ["generate", "finetune", "the cat", "-n", "2"];
    workshop.command(&generate).assert().success().stderr(quiet);

    workshop.model("small", 50_000, None);
    for more in [&[][..], &["--tokenizer", "gpt2"]] {
        let arguments = [&["generate", "small", "the cat"], more].concat();
        workshop.refused(&arguments, "50257 entries and the model 50000");
    }
}

#[test]
fn a_tokenizer_that_ends_texts_by_another_token_is_doubted() {
    let workshop = Workshop::new();
    // As large as Pythia's vocabulary, which is padded by less than 128.
    workshop.model("pythia", 50_304, Some(0));
    for arguments in workshop.uses("pythia") {
        let doubt = contains("texts end by token 0, which is \"!\" in the tokenizer");
        workshop
            .command(&arguments)
            .assert()
            .success()
            .stderr(doubt.and(contains("--tokenizer FILE")));
    }
    workshop.model("gpt", 50_304, Some(50_256));
    let sure = contains("Warning").not();
    let generate = ["generate", "gpt", "the cat", "-n", "2"];
    workshop.command(&generate).assert().success().stderr(sure);
}

#[test]
fn a_model_without_a_tokenizer_is_given_one() {
    let workshop = Workshop::new();
    workshop.model("bytes", 256, None);
    fs::remove_file(workshop.path("bytes/tokenizer.json")).unwrap();
    for arguments in workshop.uses("bytes") {
        workshop.refused(&arguments, "give it by --tokenizer FILE");
        let given = [&arguments[..], &["--tokenizer", "bytes"]].concat();
        workshop.command(&given).assert().success();
    }
    let absent = ["generate", "bytes", "the", "--tokenizer", "nowhere.json"];
    workshop.refused(&absent, "nowhere.json");
}

/// A tokenizer of so many words: `w1`, `w2`, ...
fn words(path: &Path, entries: usize) {
    let vocab: Vec<String> = (1..entries).map(|id| format!(r#""w{id}":{id}"#)).collect();
    let json = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,"decoder":null,"model":{{"type":"WordLevel",
        "vocab":{{"[UNK]":0,{}}},"unk_token":"[UNK]"}}}}"#,
        vocab.join(",")
    );
    fs::write(path, json).unwrap();
}

/// 40 rows, of which the model gives logits of 37: their tokens cannot be generated.
#[test]
fn rows_of_padding_are_no_entries() {
    let workshop = Workshop::new();
    let original = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/mamba1_original"
    );
    for entries in [37, 38, 40] {
        words(&workshop.path("words.json"), entries);
        let text = format!("w1 w{}", entries - 1);
        let model = [original, &text, "-n", "2", "--tokenizer", "words.json"];
        let generate = [&["generate"], &model[..]].concat();
        match entries {
            37 => drop(workshop.command(&generate).assert().success()),
            _ => workshop.refused(&generate, &format!("{entries} entries and the model 37")),
        }
    }
}

#[test]
fn a_run_keeps_the_tokenizer_that_it_was_trained_with() {
    let workshop = Workshop::new();
    let experiment = "name = \"tiny\"\n[data]\ntokenizer = \"words.json\"\nseq_len = 16\nbatch_size = 4\n\
                      [training]\nmax_steps = 2\n[sample]\ntokens = 0\n[model]\nd_model = 16\n";
    fs::write(workshop.path("tiny.toml"), experiment).unwrap();
    let words = |path: &Path, first: &str, second: &str| {
        let json = format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,"decoder":null,"model":{{"type":"WordLevel",
            "vocab":{{"[UNK]":0,"{first}":1,"{second}":2,"the":3}},"unk_token":"[UNK]"}}}}"#
        );
        fs::write(path, json).unwrap();
    };
    words(&workshop.path("words.json"), "sea", "cat");
    let train = [
        "train",
        "tiny.toml",
        "--data-dir",
        "text",
        "--display",
        "quiet",
    ];
    workshop.command(&train).assert().success();
    let generate = ["generate", "tiny", "the cat", "-n", "2"];
    workshop.command(&generate).assert().success();
    workshop.refused(
        &[&generate[..], &["--tokenizer", "words.json"]].concat(),
        "--tokenizer: artifacts/runs/tiny is a run",
    );
    // As many entries, in another order.
    words(
        &workshop.path("artifacts/runs/tiny/tokenizer.json"),
        "cat",
        "sea",
    );
    for arguments in workshop.uses("tiny") {
        workshop.refused(
            &arguments,
            "is not the one that the run was trained with: put that one back",
        );
    }
}
