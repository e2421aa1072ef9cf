//! Operations of PyTorch, of Triton and of the authors' CUDA packages, in a process of their own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::process::{Process, numbers, text};
use crate::problems::Op;

/// Carried in the binary, so that it runs from anywhere.
const SCRIPT: &str = include_str!("../../peers/operations.py");

/// The running process; it ends when dropped.
#[derive(Debug)]
pub struct OpPeer {
    pub(crate) process: Process,
}

/// An engine that solves an operation on the peer's device.
#[derive(Clone, Debug, Deserialize)]
pub struct Offer {
    /// Its name in results.
    pub engine: String,
    /// Why it cannot, if it cannot.
    pub missing: Option<String>,
}

impl OpPeer {
    /// Starts the script under `python` on a device of PyTorch. Modules are looked for in `folders` first, such as one that
    /// holds the Python files of mamba-ssm.
    ///
    /// # Errors
    ///
    /// If there is no such interpreter, or it lacks torch or the device.
    pub fn start(python: &Path, folders: &[String], threads: usize, device: &str) -> Result<Self> {
        let threads = threads.to_string();
        let mut command = Command::new(python);
        command
            .args(["-c", SCRIPT, "--threads", &threads, "--device", device])
            .env("OMP_NUM_THREADS", &threads);
        for folder in folders {
            command.args(["--path", folder]);
        }
        let hint = "give a Python with torch as --python";
        let version = |hello: &Value| {
            let parts = ["torch", "triton", "mamba_ssm", "causal_conv1d"];
            let [torch, triton, mamba, conv] = parts.map(|it| text(hello, it));
            format!("PyTorch {torch}, Triton {triton}, mamba-ssm {mamba}, causal-conv1d {conv}")
        };
        let process = Process::start("Python", command, hint, version)?;
        Ok(Self { process })
    }

    /// Who solves an operation there, and who could but is not installed.
    ///
    /// # Errors
    ///
    /// If the process stopped.
    pub fn offers(&mut self, op: &Op, half: bool) -> Result<Vec<Offer>> {
        let answer = self
            .process
            .ask(&asked("offers", op, half), Some("engines"))?;
        serde_json::from_value(answer["engines"].clone()).context("the peer named no engines")
    }

    /// The output of `engine` on the inputs that ours has, `[batch, seq_len, channels]`, row by row.
    ///
    /// # Errors
    ///
    /// If it cannot, with what it said.
    pub fn compute(&mut self, engine: &str, op: &Op, half: bool) -> Result<Vec<f64>> {
        let mut request = asked("compute", op, half);
        request["engine"] = json!(engine);
        request["inputs"] = inputs(op);
        numbers(&mut self.process, &request, "values")
    }

    /// Gives `engine` inputs of its own of that size, and returns how its calls will be timed.
    ///
    /// # Errors
    ///
    /// As [`compute`](Self::compute).
    pub fn prepare(&mut self, engine: &str, op: &Op, half: bool) -> Result<String> {
        let mut request = asked("prepare", op, half);
        request["engine"] = json!(engine);
        Ok(text(&self.process.ask(&request, Some("how"))?, "how"))
    }

    /// Milliseconds of each of `calls` calls, or of one of them on average where the device queues them.
    ///
    /// # Errors
    ///
    /// As [`compute`](Self::compute).
    pub fn time(&mut self, engine: &str, calls: usize) -> Result<Vec<f64>> {
        let request = json!({"request": "time", "engine": engine, "calls": calls});
        numbers(&mut self.process, &request, "ms")
    }

    /// Lets all inputs go.
    ///
    /// # Errors
    ///
    /// If the process stopped.
    pub fn forget(&mut self) -> Result<()> {
        self.process
            .ask(&json!({"request": "forget"}), None)
            .map(drop)
    }
}

fn asked(request: &str, op: &Op, half: bool) -> Value {
    let sizes = match op {
        Op::Scan(sizes) => json!(sizes),
        Op::Ssd(sizes) => json!(sizes),
        Op::Conv(sizes) => json!(sizes),
        Op::Attention(sizes) => json!(sizes),
    };
    json!({"request": request, "op": op.name(), "sizes": sizes, "half": half})
}

/// All inputs by name, row-major; the state only of a step.
fn inputs(op: &Op) -> Value {
    match op {
        Op::Scan(problem) => {
            let data = problem.data();
            let state = op.is_step().then(|| problem.state());
            json!({
                "u": data.u, "delta": data.delta, "a": data.a, "b": data.b, "c": data.c, "d": data.d,
                "z": data.z, "delta_bias": data.delta_bias, "state": state,
            })
        }
        Op::Ssd(problem) => {
            let data = problem.data();
            json!({
                "x": data.x, "dt": data.dt, "a": data.a, "b": data.b, "c": data.c, "d": data.d,
                "dt_bias": data.dt_bias, "state": data.initial_state,
            })
        }
        Op::Conv(problem) => {
            let [x, weight, bias] = problem.data();
            json!({"x": x, "weight": weight, "bias": bias})
        }
        Op::Attention(problem) => {
            let [query, key, value] = problem.data();
            json!({"query": query, "key": key, "value": value})
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::process::testing::script;
    use super::*;

    #[test]
    fn what_is_not_installed_is_told_and_what_fails_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [
            "read line; echo '{\"torch\": \"2\", \"triton\": \"3\", \"mamba_ssm\": \"none\"}'",
            "read line; echo '{\"engines\": [{\"engine\": \"a\", \"missing\": \"no module\"}]}'",
            "read line; echo '{\"error\": \"RuntimeError: out of memory\"}'",
        ];
        let python = script(folder.path(), &lines);
        let mut peer = OpPeer::start(&python, &[], 1, "cpu").unwrap();
        assert!(peer.process.version().contains("Triton 3, mamba-ssm none"));
        let op = Op::all(1, 8)[0].tiny();
        let offers = peer.offers(&op, false).unwrap();
        assert_eq!(offers[0].missing.as_deref(), Some("no module"));
        let error = peer.compute("b", &op, false).unwrap_err();
        assert_eq!(error.to_string(), "RuntimeError: out of memory");
        assert!(peer.prepare("b", &op, false).is_err() && !peer.process.is_running());
    }
}
