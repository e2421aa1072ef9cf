//! A peer in a process of its own, which is spoken to in lines of JSON: a request a line, an answer a line.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Lines of its standard error that are kept.
const KEPT: usize = 20;

/// The running process; it ends when dropped.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    version: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<VecDeque<String>>>,
}

impl Process {
    /// Starts `command`, which messages call `name`, and greets it: `version` reads from its answer what runs there. `hint`
    /// says what to do where it cannot be started.
    pub(super) fn start(
        name: &'static str,
        mut command: Command,
        hint: &str,
        version: impl FnOnce(&Value) -> String,
    ) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| {
            let program = command.get_program().to_string_lossy();
            format!("cannot start {program}: {hint}")
        })?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the peer has no output")?;
        // Read as it comes: a full pipe would stop the peer.
        let stderr = child
            .stderr
            .take()
            .map(|stderr| std::thread::spawn(move || last_lines(stderr)));
        let mut process = Self {
            name,
            version: String::new(),
            child,
            stdin,
            stdout: BufReader::new(stdout),
            stderr,
        };
        let hello = process.ask(&json!({"request": "hello"}))?;
        process.version = version(&hello);
        Ok(process)
    }

    /// What runs there, with versions.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The operating system's number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process was still there when it was last asked.
    pub fn is_running(&self) -> bool {
        self.stdin.is_some()
    }

    /// The answer to a request.
    ///
    /// # Errors
    ///
    /// If the process stopped, with the last line that it told, or answered with an error.
    pub(super) fn ask(&mut self, request: &Value) -> Result<Value> {
        let mut answer = String::new();
        let sent = self.stdin.as_mut().is_some_and(|stdin| {
            writeln!(stdin, "{request}")
                .and_then(|()| stdin.flush())
                .is_ok()
        });
        if !sent || self.stdout.read_line(&mut answer).unwrap_or(0) == 0 {
            let words = self.last_words();
            bail!("{} stopped: {words}", self.name);
        }
        let answer: Value = serde_json::from_str(&answer)
            .with_context(|| format!("{} answered out of turn: {}", self.name, answer.trim()))?;
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

impl Drop for Process {
    /// Peers end at the end of their input.
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

/// A list of numbers in an answer.
pub(super) fn numbers(answer: &Value, field: &str) -> Result<Vec<f64>> {
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

/// A text in an answer, or `unknown`.
pub(super) fn text(answer: &Value, field: &str) -> String {
    answer[field].as_str().unwrap_or("unknown").to_owned()
}

/// Programs that stand for a peer.
#[cfg(all(test, unix))]
pub(super) mod testing {
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    /// A shell script with these lines in `folder`. Another process writes it: as long as one has a program open for writing, and
    /// those that other tests start would inherit it from this one, the system refuses to run it.
    pub fn script(folder: &Path, lines: &[&str]) -> PathBuf {
        let script = folder.join("program");
        let mut writer = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&script)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let text = format!("#!/bin/sh\n{}\n", lines.join("\n"));
        let mut stdin = writer.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        assert!(writer.wait().unwrap().success());
        script
    }
}
