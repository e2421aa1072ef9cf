//! What bad input is answered with: one line that names it and what to do.
#![cfg(feature = "flex")]

use std::fs;
use std::path::PathBuf;

use assert_cmd::Command;
use burn::tensor::Device;
use mamba_core::{LanguageModelConfig, checkpoint};
use predicates::prelude::{PredicateBooleanExt, predicate};
use predicates::str::{contains, is_empty};
use tempfile::TempDir;

struct Workshop(TempDir);

impl Workshop {
    /// A text, and a pretrained model of bytes without a tokenizer.
    fn new() -> Self {
        let workshop = Self(TempDir::new().unwrap());
        fs::create_dir(workshop.path("text")).unwrap();
        for split in ["train", "valid"] {
            let text = "the cat sat on the mat. ".repeat(40);
            fs::write(workshop.path(&format!("text/{split}.txt")), text).unwrap();
        }
        let config = LanguageModelConfig::new()
            .with_vocab_size(256)
            .with_pad_vocab_size_multiple(1)
            .with_d_model(8);
        let model = config.init(&Device::flex());
        checkpoint::save(&model, &config, &workshop.path("bytes")).unwrap();
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("mamba-lab").unwrap();
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("MAMBA_LAB_CACHE", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1")
            .env("TERM", "dumb")
            .env("RUST_BACKTRACE", "0");
        command
    }

    /// In one line on standard error, and nothing else anywhere.
    fn refused(&self, arguments: &[&str], message: &str) {
        let one_line = predicate::function(|text: &str| text.trim_end().lines().count() == 1);
        self.command(arguments)
            .assert()
            .code(1)
            .stdout(is_empty())
            .stderr(contains(message).and(contains("Error: ")).and(one_line));
    }
}

/// Two bytes behind a text, from a folder whose texts are bytes.
const GENERATE: [&str; 7] = [
    "generate",
    "bytes",
    "the",
    "--tokenizer",
    "bytes",
    "-n",
    "2",
];

#[test]
fn settings_are_blamed_on_where_they_come_from() {
    let workshop = Workshop::new();
    let train = ["train", "--data-dir", "text", "--device", "flex"];
    let set = |setting: &str, message: &str| {
        workshop.refused(&[&train[..], &["--set", setting]].concat(), message);
    };
    set("training.max_steps=-3", "Error: --set training.max_steps: ");
    set(
        "training.precision=f16",
        "Error: --set training.precision: ",
    );
    set("model.pattern=[]", "must name at least one mixer");
    set("model.vocab_size=100", "set data.tokenizer instead");
    set("data.tokenizer=nosuch.json", "there is no file nosuch.json");

    fs::write(workshop.path("torn.toml"), "[data]\nseq_len = \n").unwrap();
    workshop.refused(&["train", "torn.toml"], "torn.toml line 2: ");
    let dataset = ["train", "--dataset", "foo"];
    let known = contains("--dataset").and(contains("choose one of auto, wikitext-2"));
    workshop.command(&dataset).assert().code(2).stderr(known);
}

#[test]
fn texts_are_asked_for_by_what_is_wrong_with_them() {
    let workshop = Workshop::new();
    let named = [
        "--dataset",
        "wikitext-2",
        "--data-dir",
        "text",
        "--device",
        "flex",
    ];
    workshop.refused(
        &[&["train"], &named[..]].concat(),
        "holds other text than the published one",
    );
    let file = ["train", "--data-dir", "text/train.txt", "--device", "flex"];
    workshop.refused(&file, "text/train.txt is no folder");

    let evaluate = [
        "evaluate",
        "bytes",
        "--tokenizer",
        "bytes",
        "--device",
        "flex",
    ];
    let with = |more: &[&str], message: &str| {
        workshop.refused(&[&evaluate[..], more].concat(), message);
    };
    with(
        &[],
        "there is no text to evaluate on: WikiText-2 could not be downloaded (HF_HUB_OFFLINE is set",
    );
    with(&["--data-dir", "text"], "or take another split by --split");
    with(
        &["--batch-size", "0"],
        "Error: --batch-size: give at least 1",
    );
    let lambada = ["--lambada", "text/train.txt", "--limit", "0"];
    with(&lambada, "Error: --limit: give at least 1");
}

#[test]
fn numbers_below_zero_are_numbers() {
    let workshop = Workshop::new();
    let generate = ["generate", "bytes", "the", "--tokenizer", "bytes"];
    for (option, value, message, code) in [
        ("--top-p", "-0.5", "top_p", 1),
        ("--repetition-penalty", "-1", "repetition_penalty", 1),
        ("-n", "-1", "invalid value '-1' for '--tokens", 2),
        ("--seed", "-1", "invalid value '-1' for '--seed", 2),
    ] {
        workshop
            .command(&[&generate[..], &[option, value]].concat())
            .assert()
            .code(code)
            .stderr(contains(message));
    }
    workshop
        .command(&["bench", "compare", "a", "b", "--fail-above", "-5"])
        .assert()
        .code(2)
        .stderr(contains("expected a percentage"));
}

#[test]
fn files_that_are_not_there_are_named() {
    let workshop = Workshop::new();
    let generate = ["generate", "bytes", "the", "--tokenizer"];
    let with = |more: &[&str], message: &str| {
        let all = [&generate[..], more, &["--device", "flex"]].concat();
        workshop.refused(&all, message);
    };
    with(
        &["nosuch.json"],
        "--tokenizer: there is no file nosuch.json",
    );
    with(
        &["bytes", "--state-in", "nosuch"],
        "--state-in: there is no file nosuch",
    );
    with(
        &["bytes", "--state-out", "none/a"],
        "there is no folder none",
    );
    workshop.refused(
        &["train", "--from", "nosuch"],
        "--from: there is no run and no model nosuch",
    );
    workshop.refused(
        &["generate", "bytes", "the", "--device", "flex:3"],
        "device `flex:3`: there is one CPU",
    );
    fs::write(
        workshop.path("prompts"),
        "{\"prompt\": \"a\"}\n\n{\"prompt\": }\n",
    )
    .unwrap();
    let jsonl = ["bytes", "--at-once", "8", "--jsonl", "-"];
    let all = [
        &["generate", "bytes", "--tokenizer"],
        &jsonl[..],
        &["--device", "flex"],
    ]
    .concat();
    workshop
        .command(&all)
        .write_stdin(fs::read(workshop.path("prompts")).unwrap())
        .assert()
        .code(1)
        .stderr(
            contains("line 3 of standard input: expected a JSON object")
                .and(contains("column").not()),
        );
}

/// Root may write everywhere, so that only others can find out.
#[cfg(unix)]
#[test]
fn a_state_is_tried_before_anything_is_generated() {
    use std::os::unix::fs::PermissionsExt;

    let workshop = Workshop::new();
    let closed = workshop.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let may_write = fs::write(closed.join("probe"), "").is_ok();
    fn to<'a>(generate: &[&'a str], file: &'a str) -> Vec<&'a str> {
        [generate, &["--device", "flex", "--state-out", file]].concat()
    }
    if may_write {
        eprintln!("SKIPPED: this user may write to a folder without permission");
    } else {
        workshop.refused(
            &to(&GENERATE, "closed/state"),
            "cannot save a state to closed/state",
        );
    }
    workshop.command(&to(&GENERATE, "state")).assert().success();
    let left = fs::read_dir(workshop.path(".")).unwrap().filter(|it| {
        it.as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|it| it == "part")
    });
    assert_eq!(left.count(), 0, "the file that was tried is gone");
}

#[test]
fn a_model_is_described_without_a_tokenizer() {
    let workshop = Workshop::new();
    workshop
        .command(&["info", "bytes"])
        .assert()
        .success()
        .stdout(contains("inner width 16").and(contains("256 entries")));
    workshop.refused(&["info", "nosuch"], "there is no run and no model nosuch");
}

#[test]
fn a_conversion_tells_what_it_leaves_out_and_overwrites_nothing() {
    let workshop = Workshop::new();
    let convert = [
        "convert",
        "bytes",
        "out",
        "--tokenizer",
        "bytes",
        "--device",
        "flex",
    ];
    workshop
        .command(&convert)
        .assert()
        .success()
        .stderr(contains("without tokenizer.json").and(contains("use --tokenizer bytes")));
    workshop.refused(&convert, "is there already: give another folder");
    fs::write(workshop.path("file"), "").unwrap();
    workshop.refused(&["convert", "bytes", "file"], "file is no folder");
}

#[test]
fn the_dashboard_needs_a_terminal() {
    let workshop = Workshop::new();
    let train = ["train", "--data-dir", "text", "--display", "dashboard"];
    workshop.refused(&train, "--display dashboard needs a terminal: use plain");
}

/// A file that takes nothing, as a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_named() {
    let workshop = Workshop::new();
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin("mamba-lab"))
        .args(["info", "bytes"])
        .current_dir(workshop.path("."))
        .stdout(fs::File::create("/dev/full").unwrap())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.starts_with("Error: cannot write standard output: "),
        "{told}"
    );
}

/// Where there is a GPU or no driver, there is nothing to see.
#[cfg(feature = "wgpu")]
#[test]
fn a_software_adapter_is_not_the_default() {
    let workshop = Workshop::new();
    let info = workshop.command(&["info"]).output().unwrap();
    let told = String::from_utf8(info.stdout).unwrap();
    if !told.contains("imitates a GPU") {
        eprintln!("SKIPPED: no software adapter here");
        return;
    }
    assert!(told.contains("flex     ready, the default\n"), "{told}");
    let taken = contains("is a software adapter").and(contains("taking flex"));
    workshop.command(&GENERATE).assert().success().stderr(taken);
    // Nothing is computed, which that driver would compile for long.
    let wgpu = [
        "convert",
        "bytes",
        "out",
        "--tokenizer",
        "bytes",
        "--device",
        "wgpu",
    ];
    let hint = contains("is a software adapter").and(contains("--device flex is faster here"));
    workshop.command(&wgpu).assert().success().stderr(hint);
}
