//! Others' language models with our weights, each in a process of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::process::{Process, numbers, text};

/// Carried in the binary, so that it runs from anywhere.
const SCRIPT: &str = include_str!("../../peers/hugging_face.py");

/// The name of Hugging Face's models as an engine.
pub const HUGGING_FACE: &str = "hugging face";

/// The name of candle's models as an engine.
pub const CANDLE: &str = "candle";

/// The name of mamba-rs's models as an engine.
pub const MAMBA_RS: &str = "mamba-rs";

/// What a peer times.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Hidden states of whole sequences.
    Forward,
    /// From a prompt to the token behind it.
    Prefill,
    /// Steps behind a prompt, this many.
    Decode(usize),
    /// Training steps.
    Train,
}

/// The running process; it ends when dropped.
#[derive(Debug)]
pub struct ModelPeer {
    name: &'static str,
    pub(crate) process: Process,
}

impl ModelPeer {
    /// Starts `transformers` under `python` on a device of PyTorch, such as `cpu` or `cuda:0`.
    ///
    /// # Errors
    ///
    /// If there is no such interpreter, or it lacks torch, transformers or the device.
    pub fn hugging_face(python: &Path, threads: usize, device: &str) -> Result<Self> {
        let threads = threads.to_string();
        let mut command = Command::new(python);
        command
            .args(["-c", SCRIPT, "--threads", &threads, "--device", device])
            .env("OMP_NUM_THREADS", &threads)
            .env("HF_HUB_OFFLINE", "1")
            .env("TOKENIZERS_PARALLELISM", "false");
        let hint = "give a Python with torch and transformers as --python";
        let version = |hello: &Value| {
            let [torch, transformers] = ["torch", "transformers"].map(|it| text(hello, it));
            format!("PyTorch {torch}, transformers {transformers}")
        };
        let process = Process::start("Python", command, hint, version)?;
        Ok(Self {
            name: HUGGING_FACE,
            process,
        })
    }

    /// Starts the program of `peers/candle`, which runs on the CPU.
    ///
    /// # Errors
    ///
    /// If there is no such program.
    pub fn candle(program: &Path, threads: usize) -> Result<Self> {
        let mut command = Command::new(program);
        command.env("RAYON_NUM_THREADS", threads.to_string());
        let hint = "give the program built from crates/mamba-bench/peers/candle as --peer-candle";
        Self::start(CANDLE, command, hint)
    }

    /// Starts the program of `peers/mamba-rs` on `cpu` or a device such as `cuda:0`.
    ///
    /// # Errors
    ///
    /// If there is no such program.
    pub fn mamba_rs(program: &Path, threads: usize, device: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .arg(device)
            .env("RAYON_NUM_THREADS", threads.to_string());
        let hint =
            "give the program built from crates/mamba-bench/peers/mamba-rs as --peer-mamba-rs";
        Self::start(MAMBA_RS, command, hint)
    }

    /// A program that bears the name of what it runs.
    fn start(name: &'static str, command: Command, hint: &str) -> Result<Self> {
        let version = |hello: &Value| format!("{name} {}", text(hello, "version"));
        let process = Process::start(name, command, hint, version)?;
        Ok(Self { name, process })
    }

    /// Its name as an engine.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Loads the model in `folder` under the name `model` and returns the number of its parameters. If it is `half`, it computes
    /// in bf16; its weights are f32 nonetheless if it is to be trained.
    ///
    /// # Errors
    ///
    /// If it cannot, with what it said.
    pub fn load(&mut self, model: &str, folder: &Path, half: bool, training: bool) -> Result<u64> {
        let folder = folder.to_str().context("the folder's name is not text")?;
        let answer = self.process.ask(&json!({
            "request": "load", "model": model, "folder": folder, "half": half, "training": training,
        }), Some("parameters"))?;
        answer["parameters"]
            .as_u64()
            .context("the peer did not count its parameters")
    }

    /// Lets a model go.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn forget(&mut self, model: &str) -> Result<()> {
        self.process
            .ask(&json!({"request": "forget", "model": model}), None)
            .map(drop)
    }

    /// Gives it the tokens that what follows runs on, row by row.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn set_tokens(&mut self, batch: usize, values: &[i64]) -> Result<()> {
        self.process
            .ask(
                &json!({"request": "tokens", "batch": batch, "values": values}),
                None,
            )
            .map(drop)
    }

    /// Logits behind each row, row by row.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn logits(&mut self, model: &str) -> Result<Vec<f64>> {
        let request = json!({"request": "logits", "model": model});
        numbers(&mut self.process, &request, "values")
    }

    /// Milliseconds of each of `calls` pieces of work; of a step, for [`Work::Decode`], which is one call.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn time(&mut self, model: &str, work: Work, calls: usize) -> Result<Vec<f64>> {
        let request = match work {
            Work::Forward => json!({"request": "forward", "model": model, "calls": calls}),
            Work::Prefill => json!({"request": "prefill", "model": model, "calls": calls}),
            Work::Decode(tokens) => json!({"request": "decode", "model": model, "tokens": tokens}),
            Work::Train => json!({"request": "train", "model": model, "calls": calls}),
        };
        numbers(&mut self.process, &request, "ms")
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::process::testing::script;
    use super::*;

    #[test]
    fn a_python_that_fails_is_told_with_its_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [
            "echo first >&2",
            "echo 'ModuleNotFoundError: torch' >&2",
            "exit 1",
        ];
        let error = ModelPeer::hugging_face(&script(folder.path(), &lines), 1, "cpu")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Python stopped: ModuleNotFoundError: torch");
        let error = ModelPeer::hugging_face(Path::new("/no/python"), 1, "cpu")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/no/python") && error.contains("--python"),
            "{error}"
        );
        let error = ModelPeer::candle(Path::new("/no/candle"), 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--peer-candle"), "{error}");
    }

    #[test]
    fn an_error_is_told_and_the_peer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [
            "read line; echo '{\"torch\": \"2\", \"transformers\": \"5\"}'",
            "read line; echo '{\"error\": \"ValueError: no such model\"}'",
            "read line; echo '{\"ms\": [1.5, 2.5]}'",
        ];
        let mut peer = ModelPeer::hugging_face(&script(folder.path(), &lines), 1, "cpu").unwrap();
        assert_eq!(peer.process.version(), "PyTorch 2, transformers 5");
        let error = peer.load("mamba1", folder.path(), false, false);
        assert_eq!(error.unwrap_err().to_string(), "ValueError: no such model");
        assert_eq!(peer.time("mamba1", Work::Prefill, 2).unwrap(), [1.5, 2.5]);
    }
}
