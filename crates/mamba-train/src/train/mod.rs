//! Running an experiment.

mod session;

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use burn::data::dataset::Dataset;
use burn::tensor::Device;
use burn::train::Interrupter;

use self::session::Session;
use crate::checkpoint::Checkpoint;
use crate::data::Splits;
use crate::experiment::Experiment;
use crate::learner::Plan;
use crate::load::{LoadedRun, load_model, tokenizer_of_run};
use crate::run::RunFolder;
use crate::summary::Summary;
use crate::tokenizer::Tokenizer;

/// What to run.
#[derive(Clone, Debug)]
pub enum Start {
    /// A new run below `runs`, named `name`, or after its experiment.
    New {
        /// What to compute.
        experiment: Box<Experiment>,
        /// The folder of all runs.
        runs: PathBuf,
        /// The name asked for, if any.
        name: Option<String>,
    },
    /// The run in this folder, from its last checkpoint.
    Resume(RunFolder),
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Display {
    /// The dashboard where standard output is a terminal that can show it, lines elsewhere.
    #[default]
    Auto,
    /// burn-train's dashboard.
    Dashboard,
    /// One line every few steps.
    Plain,
    /// Nothing.
    Quiet,
}

impl Display {
    /// Whether standard output is a terminal that can show the dashboard.
    pub fn has_terminal() -> bool {
        let dumb = std::env::var_os("TERM").is_some_and(|it| it == "dumb");
        !dumb && std::io::stdout().is_terminal()
    }
}

/// What decides how a run is carried out, but not what it computes.
#[derive(Clone, Default)]
pub struct TrainOptions {
    /// Where to compute.
    pub device: Device,
    /// What the device is called, which the run remembers for the time that it is continued.
    pub device_name: Option<String>,
    /// Where the text of a run that is continued lies, if no longer where it was.
    pub data_dir: Option<PathBuf>,
    /// How progress is shown.
    pub display: Display,
    /// Stops the run; it then saves a checkpoint.
    pub interrupter: Interrupter,
}

/// Something to tell the user, outside the time that the dashboard owns the terminal.
#[derive(Clone, Debug)]
pub enum TrainEvent {
    /// A line from the data pipeline.
    Notice(String),
    /// The data is at hand and training is about to begin.
    Started {
        /// The folder of the run.
        folder: RunFolder,
        /// The text, in one line.
        data: String,
        /// Parameters of the model.
        parameters: usize,
        /// Optimizer steps taken before.
        step: usize,
        /// Optimizer steps in the run.
        total_steps: usize,
        /// Tokens in the training split.
        train_tokens: usize,
    },
    /// Training ended and the final evaluation goes on.
    Evaluating {
        /// `valid` or `test`.
        split: &'static str,
        /// Batches done.
        done: usize,
        /// Batches in total.
        total: usize,
    },
}

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is finished, and its folder holds the results.
    Finished {
        /// The folder of the run.
        folder: RunFolder,
        /// The results, as in `summary.json`.
        summary: Box<Summary>,
    },
    /// It was stopped, and continues from its checkpoint when resumed.
    Interrupted {
        /// The folder of the run.
        folder: RunFolder,
        /// Optimizer steps taken.
        step: usize,
        /// Optimizer steps in the run.
        total_steps: usize,
        /// Whether all of them were taken and the model was being evaluated.
        evaluating: bool,
    },
}

/// Of a device that does not round where it converts to bf16.
const CUT_OFF: &str = "training.precision: this device's driver cuts values off where they become bf16, half a unit in the \
                       last place too small on average; \"f32\" is right there";

/// Trains a model and leaves everything about it in a run folder.
///
/// # Errors
///
/// When the run exists or is finished already, another process trains it, its data cannot be had or is another than it began
/// with, a checkpoint is damaged, the loss is no longer finite, or a file cannot be written.
pub fn train(
    start: Start,
    options: TrainOptions,
    on_event: impl FnMut(TrainEvent),
) -> Result<Outcome> {
    train_on(
        start,
        options,
        |experiment, tokenizer| match tokenizer {
            Some(tokenizer) => Splits::with_tokenizer(&experiment.data, tokenizer),
            None => Splits::load(&experiment.data),
        },
        on_event,
    )
}

/// Like [`train`], on data from `load`, which is given the tokenizer of a model or a run that is continued.
///
/// # Errors
///
/// As [`train`].
pub fn train_on(
    start: Start,
    options: TrainOptions,
    load: impl FnOnce(&Experiment, Option<Tokenizer>) -> Result<Splits>,
    mut on_event: impl FnMut(TrainEvent),
) -> Result<Outcome> {
    let mut experiment = start.experiment()?;
    let lock = match &start {
        Start::New { .. } => None,
        Start::Resume(folder) => Some(folder.lock()?),
    };
    let moved = matches!(start, Start::Resume(_)) && options.data_dir.is_some();
    if moved {
        experiment.data.data_dir.clone_from(&options.data_dir);
    }
    let precision = experiment.training.precision.on(&options.device);
    ensure!(
        precision.is_supported(&options.device),
        "training.precision: the device has no bf16; set it to \"f32\""
    );
    if !precision.is_rounded(&options.device) {
        on_event(TrainEvent::Notice(CUT_OFF.into()));
    }
    experiment.training.precision = precision.into();
    let source = start.source(&experiment, &options.device)?;
    if let (Start::New { .. }, Some(source)) = (&start, &source) {
        experiment.begin_with(&source.experiment)?;
    }
    if let Some(notice) = source.as_ref().and_then(|it| it.notice.clone()) {
        on_event(TrainEvent::Notice(notice));
    }
    let (tokenizer, source) = match source {
        Some(source) => (Some(source.tokenizer), Some(source.model)),
        None => (start.tokenizer(&experiment)?, None),
    };
    let splits = load(&experiment, tokenizer)?;
    if let Some(notice) = &splits.notice {
        on_event(TrainEvent::Notice(notice.clone()));
    }
    let fingerprint = splits.tokenizer.fingerprint();
    if let Some(own) = &experiment.data.tokenizer_sha256 {
        ensure!(
            own == fingerprint,
            "data.tokenizer_sha256: the tokenizer {} is not the one that this names",
            splits.tokenizer.name()
        );
    }
    experiment.data.tokenizer_sha256 = Some(fingerprint.into());
    let text = splits.fingerprint();
    if let Some(own) = &experiment.data.text_sha256 {
        let text_is = &splits.description;
        match start {
            Start::Resume(_) => ensure!(
                *own == text,
                "the {text_is} is not the text that this run began with: restore it, or start a new run with --from"
            ),
            Start::New { .. } => ensure!(
                *own == text,
                "data.text_sha256: the {text_is} is not the text that this names; leave it out to take that"
            ),
        }
    }
    experiment.data.text_sha256 = Some(text);
    // A vocabulary of another model may have more entries than its tokenizer uses.
    if experiment.from.is_none() {
        experiment.model.vocab_size = splits.tokenizer.vocab_size();
    }
    let positions = experiment.model.max_positions;
    experiment.sample.check(&splits.tokenizer, positions)?;
    experiment.data.corpus = Some(splits.corpus.clone());
    let plan = Plan::new(&experiment, splits.train.len())?;
    let (folder, checkpoint) = start.folder(&experiment)?;
    let _lock = match lock {
        Some(lock) => lock,
        None => folder.lock()?,
    };
    splits.tokenizer.save(folder.path())?;
    if let Some(name) = &options.device_name {
        folder.write_device(name)?;
    }
    if moved {
        folder.write_config(&experiment)?;
    }

    let session = Session {
        experiment,
        splits,
        plan,
        folder,
        options,
    };
    session.carry_out(checkpoint, source, &mut on_event)
}

impl Start {
    /// The experiment, once it is clear that the run may begin.
    fn experiment(&self) -> Result<Experiment> {
        match self {
            Self::New {
                experiment,
                runs,
                name,
            } => {
                if let Some(name) = name {
                    RunFolder::ensure_free(runs, name)?;
                }
                Ok(experiment.as_ref().clone())
            }
            Self::Resume(folder) => {
                ensure!(
                    !folder.is_finished(),
                    "the run {} is finished, there is nothing to resume; see {}",
                    folder.name(),
                    folder.summary().display()
                );
                folder.checkpoints().clear_up()?;
                folder.experiment()
            }
        }
    }

    /// The model that a run begins with, unless it goes on from a checkpoint.
    fn source(&self, experiment: &Experiment, device: &Device) -> Result<Option<LoadedRun>> {
        let Some(from) = &experiment.from else {
            return Ok(None);
        };
        if let Self::Resume(folder) = self
            && folder.checkpoints().latest()?.is_some()
        {
            return Ok(None);
        }
        let source = load_model(from, experiment.from_tokenizer.as_deref(), device);
        Ok(Some(
            source.context("from: cannot load the model to begin with")?,
        ))
    }

    /// That of a run that is resumed.
    fn tokenizer(&self, experiment: &Experiment) -> Result<Option<Tokenizer>> {
        match self {
            Self::New { .. } => Ok(None),
            Self::Resume(folder) => Ok(Some(tokenizer_of_run(folder, experiment)?)),
        }
    }

    fn folder(&self, experiment: &Experiment) -> Result<(RunFolder, Option<Checkpoint>)> {
        match self {
            Self::New { runs, name, .. } => {
                Ok((RunFolder::create(runs, name.as_deref(), experiment)?, None))
            }
            Self::Resume(folder) => Ok((folder.clone(), folder.checkpoints().latest()?)),
        }
    }
}
