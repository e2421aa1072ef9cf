//! Hugging Face's `transformers`, in a process of its own that is spoken to in lines of JSON.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Carried in the binary, so that it runs from anywhere.
const SCRIPT: &str = include_str!("../../peers/hugging_face.py");

/// Lines of its standard error that are kept.
const KEPT: usize = 20;

/// Its name as an engine.
pub const NAME: &str = "hugging face";

/// What it times.
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
pub struct HuggingFace {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<VecDeque<String>>>,
    version: String,
}

impl HuggingFace {
    /// Starts the script under `python` on a device of PyTorch, such as `cpu` or `cuda:0`.
    ///
    /// # Errors
    ///
    /// If there is no such interpreter, or it lacks torch or transformers.
    pub fn start(python: &Path, threads: usize, device: &str) -> Result<Self> {
        let threads = threads.to_string();
        let mut child = Command::new(python)
            .args(["-c", SCRIPT, "--threads", &threads, "--device", device])
            .env("OMP_NUM_THREADS", &threads)
            .env("HF_HUB_OFFLINE", "1")
            .env("TOKENIZERS_PARALLELISM", "false")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {}: give a Python with torch and transformers as --python",
                    python.display()
                )
            })?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the peer has no output")?;
        // Read as it comes: a full pipe would stop the peer.
        let stderr = child
            .stderr
            .take()
            .map(|stderr| std::thread::spawn(move || last_lines(stderr)));
        let mut peer = Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
            stderr,
            version: String::new(),
        };
        let hello = peer.ask(&json!({"request": "hello"}))?;
        let version = |name: &str| hello[name].as_str().unwrap_or("unknown").to_owned();
        peer.version = format!(
            "{}, transformers {}",
            version("torch"),
            version("transformers")
        );
        Ok(peer)
    }

    /// Versions of torch and transformers.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The operating system's number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Loads the model in `folder` under the name `model`, in bf16 if it is `half`, and returns the number of its parameters.
    ///
    /// # Errors
    ///
    /// If it cannot, with what it said.
    pub fn load(&mut self, model: &str, folder: &Path, half: bool) -> Result<u64> {
        let folder = folder.to_str().context("the folder's name is not text")?;
        let answer =
            self.ask(&json!({"request": "load", "model": model, "folder": folder, "half": half}))?;
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
        self.ask(&json!({"request": "forget", "model": model}))
            .map(drop)
    }

    /// Whether the process was still there when it was last asked.
    pub fn is_running(&self) -> bool {
        self.stdin.is_some()
    }

    /// Gives it the tokens that what follows runs on, row by row.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn set_tokens(&mut self, batch: usize, values: &[i64]) -> Result<()> {
        self.ask(&json!({"request": "tokens", "batch": batch, "values": values}))
            .map(drop)
    }

    /// Logits behind each row, row by row.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn logits(&mut self, model: &str) -> Result<Vec<f64>> {
        numbers(
            &self.ask(&json!({"request": "logits", "model": model}))?,
            "values",
        )
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
        numbers(&self.ask(&request)?, "ms")
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        let mut answer = String::new();
        let sent = self.stdin.as_mut().is_some_and(|stdin| {
            writeln!(stdin, "{request}")
                .and_then(|()| stdin.flush())
                .is_ok()
        });
        if !sent || self.stdout.read_line(&mut answer).unwrap_or(0) == 0 {
            bail!("Python stopped: {}", self.last_words());
        }
        let answer: Value = serde_json::from_str(&answer)
            .with_context(|| format!("Python answered out of turn: {}", answer.trim()))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{}", crate::attempt::one_line(error));
        }
        Ok(answer)
    }

    /// The last line that a stopped process told.
    fn last_words(&mut self) -> String {
        self.stdin = None;
        // How it ended does not matter beside what it said.
        let _ = self.child.wait();
        let lines = self
            .stderr
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        lines
            .back()
            .cloned()
            .unwrap_or_else(|| "it said nothing".into())
    }
}

impl Drop for HuggingFace {
    /// The script ends at the end of its input.
    fn drop(&mut self) {
        self.stdin = None;
        // An unwaited child would stay a zombie; how it ended no longer matters.
        let _ = self.child.wait();
    }
}

fn last_lines(stderr: ChildStderr) -> VecDeque<String> {
    let mut lines = VecDeque::new();
    for line in BufReader::new(stderr)
        .lines()
        .map_while(Result::ok)
        .filter(|line| !line.trim().is_empty())
    {
        lines.push_back(line.trim().to_owned());
        if lines.len() > KEPT {
            lines.pop_front();
        }
    }
    lines
}

fn numbers(answer: &Value, field: &str) -> Result<Vec<f64>> {
    let values = answer[field]
        .as_array()
        .with_context(|| format!("the peer's answer has no {field}"))?;
    // A value that is no number is null in JSON's place for it.
    let values: Vec<f64> = values
        .iter()
        .map(|value| value.as_f64().unwrap_or(f64::NAN))
        .collect();
    ensure!(!values.is_empty(), "the peer's {field} are empty");
    Ok(values)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_python_that_fails_is_told_with_its_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("python");
        std::fs::write(
            &script,
            "#!/bin/sh\necho first >&2\necho 'ModuleNotFoundError: torch' >&2\nexit 1\n",
        )
        .unwrap();
        let mut mode = std::fs::metadata(&script).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let error = HuggingFace::start(&script, 1, "cpu")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Python stopped: ModuleNotFoundError: torch");
        let error = HuggingFace::start(Path::new("/no/python"), 1, "cpu")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/no/python") && error.contains("--python"),
            "{error}"
        );
    }

    #[test]
    fn an_error_is_told_and_the_peer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("python");
        let lines = [
            "#!/bin/sh",
            "read line; echo '{\"torch\": \"2\", \"transformers\": \"5\"}'",
            "read line; echo '{\"error\": \"ValueError: no such model\"}'",
            "read line; echo '{\"ms\": [1.5, 2.5]}'",
        ];
        std::fs::write(&script, lines.join("\n")).unwrap();
        let mut mode = std::fs::metadata(&script).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let mut peer = HuggingFace::start(&script, 1, "cpu").unwrap();
        assert_eq!(peer.version(), "2, transformers 5");
        assert_eq!(
            peer.load("mamba1", folder.path(), false)
                .unwrap_err()
                .to_string(),
            "ValueError: no such model"
        );
        assert_eq!(peer.time("mamba1", Work::Prefill, 2).unwrap(), [1.5, 2.5]);
    }
}
