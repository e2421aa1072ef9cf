//! PyTorch, in a process of its own that is spoken to in lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::problems::Tutorial;

/// Carried in the binary, so that it runs from anywhere.
const SCRIPT: &str = include_str!("../../peers/pytorch.py");

/// Which of the peer's models.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerModel {
    /// Our model's equations, with the recurrence as a Python loop over time.
    Mamba,
    /// Pre-norm GPT-2 blocks on `scaled_dot_product_attention`.
    Transformer,
}

/// Numbers that the peer computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// For timing.
    Single,
    /// For proofs.
    Double,
}

#[derive(Serialize)]
#[serde(tag = "request", rename_all = "snake_case")]
enum Request<'a> {
    Hello,
    LoadMamba {
        bytes: usize,
        double: bool,
    },
    LoadTransformer {
        vocab_size: usize,
        d_model: usize,
        n_layer: usize,
        heads: usize,
        max_positions: usize,
    },
    Tokens {
        batch: usize,
        values: &'a [i64],
    },
    Hidden {
        model: PeerModel,
    },
    AttentionError,
    Forward {
        model: PeerModel,
        calls: usize,
    },
    Train {
        model: PeerModel,
        calls: usize,
    },
    PeakMemory,
}

#[derive(Deserialize)]
struct Hello {
    torch: String,
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(rename = "parameters")]
    _count: usize,
}

#[derive(Deserialize)]
struct TokenShape {
    shape: [usize; 2],
}

#[derive(Deserialize)]
struct Values {
    values: Vec<f64>,
}

#[derive(Deserialize)]
struct Error {
    error: f64,
}

#[derive(Deserialize)]
struct Clocked {
    ms: Vec<f64>,
}

#[derive(Deserialize)]
struct Bytes {
    bytes: u64,
}

/// Steps of [`Peer::train`].
#[derive(Clone, Debug, Deserialize)]
pub struct Trained {
    /// Duration of each step in milliseconds.
    pub ms: Vec<f64>,
    /// Loss before each step.
    pub losses: Vec<f64>,
}

/// The running process; it ends when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    torch: String,
}

impl Peer {
    /// Starts the script under `python` with `threads` threads.
    ///
    /// # Errors
    ///
    /// If there is no such interpreter, or it lacks torch or safetensors.
    pub fn start(python: &Path, threads: usize) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", SCRIPT, "--threads", &threads.to_string()])
            .env("CUDA_VISIBLE_DEVICES", "")
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}: give --python", python.display()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the peer has no output")?;
        let mut peer = Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
            torch: String::new(),
        };
        let hello: Hello = peer.ask(&Request::Hello, &[])?;
        peer.torch = hello.torch;
        Ok(peer)
    }

    /// The version of torch.
    pub fn torch(&self) -> &str {
        &self.torch
    }

    /// The operating system's number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Loads [`PeerModel::Mamba`] from [`tutorial_weights`](super::ours::tutorial_weights).
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn load_mamba(&mut self, weights: &[u8], precision: Precision) -> Result<()> {
        let double = precision == Precision::Double;
        let request = Request::LoadMamba {
            bytes: weights.len(),
            double,
        };
        self.ask::<Parameters>(&request, weights).map(drop)
    }

    /// Makes [`PeerModel::Transformer`] for `problem`, with room for its sequences.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn load_transformer(&mut self, problem: &Tutorial) -> Result<()> {
        let request = Request::LoadTransformer {
            vocab_size: problem.vocab_size,
            d_model: problem.d_model,
            n_layer: Tutorial::TRANSFORMER_LAYERS,
            heads: Tutorial::TRANSFORMER_HEADS,
            max_positions: problem.seq_len,
        };
        self.ask::<Parameters>(&request, &[]).map(drop)
    }

    /// Gives the peer the tokens that what follows runs on.
    ///
    /// # Errors
    ///
    /// If the peer stopped or read another shape.
    pub fn set_tokens(&mut self, problem: &Tutorial) -> Result<()> {
        let request = Request::Tokens {
            batch: problem.batch,
            values: &problem.sequences(),
        };
        let TokenShape { shape } = self.ask(&request, &[])?;
        let expected = [problem.batch, problem.seq_len];
        if shape != expected {
            bail!("the peer read tokens of shape {shape:?}, expected {expected:?}");
        }
        Ok(())
    }

    /// The hidden states of a model, `[batch, seq_len, d_model]`.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn hidden(&mut self, model: PeerModel) -> Result<Vec<f64>> {
        self.ask::<Values>(&Request::Hidden { model }, &[])
            .map(|answer| answer.values)
    }

    /// How far the transformer's hidden states are from those with attention written out, relative
    /// to the largest.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn attention_error(&mut self) -> Result<f64> {
        self.ask::<Error>(&Request::AttentionError, &[])
            .map(|answer| answer.error)
    }

    /// Milliseconds of each of `calls` forward passes.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn forward(&mut self, model: PeerModel, calls: usize) -> Result<Vec<f64>> {
        self.ask::<Clocked>(&Request::Forward { model, calls }, &[])
            .map(|answer| answer.ms)
    }

    /// Takes `calls` training steps.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn train(&mut self, model: PeerModel, calls: usize) -> Result<Trained> {
        self.ask(&Request::Train { model, calls }, &[])
    }

    /// The largest resident size of the process so far, in bytes.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn peak_memory(&mut self) -> Result<u64> {
        self.ask::<Bytes>(&Request::PeakMemory, &[])
            .map(|answer| answer.bytes)
    }

    fn ask<A: DeserializeOwned>(&mut self, request: &Request, body: &[u8]) -> Result<A> {
        const STOPPED: &str = "the PyTorch peer stopped; what it wrote to stderr says why \
                               (it needs torch 2.4 or later and safetensors)";
        let stdin = self.stdin.as_mut().context(STOPPED)?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stdin.write_all(&line).context(STOPPED)?;
        stdin.write_all(body).context(STOPPED)?;
        stdin.flush().context(STOPPED)?;
        let mut answer = String::new();
        if self.stdout.read_line(&mut answer).context(STOPPED)? == 0 {
            bail!(STOPPED);
        }
        serde_json::from_str(&answer)
            .with_context(|| format!("the PyTorch peer answered out of turn: {}", answer.trim()))
    }
}

impl Drop for Peer {
    /// The script ends at the end of its input.
    fn drop(&mut self) {
        self.stdin = None;
        // An unwaited child would stay a zombie; how it ended no longer matters.
        let _ = self.child.wait();
    }
}
