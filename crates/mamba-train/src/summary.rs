//! `summary.json`: the results of a run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cache::write_atomic;
use crate::evaluate::{Evaluation, perplexity};
use crate::hardware::Hardware;
use crate::learner::Stop;

/// The version of Burn this crate is built on.
pub const BURN_VERSION: &str = "0.22.1";

/// The results of a finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The name of the run.
    pub name: String,
    /// The corpus: `wikitext-2-v1`, `wikitext-2-raw-v1`, `stories` or `own-text`.
    pub corpus: String,
    /// Why training ended.
    pub stop: Stop,
    /// Optimizer steps taken.
    pub steps: usize,
    /// Epochs begun or completed, as a number of passes over the training split.
    pub epochs: f64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Parameters of the model.
    pub parameters: usize,
    /// The step whose weights were kept: the last, or the best where early stopping ended the run.
    pub kept_step: usize,
    /// The valid split before the first step; `training.eval_batches` limits its tokens.
    pub before: Option<Scores>,
    /// Mean training loss over the last logged interval.
    pub train: Option<Scores>,
    /// The whole valid split.
    pub valid: Option<Scores>,
    /// The whole test split.
    pub test: Option<Scores>,
    /// Tokens trained on per second of computation.
    pub tokens_per_second: f64,
    /// Seconds of training with its evaluations and checkpoints; interruptions and the final
    /// evaluation are left out.
    pub wall_seconds: f64,
    /// The most memory the process has held, in bytes. Known on Linux only.
    pub peak_memory: Option<u64>,
    /// The machine and device.
    pub hardware: Hardware,
    /// The git revision of the folder that the program was built from, if it is there.
    pub git_revision: Option<String>,
    /// The versions of the software.
    pub versions: Versions,
    /// What was written to `model.bpk`. Runs of before did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelFile>,
}

/// By what a file is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// A loss with its perplexity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Mean cross-entropy a token, in nats.
    pub loss: f64,
    /// The exponential of the loss.
    pub perplexity: f64,
    /// Tokens the loss is a mean over, where it is an evaluation.
    pub tokens: Option<usize>,
}

impl Scores {
    /// The scores of a training loss.
    pub fn of_loss(loss: f64) -> Self {
        Self {
            loss,
            perplexity: perplexity(loss),
            tokens: None,
        }
    }
}

impl From<Evaluation> for Scores {
    fn from(evaluation: Evaluation) -> Self {
        Self {
            tokens: Some(evaluation.tokens),
            ..Self::of_loss(evaluation.loss)
        }
    }
}

/// The versions of the software.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// mamba-lab.
    pub mamba_lab: String,
    /// Burn.
    pub burn: String,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            mamba_lab: env!("CARGO_PKG_VERSION").into(),
            burn: BURN_VERSION.into(),
        }
    }
}

impl Summary {
    /// Reads the summary at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a run summary", path.display()))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        write_atomic(path, |out| Ok(writeln!(out, "{text}")?))
    }
}

/// The git revision of the folder that this program was built from, `-dirty` where it has changes; none where that folder
/// is gone.
pub(crate) fn git_revision() -> Option<String> {
    let output = Command::new("git")
        .args([
            "-C",
            env!("CARGO_MANIFEST_DIR"),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ])
        .output()
        .ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !revision.is_empty()).then_some(revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burn_version_is_the_locked_one() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = fs::read_to_string(lock).unwrap();
        let entry = format!("name = \"burn\"\nversion = \"{BURN_VERSION}\"\n");
        assert!(
            lock.contains(&entry),
            "BURN_VERSION is not the version in Cargo.lock"
        );
    }
}
