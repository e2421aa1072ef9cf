//! PyTorch, in a process of its own that is spoken to in lines of JSON.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::process::{Process, text};
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
    process: Process,
}

impl Peer {
    /// Starts the script under `python` with `threads` threads.
    ///
    /// # Errors
    ///
    /// If there is no such interpreter, or it lacks torch (2.4 or later) or safetensors.
    pub fn start(python: &Path, threads: usize) -> Result<Self> {
        let threads = threads.to_string();
        let mut command = Command::new(python);
        command
            .args(["-c", SCRIPT, "--threads", &threads])
            .env("CUDA_VISIBLE_DEVICES", "")
            .env("OMP_NUM_THREADS", &threads);
        let hint = "give a Python with torch 2.4 or later and safetensors as --python";
        let process = Process::start("Python", command, hint, |hello| text(hello, "torch"))?;
        Ok(Self { process })
    }

    /// The version of torch.
    pub fn torch(&self) -> &str {
        self.process.version()
    }

    /// The operating system's number of the process.
    pub fn id(&self) -> u32 {
        self.process.id()
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
        self.ask_with(&request, weights, "parameters").map(drop)
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
        self.ask_with(&request, &[], "parameters").map(drop)
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
        let shape: [usize; 2] = self.ask(&request, "shape")?;
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
        self.ask(&Request::Hidden { model }, "values")
    }

    /// How far the transformer's hidden states are from those with attention written out, relative
    /// to the largest.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn attention_error(&mut self) -> Result<f64> {
        // `error` would tell that something went wrong.
        self.ask(&Request::AttentionError, "distance")
    }

    /// Milliseconds of each of `calls` forward passes.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn forward(&mut self, model: PeerModel, calls: usize) -> Result<Vec<f64>> {
        self.ask(&Request::Forward { model, calls }, "ms")
    }

    /// Takes `calls` training steps.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn train(&mut self, model: PeerModel, calls: usize) -> Result<Trained> {
        let answer = self.ask_with(&Request::Train { model, calls }, &[], "losses")?;
        serde_json::from_value(answer).context("the PyTorch peer's steps are none")
    }

    /// The largest resident size of the process so far, in bytes.
    ///
    /// # Errors
    ///
    /// If the peer stopped.
    pub fn peak_memory(&mut self) -> Result<u64> {
        self.ask(&Request::PeakMemory, "bytes")
    }

    /// That field of the answer.
    fn ask<A: DeserializeOwned>(&mut self, request: &Request, field: &str) -> Result<A> {
        let mut answer = self.ask_with(request, &[], field)?;
        serde_json::from_value(answer[field].take())
            .with_context(|| format!("the PyTorch peer's {field} are none"))
    }

    fn ask_with(&mut self, request: &Request, body: &[u8], field: &str) -> Result<Value> {
        let request = serde_json::to_value(request)?;
        self.process.ask_with(&request, body, Some(field))
    }
}
