//! Experiments: everything that decides what a run computes, in one TOML file.
//!
//! A file names only what differs from the defaults; `--set section.key=value` differs once more.
//! The resolved experiment is written to the run folder, so that a run can be repeated, resumed
//! and evaluated from its folder alone.

mod parse;
mod training;

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use mamba_core::LanguageModelConfig;
use serde::{Deserialize, Serialize};
use toml::Table;

pub use training::{OptimizerKind, PrecisionSetting, TrainingConfig};

use crate::corpus::{CorpusConfig, DatasetKind, StoriesConfig};
use crate::run::ensure_name;
use crate::tokenizer::{Convention, Tokenizer};

/// A complete training experiment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Experiment {
    /// The name, which also names the run folder. Default: the file's, without its extension.
    pub name: String,
    /// The model to begin with: a run's folder or that of a pretrained model, from which `model` and the tokenizer come.
    /// Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// The tokenizer of `from`, where that is a pretrained model without the right one in its folder: `"gpt2"`, `"bytes"` or the
    /// path of a `tokenizer.json`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_tokenizer: Option<String>,
    /// The model. `vocab_size` always follows the tokenizer, but for a model that another one is begun with.
    pub model: LanguageModelConfig,
    /// The text and how it is cut into batches.
    pub data: DataConfig,
    /// The optimisation.
    pub training: TrainingConfig,
    /// The text sampled once the run has finished.
    pub sample: SampleConfig,
}

impl Default for Experiment {
    fn default() -> Self {
        Self {
            name: "experiment".into(),
            from: None,
            from_tokenizer: None,
            model: LanguageModelConfig::default(),
            data: DataConfig::default(),
            training: TrainingConfig::default(),
            sample: SampleConfig::default(),
        }
    }
}

/// The text and how it is cut into batches.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct DataConfig {
    /// `"auto"`, `"wikitext-2"`, `"wikitext-2-raw"` or `"stories"`. Default: `"auto"`.
    pub dataset: DatasetKind,
    /// A folder to read the corpus from. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// What the text turned out to be, written by the run: `wikitext-2-v1`, `wikitext-2-raw-v1`,
    /// `stories` or `own-text`. Where it is given, any other text is refused. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corpus: Option<String>,
    /// The size and seed of the generated stories.
    pub stories: StoriesConfig,
    /// `"gpt2"`, `"bytes"` or the path of a `tokenizer.json`. Default: `"gpt2"`.
    pub tokenizer: String,
    /// The tokenizer's fingerprint, written by the run. Where it is given, any other tokenizer is refused. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer_sha256: Option<String>,
    /// The hash of the tokens of all splits, written by the run. Where it is given, any other text is refused. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_sha256: Option<String>,
    /// `"whole-file"` or `"rows"`: how the text of a split is encoded. Default: `"whole-file"`.
    pub convention: Convention,
    /// Tokens in a training sequence. Default: 128.
    pub seq_len: usize,
    /// Sequences in a batch. Default: 32.
    pub batch_size: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            dataset: DatasetKind::default(),
            data_dir: None,
            corpus: None,
            stories: StoriesConfig::default(),
            tokenizer: "gpt2".into(),
            tokenizer_sha256: None,
            text_sha256: None,
            convention: Convention::default(),
            seq_len: 128,
            batch_size: 32,
        }
    }
}

impl DataConfig {
    /// Which corpus this is.
    pub fn corpus_config(&self) -> CorpusConfig {
        CorpusConfig {
            dataset: self.dataset,
            data_dir: self.data_dir.clone(),
            stories: self.stories.clone(),
        }
    }
}

/// The text sampled once the run has finished.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct SampleConfig {
    /// The text to continue. Default: `"The"`.
    pub prompt: String,
    /// Tokens to generate; 0 generates nothing. Default: 64.
    pub tokens: usize,
    /// Softmax temperature; 0 always takes the most likely token. Default: 0.8.
    pub temperature: f64,
    /// Sample among this many most likely tokens only; 0 is off. Default: 50.
    pub top_k: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            prompt: "The".into(),
            tokens: 64,
            temperature: 0.8,
            top_k: 50,
        }
    }
}

impl SampleConfig {
    /// Checks that a trained model can continue the prompt: once the model is trained, it is late to learn that it cannot.
    /// A model with learned positions has `positions` of them, any other 0.
    pub(crate) fn check(&self, tokenizer: &Tokenizer, positions: usize) -> Result<()> {
        if self.tokens == 0 {
            return Ok(());
        }
        let tokens = tokenizer.encode(&self.prompt)?.len();
        ensure!(
            tokens > 0,
            "sample.prompt: the tokenizer {} makes no token of {:?}; give a text that it knows, or set sample.tokens to 0",
            tokenizer.name(),
            self.prompt
        );
        ensure!(
            positions == 0 || tokens <= positions,
            "sample.prompt: its {tokens} tokens do not fit in model.max_positions ({positions}); give a shorter one, or set \
             sample.tokens to 0"
        );
        Ok(())
    }
}

impl Experiment {
    /// Reads the experiment at `path` over the defaults, then applies `overrides`, each of the
    /// form `section.key=value` with a TOML value.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not TOML, or holds an unknown key, a value of the wrong
    /// type or a value out of range. The message names the full key.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        parse::load(path, overrides)
    }

    /// Like [`load`](Self::load), for TOML that is in memory; `origin` names it in messages.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self> {
        parse::parse(text, origin, overrides)
    }

    /// The complete experiment as TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// Takes the model and the tokenizer of `source`, with which the run begins.
    ///
    /// # Errors
    ///
    /// When the experiment asks for others, or for sequences that the model has no positions for.
    pub(crate) fn begin_with(&mut self, source: &Self) -> Result<()> {
        let (own, default) = (Table::try_from(&self.model)?, Self::default());
        ensure!(
            own == Table::try_from(&default.model)? || own == Table::try_from(&source.model)?,
            "model: the run begins with another model, whose sizes it has; leave the section out, or train without --from"
        );
        let tokenizer = &self.data.tokenizer;
        ensure!(
            *tokenizer == default.data.tokenizer || *tokenizer == source.data.tokenizer,
            "data.tokenizer: the run begins with a model, whose tokenizer it has; leave the key out, or train without --from"
        );
        self.model = source.model.clone();
        self.data.tokenizer = source.data.tokenizer.clone();
        self.validate()
    }

    /// Checks what the types cannot.
    pub(crate) fn validate(&self) -> Result<()> {
        ensure_name(&self.name)?;
        ensure!(self.data.seq_len > 0, "data.seq_len: must be at least 1");
        ensure!(
            self.data.batch_size > 0,
            "data.batch_size: must be at least 1"
        );
        ensure!(
            (0.0..=f64::from(f32::MAX)).contains(&self.sample.temperature),
            "sample.temperature: must be a finite number of at least 0, got {}",
            self.sample.temperature
        );
        ensure!(
            !self.model.pattern.is_empty(),
            "model.pattern: must name at least one mixer"
        );
        let positions = self.model.max_positions;
        ensure!(
            positions == 0 || self.data.seq_len <= positions,
            "data.seq_len: must not exceed model.max_positions ({positions}), got {}",
            self.data.seq_len
        );
        self.model
            .validate()
            .map_err(|problem| anyhow!("model.{problem}"))?;
        self.training.validate()
    }
}
