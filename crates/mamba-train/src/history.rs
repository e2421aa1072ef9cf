//! `metrics.jsonl`: one JSON object a logged step.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cache::write_atomic;
use crate::evaluate::Evaluation;
use crate::learner::TrainState;

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// The mean over the training steps since the last such record.
    Train {
        /// Optimizer steps taken.
        step: usize,
        /// The epoch, counted from 1.
        epoch: usize,
        /// Mean cross-entropy a token, in nats.
        loss: f64,
        /// The exponential of the loss.
        perplexity: f64,
        /// The learning rate of the last step.
        learning_rate: f64,
        /// Tokens trained on since the run began.
        tokens: u64,
        /// Tokens a second of computation.
        tokens_per_second: f64,
        /// Seconds since the run began.
        seconds: f64,
    },
    /// An evaluation on the valid split during training.
    Eval(EvalRecord),
    /// An evaluation of the trained model.
    Final(EvalRecord),
}

/// The loss on a split after a number of steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimizer steps taken.
    pub step: usize,
    /// `valid` or `test`.
    pub split: String,
    /// Mean cross-entropy a token, in nats.
    pub loss: f64,
    /// The exponential of the loss.
    pub perplexity: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

impl EvalRecord {
    /// The record of `evaluation`, made on `split` after `step` steps.
    pub fn new(split: &str, step: usize, evaluation: Evaluation) -> Self {
        Self {
            step,
            split: split.to_string(),
            loss: evaluation.loss,
            perplexity: evaluation.perplexity(),
            tokens: evaluation.tokens,
        }
    }
}

impl Record {
    /// Whether a run that continues from `state` has already written this record.
    fn precedes(&self, state: &TrainState) -> bool {
        match self {
            Self::Train { step, .. } => *step <= state.step,
            Self::Eval(record) => state.evaluated_step.is_some_and(|last| record.step <= last),
            Self::Final(_) => false,
        }
    }
}

/// Appends to `metrics.jsonl`.
#[derive(Debug)]
pub struct History {
    file: File,
    path: PathBuf,
}

impl History {
    /// Opens the history at `path` for a run that continues from `state`, without the records
    /// that a crashed run wrote after that state was saved.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written, or a line before the last is no record.
    pub fn open(path: &Path, state: &TrainState) -> Result<Self> {
        if path.exists() {
            let known = read_lines(path)?
                .into_iter()
                .filter(|(record, _)| record.precedes(state))
                .map(|(_, line)| line)
                .collect::<String>();
            write_atomic(path, |out| Ok(out.write_all(known.as_bytes())?))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
        })
    }

    /// Appends a record.
    pub fn push(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The records at `path`. A last line cut short by a crash is left out.
///
/// # Errors
///
/// When the file cannot be read, or a line before the last is no record.
pub fn read_history(path: &Path) -> Result<Vec<Record>> {
    Ok(read_lines(path)?
        .into_iter()
        .map(|(record, _)| record)
        .collect())
}

fn read_lines(path: &Path) -> Result<Vec<(Record, String)>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.split_inclusive('\n')
        .enumerate()
        .filter(|(_, line)| line.ends_with('\n'))
        .map(|(number, line)| {
            let record = serde_json::from_str(line).ok().with_context(|| {
                let (path, number) = (path.display(), number + 1);
                format!(
                    "{path} line {number} is damaged: remove that line (or the file: only the curve is lost) and try again"
                )
            })?;
            Ok((record, line.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: usize) -> Record {
        Record::Train {
            step,
            epoch: 1,
            loss: 0.1 + step as f64,
            perplexity: 1.0,
            learning_rate: 1e-3,
            tokens: 7,
            tokens_per_second: 2.0,
            seconds: 3.0,
        }
    }

    fn eval(step: usize) -> Record {
        Record::Eval(EvalRecord::new(
            "valid",
            step,
            Evaluation {
                loss: 2.0,
                tokens: 5,
            },
        ))
    }

    #[test]
    fn reopening_drops_what_the_checkpoint_does_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut history = History::open(&path, &TrainState::default()).unwrap();
        for record in [eval(0), train(1), train(2), eval(2), train(3), eval(3)] {
            history.push(&record).unwrap();
        }
        fs::write(
            &path,
            fs::read_to_string(&path).unwrap() + "{\"kind\":\"tra",
        )
        .unwrap();

        let state = TrainState {
            step: 2,
            evaluated_step: Some(0),
            ..TrainState::default()
        };
        let mut history = History::open(&path, &state).unwrap();
        history.push(&eval(2)).unwrap();
        assert_eq!(
            read_history(&path).unwrap(),
            [eval(0), train(1), train(2), eval(2)]
        );
    }

    #[test]
    fn damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "{\"kind\":\n{}\n").unwrap();
        let message = format!("{:#}", read_history(&path).unwrap_err());
        assert!(message.contains("metrics.jsonl line 1"), "{message}");
    }
}
