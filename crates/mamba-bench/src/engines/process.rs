//! A peer in a process of its own, which is spoken to in lines of JSON: a request a line, an answer a line.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Lines of its standard error that are kept.
const KEPT: usize = 20;

/// How long a peer may take to end once its input has: one on a GPU gives back what it holds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The running process; it ends when dropped.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    version: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: Option<LastLines>,
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
        let stderr = child.stderr.take().map(LastLines::of);
        let mut process = Self {
            name,
            version: String::new(),
            child,
            stdin,
            stdout: BufReader::new(stdout),
            stderr,
        };
        let hello = process.ask(&json!({"request": "hello"}), None)?;
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

    /// The answer to a request, an object; with that `field`, if one is named.
    ///
    /// # Errors
    ///
    /// If the process stopped, with the last line that it told, or answered with an error. One that answers with anything else
    /// is stopped: nobody knows which request its next answers would belong to.
    pub(super) fn ask(&mut self, request: &Value, field: Option<&str>) -> Result<Value> {
        self.ask_with(request, &[], field)
    }

    /// The same, with a body behind the line of the request, which tells its size.
    pub(super) fn ask_with(
        &mut self,
        request: &Value,
        body: &[u8],
        field: Option<&str>,
    ) -> Result<Value> {
        let mut answer = String::new();
        let sent = self.stdin.as_mut().is_some_and(|stdin| {
            writeln!(stdin, "{request}")
                .and_then(|()| stdin.write_all(body))
                .and_then(|()| stdin.flush())
                .is_ok()
        });
        if !sent || self.stdout.read_line(&mut answer).unwrap_or(0) == 0 {
            self.stop(PATIENCE);
            let words = self.last_words();
            bail!("{} stopped: {words}", self.name);
        }
        let value: Option<Value> = serde_json::from_str(&answer).ok();
        if let Some(error) = value.as_ref().and_then(|it| it["error"].as_str()) {
            bail!("{}", crate::attempt::one_line(error));
        }
        let asked_for =
            |it: &Value| it.is_object() && field.is_none_or(|field| !it[field].is_null());
        match value.filter(asked_for) {
            Some(value) => Ok(value),
            None => {
                self.stop(Duration::ZERO);
                let answer: String = answer.trim().chars().take(100).collect();
                bail!(
                    "{} answered out of turn and was stopped: {answer}",
                    self.name
                )
            }
        }
    }

    /// Ends its input, at which peers end; one that does not within `patience` is killed.
    fn stop(&mut self, patience: Duration) {
        self.stdin = None;
        // One whose state is not known is taken to run.
        if !within(patience, || matches!(self.child.try_wait(), Ok(Some(_)))) {
            // It may have ended just now.
            let _ = self.child.kill();
        }
        // An unwaited child would stay a zombie; how it ended does not matter.
        let _ = self.child.wait();
    }

    /// The last line that a stopped process told.
    fn last_words(&mut self) -> String {
        let last = self.stderr.take().and_then(LastLines::last);
        last.unwrap_or_else(|| "it said nothing".into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.stop(PATIENCE);
        }
    }
}

/// Whether something happens in that time.
fn within(time: Duration, mut happened: impl FnMut() -> bool) -> bool {
    const STEP: Duration = Duration::from_millis(5);
    let start = Instant::now();
    loop {
        if happened() {
            return true;
        }
        if start.elapsed() >= time {
            return false;
        }
        sleep(STEP);
    }
}

/// The last lines of what a process writes, read as it comes: a full pipe would stop it.
#[derive(Debug)]
struct LastLines {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl LastLines {
    fn of(stderr: ChildStderr) -> Self {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let kept = lines.clone();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(stderr).lines().map_while(Result::ok);
            for line in lines.filter(|line| !line.trim().is_empty()) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line.trim().to_owned());
                if kept.len() > KEPT {
                    kept.pop_front();
                }
            }
        });
        Self { lines, reader }
    }

    /// The last of all, once the process has ended. Others that it started may keep the pipe open; nobody waits for them.
    fn last(self) -> Option<String> {
        within(Duration::from_secs(1), || self.reader.is_finished());
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.back().cloned()
    }
}

/// The list of numbers that is the answer to a request.
pub(super) fn numbers(process: &mut Process, request: &Value, field: &str) -> Result<Vec<f64>> {
    let answer = process.ask(request, Some(field))?;
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

#[cfg(all(test, unix))]
mod tests {
    use super::testing::script;
    use super::*;

    fn start(lines: &[&str]) -> Process {
        let folder = tempfile::tempdir().unwrap();
        let command = Command::new(script(folder.path(), lines));
        Process::start("peer", command, "there is none", |it| text(it, "version")).unwrap()
    }

    const HELLO: &str = "read line; echo '{\"version\": \"1\"}'";

    #[test]
    fn a_body_follows_its_line() {
        let mut peer = start(&[
            HELLO,
            "read line; body=$(dd bs=1 count=4 2>/dev/null); echo \"{\\\"body\\\": \\\"$body\\\"}\"",
            "read line; echo \"$line\"",
        ]);
        let request = json!({"request": "load"});
        let answer = peer.ask_with(&request, b"abcd", Some("body")).unwrap();
        assert_eq!((peer.version(), &answer["body"]), ("1", &json!("abcd")));
        assert_eq!(peer.ask(&request, Some("request")).unwrap(), request);
    }

    #[test]
    fn one_that_answers_out_of_turn_is_stopped() {
        for stray in [
            "loading weights",
            "[1, 2]",
            "{\"shape\": [1, 2]}",
            "{\"ms\": null}",
        ] {
            let stray = format!("read line; echo '{stray}'; echo '{{\"ms\": [1]}}'");
            let mut peer = start(&[HELLO, &stray, "exec sleep 1000"]);
            let begun = Instant::now();
            let error = peer.ask(&json!({"request": "time"}), Some("ms"));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("peer answered out of turn"), "{error}");
            // Not the answer that was meant for the request before.
            assert!(!peer.is_running());
            let error = peer.ask(&json!({"request": "time"}), Some("ms"));
            assert!(error.unwrap_err().to_string().starts_with("peer stopped"));
            assert!(begun.elapsed() < Duration::from_secs(500));
        }
    }

    #[test]
    fn one_that_does_not_end_is_killed() {
        let mut peer = start(&[HELLO, "trap '' PIPE", "exec sleep 1000"]);
        let id = peer.id();
        peer.stop(Duration::from_millis(50));
        assert!(!peer.is_running());
        assert!(
            matches!(peer.child.try_wait(), Ok(Some(status)) if !status.success()),
            "{id}"
        );
    }
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
