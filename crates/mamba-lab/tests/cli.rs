//! The command as users meet it: what works, and what bad input is answered with.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use tempfile::TempDir;

/// A folder of its own for each test, with a small text in it.
struct Workshop {
    folder: TempDir,
}

const TINY: &str = r#"
name = "tiny"
[model]
d_model = 16
[model.mamba1]
d_state = 4
[data]
tokenizer = "bytes"
seq_len = 16
batch_size = 4
[training]
max_steps = 12
checkpoint_every = 4
log_every = 4
[sample]
prompt = "the "
tokens = 8
"#;

impl Workshop {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let workshop = Self { folder };
        workshop.write("tiny.toml", TINY);
        let text = "the cat sat on the mat and the dog ran to the sea. ".repeat(40);
        for split in ["train", "valid", "test"] {
            workshop.write(&format!("text/{split}.txt"), &text);
        }
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("mamba-lab").unwrap();
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("MAMBA_LAB_CACHE", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1")
            .env("RUST_BACKTRACE", "0");
        command
    }

    fn train(&self, more: &[&str]) -> Command {
        let mut command = self.command(&["train", "tiny.toml", "--data-dir", "text"]);
        command
            .args(["--display", "plain", "--device", "flex"])
            .args(more);
        command
    }

    fn run(&self, name: &str) -> PathBuf {
        self.path("artifacts/runs").join(name)
    }
}

/// Every line of `metrics.jsonl` that is a training loss, as it stands in the file.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines
        .filter(|line| line["kind"] == "train")
        .map(|line| {
            (
                line["step"].as_u64().unwrap(),
                line["loss"].as_f64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_run_trains_and_is_used_from_its_folder_alone() {
    let workshop = Workshop::new();
    workshop
        .train(&[])
        .assert()
        .success()
        .stdout(contains("valid, before").and(contains("A sample: the ")));
    let run = workshop.run("tiny");
    for file in ["config.toml", "metrics.jsonl", "loss.svg", "summary.json"] {
        assert!(run.join(file).is_file(), "{file}");
    }

    // Another place, and neither text nor experiment at hand.
    let elsewhere = Workshop::new();
    fs::remove_dir_all(elsewhere.path("text")).unwrap();
    let run = run.to_str().unwrap();
    let generate = |seed: &str| {
        let output = elsewhere
            .command(&["generate", run, "the cat", "-n", "12", "--seed", seed])
            .args(["--device", "flex"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let text = generate("1");
    assert!(text.starts_with(b"the cat") && text.len() > "the cat\n".len());
    assert_eq!(text, generate("1"), "a seed fixes the text");
    elsewhere
        .command(&["info", run])
        .assert()
        .success()
        .stdout(contains("inner width 32"));
    workshop
        .command(&["evaluate", run, "--split", "valid", "--device", "flex"])
        .assert()
        .success()
        .stdout(contains("perplexity"));
}

#[test]
fn an_existing_run_is_never_overwritten() {
    let workshop = Workshop::new();
    workshop.train(&[]).assert().success();
    let before = fs::read(workshop.run("tiny").join("metrics.jsonl")).unwrap();
    workshop.train(&[]).assert().success();
    assert!(workshop.run("tiny-2").is_dir());
    workshop
        .train(&["--name", "tiny"])
        .assert()
        .failure()
        .stderr(contains("tiny").and(contains("--resume")));
    workshop
        .command(&["train", "--name", "tiny", "--resume"])
        .assert()
        .failure()
        .stderr(contains("finished"));
    assert_eq!(
        fs::read(workshop.run("tiny").join("metrics.jsonl")).unwrap(),
        before
    );
}

/// The complete checkpoints of a run, by their steps, ascending.
fn checkpoints(run: &Path) -> Vec<usize> {
    let entries = fs::read_dir(run.join("checkpoints"));
    let entries = entries.into_iter().flatten().map(|entry| entry.unwrap());
    let complete = entries.filter(|entry| entry.path().join("checkpoint.toml").is_file());
    let mut steps: Vec<usize> = complete
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("step-")?
                .parse()
                .ok()
        })
        .collect();
    steps.sort_unstable();
    steps
}

#[test]
fn a_run_that_was_killed_continues_on_the_same_curve() {
    let workshop = Workshop::new();
    // However slow the machine is, it does not end by itself before it is killed.
    let settings = |steps: usize| {
        let steps = format!("training.max_steps={steps}");
        let all = ["training.log_every=1", "training.schedule=constant", &steps];
        all.map(|it| ["--set".to_string(), it.to_string()]).concat()
    };
    const ENDLESS: usize = 1_000_000_000;
    let bin = assert_cmd::cargo::cargo_bin("mamba-lab");
    let mut child = std::process::Command::new(bin)
        .args(["train", "tiny.toml", "--data-dir", "text"])
        .args(["--display", "plain", "--device", "flex"])
        .args(settings(ENDLESS))
        .args(["--name", "parts"])
        .current_dir(workshop.folder.path())
        .env("MAMBA_LAB_CACHE", workshop.path("cache"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Killed without warning once a checkpoint is complete, as a power cut would.
    let parts = workshop.run("parts");
    while checkpoints(&parts).is_empty() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());

    let step = *checkpoints(&parts).last().expect("none is taken away");
    assert!(step > 0);
    let end = step + 20;
    let config = fs::read_to_string(parts.join("config.toml")).unwrap();
    let shorter = config.replace(
        &format!("max_steps = {ENDLESS}"),
        &format!("max_steps = {end}"),
    );
    assert_ne!(config, shorter);
    fs::write(parts.join("config.toml"), shorter).unwrap();
    workshop
        .command(&["train", "--name", "parts", "--resume", "--display", "plain"])
        .args(["--device", "flex"])
        .assert()
        .success()
        .stderr(contains(format!("after step {step} of {end}")));

    workshop
        .train(&["--name", "whole"])
        .args(settings(end))
        .assert()
        .success();
    let whole = losses(&workshop.run("whole"));
    assert_eq!(losses(&parts), whole);
    assert_eq!(whole.len(), end);
}

#[test]
fn bf16_trains_to_about_the_losses_of_f32() {
    let workshop = Workshop::new();
    let half = ["--set", "training.precision=bf16", "--name", "half"];
    workshop.train(&[]).assert().success();
    workshop.train(&half).assert().success();
    let (single, half) = (losses(&workshop.run("tiny")), losses(&workshop.run("half")));
    assert_eq!(single.len(), half.len());
    assert_ne!(single, half, "both computed in the same type");
    for ((step, single), (_, half)) in single.into_iter().zip(half) {
        assert!(
            (single - half).abs() < 0.02,
            "step {step}: {half} for {single}"
        );
    }
}

#[test]
fn bad_input_is_refused_with_what_to_do() {
    let workshop = Workshop::new();
    let refused = |command: &mut Command, message: &str| {
        command
            .assert()
            .code(1)
            .stderr(contains("Error: ").and(contains(message)));
    };
    refused(&mut workshop.command(&["train", "none.toml"]), "none.toml");
    refused(
        &mut workshop.train(&["--set", "model.mamba1.d_stat=8"]),
        "model.mamba1.d_stat",
    );
    refused(
        &mut workshop.train(&["--set", "model.d_model=\"wide\""]),
        "model.d_model",
    );
    refused(
        &mut workshop.train(&["--set", "training.learning_rate=-1"]),
        "learning_rate",
    );
    refused(
        &mut workshop.train(&["--set", "sample.prompt=\"\""]),
        "sample.prompt",
    );
    refused(
        &mut workshop.train(&["--set", "training.epsilon=1e-50"]),
        "training.epsilon",
    );
    let device = ["train", "tiny.toml", "--device", "abacus"];
    refused(&mut workshop.command(&device), "unknown device `abacus`");
    #[cfg(feature = "ndarray")]
    {
        let half = ["--device", "ndarray", "--set", "training.precision=bf16"];
        let mut command = workshop.command(&["train", "tiny.toml", "--data-dir", "text"]);
        refused(
            command.args(half),
            "training.precision: the device has no bf16",
        );
    }
    let folder = ["train", "tiny.toml", "--data-dir", "nowhere"];
    refused(&mut workshop.command(&folder), "nowhere");
    let offline = [
        "train",
        "tiny.toml",
        "--dataset",
        "wikitext-2",
        "--device",
        "flex",
    ];
    refused(&mut workshop.command(&offline), "--data-dir");
    refused(
        &mut workshop.command(&["generate", "nowhere", "x"]),
        "nowhere",
    );
    refused(
        &mut workshop.command(&["generate", "nowhere", "x", "--temperature=-1"]),
        "temperature",
    );
    refused(&mut workshop.command(&["generate", "nowhere", ""]), "empty");
    let resume = ["train", "--resume", "--name", "none"];
    refused(&mut workshop.command(&resume), "there is no run");
    workshop
        .command(&["train", "tiny.toml", "--name", "none", "--resume"])
        .assert()
        .failure()
        .stderr(contains("[EXPERIMENT]").and(contains("cannot be used with")));

    workshop.write("text/train.txt", "too short");
    refused(&mut workshop.train(&[]), "17");
    workshop.write("text/train.txt", "");
    refused(&mut workshop.train(&[]), "empty");
    assert!(!workshop.path("artifacts").exists(), "nothing was begun");
}

/// A model with learned positions has none for all the tokens that the sample asks for.
#[test]
fn a_sample_is_as_long_as_the_positions_allow() {
    let workshop = Workshop::new();
    let settings = [
        "model.pattern=[\"attention\", \"mlp\"]",
        "model.attention.num_heads=2",
        "model.max_positions=20",
        "sample.tokens=64",
        "sample.temperature=0",
    ];
    workshop
        .train(&settings.map(|it| ["--set", it]).concat())
        .assert()
        .success()
        .stdout(contains("A sample: the ").and(contains("continue it with")));
}

#[test]
fn runs_are_compared_in_a_table_and_a_picture() {
    let workshop = Workshop::new();
    workshop.train(&[]).assert().success();
    workshop
        .train(&["--set", "model.d_model=24"])
        .assert()
        .success();
    workshop
        .command(&["compare", "tiny", "tiny-2", "-o", "both.svg"])
        .assert()
        .success()
        .stdout(contains("tiny-2").and(contains("parameters")));
    let picture = fs::read_to_string(workshop.path("both.svg")).unwrap();
    assert!(picture.contains("tiny, valid") && picture.contains("tiny-2, valid"));

    // Two corpora, the first of them twice.
    let summary = workshop.run("tiny-2").join("summary.json");
    let text = fs::read_to_string(&summary).unwrap();
    fs::write(&summary, text.replace("own-text", "wikitext-2-v1")).unwrap();
    workshop
        .command(&["compare", "tiny", "tiny-2", "tiny"])
        .assert()
        .success()
        .stdout(contains("Not on one corpus (own-text, wikitext-2-v1):"));

    workshop
        .command(&["compare", "tiny", "nowhere"])
        .assert()
        .failure()
        .stderr(contains("nowhere"));
}

#[test]
fn a_corrupt_checkpoint_is_named_and_kept() {
    let workshop = Workshop::new();
    workshop.train(&[]).assert().success();
    let run = workshop.run("tiny");
    let weights = fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_stem().is_some_and(|stem| stem == "model"))
        .expect("final weights");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let name = weights.file_name().unwrap().to_str().unwrap().to_owned();
    workshop
        .command(&["generate", "tiny", "the"])
        .assert()
        .code(1)
        .stderr(contains(name).and(contains("panicked").not()));
    assert_eq!(fs::read(&weights).unwrap().len(), bytes.len() / 2);

    // As long as before, and other weights.
    let mut changed = bytes.clone();
    let middle = changed.len() / 2;
    changed[middle..middle + 4].copy_from_slice(&0.25f32.to_le_bytes());
    assert_ne!(changed, bytes);
    fs::write(&weights, changed).unwrap();
    let generate = ["generate", "tiny", "the", "-n", "2", "--device", "flex"];
    let damaged = "model.bpk is damaged; remove it to use the last checkpoint";
    workshop
        .command(&generate)
        .assert()
        .code(1)
        .stderr(contains(damaged));
    fs::remove_file(&weights).unwrap();
    workshop.command(&generate).assert().success().stderr(
        contains(
            "model.bpk is missing although the run is finished: using its checkpoint after step 12",
        )
        .and(contains("not finished").not()),
    );

    // A run of before, which noted nothing of its weights.
    fs::write(&weights, bytes).unwrap();
    let path = run.join("summary.json");
    let mut summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert!(summary.as_object_mut().unwrap().remove("model").is_some());
    fs::write(&path, summary.to_string()).unwrap();
    workshop.command(&generate).assert().success();
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let workshop = Workshop::new();
    let bin = assert_cmd::cargo::cargo_bin("mamba-lab");
    let mut child = std::process::Command::new(bin)
        .args(["info"])
        .current_dir(workshop.folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
