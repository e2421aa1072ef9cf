//! A trained model from its run folder alone.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::Device;
use mamba_core::{LanguageModel, Precision};

use crate::experiment::Experiment;
use crate::learner::LmTraining;
use crate::run::RunFolder;
use crate::tokenizer::Tokenizer;

/// What a run folder holds for use.
#[derive(Debug)]
pub struct LoadedRun {
    /// The resolved experiment.
    pub experiment: Experiment,
    /// The model, for inference on the device it was loaded to: in the precision it was trained in where that
    /// device has it, else in f32.
    pub model: LanguageModel,
    /// The tokenizer the model was trained with.
    pub tokenizer: Tokenizer,
    /// Where the weights come from.
    pub weights: Weights,
}

/// Where the weights of a [`LoadedRun`] come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The finished run.
    Final,
    /// The last checkpoint of an unfinished run, made after this step.
    Checkpoint(usize),
}

/// Loads the run at `path` to `device`.
///
/// # Errors
///
/// When `path` is no run folder, holds neither final weights nor a checkpoint, or holds damaged
/// ones. The message names the file.
pub fn load_run(path: &Path, device: &Device) -> Result<LoadedRun> {
    let folder = RunFolder::open(path)?;
    let experiment = folder.experiment()?;
    let tokenizer = Tokenizer::load(folder.path())?;
    let precision = match experiment.training.precision {
        precision if precision.is_supported(device) => precision,
        _ => Precision::F32,
    };
    let model = experiment.model.init(device);
    let weights = folder.model();
    if weights.exists() {
        let record = ModuleRecord::load(&weights)
            .map_err(|error| anyhow!("cannot load {}: {error}", weights.display()))?;
        let model = model.try_load_record(record).map_err(|error| {
            anyhow!(
                "{} does not fit the model of {}: {error}",
                weights.display(),
                folder.config().display()
            )
        })?;
        return Ok(LoadedRun {
            experiment,
            model: model.with_precision(precision),
            tokenizer,
            weights: Weights::Final,
        });
    }
    let checkpoint = folder.checkpoints().latest()?.with_context(|| {
        format!(
            "{} holds no weights: it was stopped before its first checkpoint",
            path.display()
        )
    })?;
    let model = load_training(LmTraining::new(model, 1, 0.0), checkpoint.model()?)?.model;
    let weights = Weights::Checkpoint(checkpoint.state.step);
    Ok(LoadedRun {
        experiment,
        model: model.with_precision(precision),
        tokenizer,
        weights,
    })
}

/// Puts the parameters of a checkpoint into a training module.
pub(crate) fn load_training(module: LmTraining, record: ModuleRecord) -> Result<LmTraining> {
    module
        .try_load_record(record)
        .map_err(|error| anyhow!("the checkpoint does not fit the model of config.toml: {error}"))
}
