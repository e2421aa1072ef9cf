//! Runs that are stopped, moved, damaged and continued.
#![cfg(feature = "flex")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use tempfile::TempDir;

/// Long enough to be stopped in the middle, as it is evaluated and saved often.
const LONG: &str = r#"
name = "long"
[model]
d_model = 16
[model.mamba1]
d_state = 4
[data]
tokenizer = "bytes"
seq_len = 16
batch_size = 4
[training]
max_steps = 20000
checkpoint_every = 500
log_every = 1
[sample]
tokens = 0
"#;

struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(TempDir::new().unwrap());
        fs::write(workshop.path("long.toml"), LONG).unwrap();
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

    fn run(&self, name: &str) -> PathBuf {
        self.path("artifacts/runs").join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("mamba-lab").unwrap();
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("MAMBA_LAB_CACHE", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1")
            .env("RUST_BACKTRACE", "0");
        command
    }

    fn refused(&self, arguments: &[&str], message: &str) {
        self.command(arguments)
            .assert()
            .code(1)
            .stderr(contains(message).and(contains("panicked").not()));
    }

    /// A run of a few steps that is finished.
    fn finished(&self, name: &str, more: &[&str]) {
        let train = ["train", "long.toml", "--data-dir", "text", "--name", name];
        let short = ["--set", "training.max_steps=4", "--device", "flex"];
        let all = [&train[..], &short[..], &["--display", "quiet"], more].concat();
        self.command(&all).assert().success();
    }

    /// A run in a process of its own, once it has taken a step.
    fn training(&self, arguments: &[&str]) -> Child {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("mamba-lab"));
        hear_hangups(&mut command);
        let child = command
            .args(["train"])
            .args(arguments)
            .args(["--display", "plain"])
            .current_dir(self.0.path())
            .env("MAMBA_LAB_CACHE", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let metrics = self.run("long").join("metrics.jsonl");
        let before = lines(&metrics);
        let patience = Instant::now() + Duration::from_secs(120);
        while lines(&metrics) <= before + 1 && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    /// A run that was stopped in the middle, on `flex`.
    fn stopped(&self) {
        let child = self.training(&["long.toml", "--data-dir", "text", "--device", "flex"]);
        stop(child, "INT");
    }
}

/// The process hears of a closed terminal, even where these tests were started not to, as by `nohup`.
#[cfg(unix)]
fn hear_hangups(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: `signal` may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
}

#[cfg(not(unix))]
fn hear_hangups(_: &mut std::process::Command) {}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Sends a signal, and returns the exit status and what was said.
fn stop(child: Child, signal: &str) -> (Option<i32>, String) {
    let id = child.id().to_string();
    let kill = std::process::Command::new("kill")
        .args(["-s", signal, &id])
        .status();
    assert!(kill.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), told)
}

#[cfg(unix)]
#[test]
fn a_run_goes_on_on_its_device_and_says_how_to() {
    let workshop = Workshop::new();
    let arguments = ["long.toml", "--data-dir", "text", "--device", "flex"];
    let (code, told) = stop(workshop.training(&arguments), "INT");
    assert_eq!(code, Some(130), "{told}");
    assert!(told.contains("Training on flex\n"), "{told}");
    let resume = "mamba-lab train --name long --resume --display plain\n";
    assert!(told.contains(resume), "{told}");

    // Of a build with wgpu that would be another one.
    let (code, told) = stop(workshop.training(&["--name", "long", "--resume"]), "INT");
    assert_eq!(code, Some(130), "{told}");
    assert!(told.contains("Training on flex\n"), "{told}");

    fs::write(workshop.run("long").join("device.txt"), "abacus\n").unwrap();
    let resume = ["train", "--name", "long", "--resume"];
    workshop.refused(
        &resume,
        "the run was trained on abacus; give a device to go on with by --device: unknown device `abacus`",
    );
}

#[cfg(unix)]
#[test]
fn a_closed_terminal_stops_a_run_with_a_checkpoint() {
    let workshop = Workshop::new();
    let arguments = ["long.toml", "--data-dir", "text", "--device", "flex"];
    let (code, told) = stop(workshop.training(&arguments), "HUP");
    assert_eq!(code, Some(130), "{told}");
    assert!(told.contains("a checkpoint is saved"), "{told}");
    assert!(lines(&workshop.run("long").join("metrics.jsonl")) < 20_000);
}

#[cfg(unix)]
#[test]
fn a_run_is_trained_by_one_process_at_a_time() {
    let workshop = Workshop::new();
    let arguments = ["long.toml", "--data-dir", "text", "--device", "flex"];
    let child = workshop.training(&arguments);
    let resume = ["train", "--name", "long", "--resume"];
    workshop.refused(&resume, "is being trained by another process");
    let (code, told) = stop(child, "INT");
    assert_eq!(code, Some(130), "{told}");
}

#[cfg(unix)]
#[test]
fn a_run_goes_on_with_its_own_text_only() {
    let workshop = Workshop::new();
    workshop.stopped();
    let text = workshop.path("text/train.txt");
    let own = fs::read_to_string(&text).unwrap();
    fs::write(&text, own.replacen("cat", "bat", 1)).unwrap();
    let resume = ["train", "--name", "long", "--resume", "--display", "quiet"];
    workshop.refused(
        &resume,
        "is not the text that this run began with: restore it, or start a new run with --from",
    );

    fs::write(&text, own).unwrap();
    fs::rename(workshop.path("text"), workshop.path("moved")).unwrap();
    workshop.refused(&resume, "does not exist; check --data-dir");
    let child = workshop.training(&["--name", "long", "--resume", "--data-dir", "moved"]);
    let (code, told) = stop(child, "INT");
    assert_eq!(code, Some(130), "{told}");
    // From here on the run knows where it lies.
    let (code, told) = stop(workshop.training(&["--name", "long", "--resume"]), "INT");
    assert_eq!(code, Some(130), "{told}");
}

#[cfg(unix)]
#[test]
fn a_damaged_line_of_the_metrics_is_named_with_a_remedy() {
    let workshop = Workshop::new();
    workshop.stopped();
    let metrics = workshop.run("long").join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, format!("{{\"kind\":\"tr\n{text}")).unwrap();
    let resume = ["train", "--name", "long", "--resume", "--display", "quiet"];
    workshop.refused(
        &resume,
        "metrics.jsonl line 1 is damaged: remove that line (or the file: only the curve is lost)",
    );
    fs::remove_file(&metrics).unwrap();
    let (code, told) = stop(workshop.training(&["--name", "long", "--resume"]), "INT");
    assert_eq!(code, Some(130), "{told}");
}

#[test]
fn a_run_has_one_name_and_stays_below_its_folder() {
    let workshop = Workshop::new();
    for name in ["", "..", "../escape", "a/b"] {
        let train = ["train", "long.toml", "--data-dir", "text", "--name", name];
        workshop.refused(&train, &format!("usable as a folder name, got {name:?}"));
        workshop.refused(
            &["train", "--name", name, "--resume"],
            "usable as a folder name",
        );
    }
    assert!(!workshop.path("artifacts").exists(), "nothing was begun");

    // What holds no model does not stand in the way.
    workshop.finished("text", &[]);
    let generate = ["generate", "text", "the", "-n", "2", "--device", "flex"];
    workshop.command(&generate).assert().success();
}

#[test]
fn a_comparison_overwrites_only_its_own_pictures() {
    let workshop = Workshop::new();
    workshop.finished("a", &[]);
    fs::write(workshop.path("notes.txt"), "mine").unwrap();
    fs::write(workshop.path("notes.svg"), "mine").unwrap();
    for (file, message) in [
        ("notes.txt", "give a name that ends in .svg"),
        ("notes.svg", "is none of these pictures"),
        ("none/a.svg", "there is no folder none"),
    ] {
        workshop.refused(&["compare", "a", "-o", file], message);
    }
    for file in ["notes.txt", "notes.svg"] {
        assert_eq!(fs::read_to_string(workshop.path(file)).unwrap(), "mine");
    }
    assert!(!workshop.path("none").exists());
    for _ in 0..2 {
        let compare = ["compare", "a", "-o", "a.svg"];
        workshop.command(&compare).assert().success();
    }

    workshop
        .command(&["compare", "a", "nowhere"])
        .assert()
        .code(1)
        .stdout(predicates::str::is_empty());
}

#[test]
fn losses_that_do_not_compare_are_told() {
    let workshop = Workshop::new();
    workshop.finished("a", &[]);
    workshop.finished("b", &[]);
    let told = |runs: &[&str], message: &str| {
        let compare = [&["compare"], runs].concat();
        let text = workshop.command(&compare).assert().success();
        text.stdout(contains(message));
    };
    let nothing = contains("cannot be compared").not();
    let compare = ["compare", "a", "b"];
    workshop
        .command(&compare)
        .assert()
        .success()
        .stdout(nothing);
    workshop.finished("gpt2", &["--set", "data.tokenizer=gpt2"]);
    told(
        &["a", "gpt2"],
        "Not with one tokenizer: losses cannot be compared",
    );
    fs::write(workshop.path("text/test.txt"), "another sea. ".repeat(40)).unwrap();
    workshop.finished("c", &[]);
    told(&["a", "c"], "Not on one text: losses cannot be compared");
}
