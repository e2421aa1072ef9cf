//! A trained model from its folder alone: a run, or a pretrained model in Hugging Face's layout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::Device;
use mamba_core::{LanguageModel, Precision, checkpoint};

use crate::experiment::Experiment;
use crate::hub::{Hub, is_gpt_neox_vocabulary, resolve};
use crate::learner::LmTraining;
use crate::run::RunFolder;
use crate::tokenizer::Tokenizer;

/// What a folder holds for use.
#[derive(Debug)]
pub struct LoadedRun {
    /// The resolved experiment; of a pretrained model the defaults, with its configuration and tokenizer.
    pub experiment: Experiment,
    /// The model, for inference on the device it was loaded to: in the precision it was trained in where that
    /// device has it, else in f32.
    pub model: LanguageModel,
    /// The tokenizer that the model was trained with.
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
    /// A pretrained model.
    Pretrained,
}

/// What a folder of Hugging Face's layout holds beside the weights.
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// Loads the run or the pretrained model at `path` to `device`. A path that is none may be the name of a model on the hub.
///
/// # Errors
///
/// As [`load_run`] and [`load_pretrained`].
pub fn load_model(path: &Path, device: &Device) -> Result<LoadedRun> {
    let path = &*resolve(path)?;
    match path.join(CONFIG).is_file() {
        true => load_pretrained(path, device),
        false => load_run(path, device),
    }
}

/// Loads the pretrained model in the folder `path`, or of that name on the hub, to `device`, with its `tokenizer.json`.
///
/// # Errors
///
/// When a file is missing or damaged, the model is none of ours, the tokenizer is another model's, or the hub does not give it.
pub fn load_pretrained(path: &Path, device: &Device) -> Result<LoadedRun> {
    let path = &*resolve(path)?;
    let tokenizer = tokenizer_of(path)?;
    let spec = tokenizer.display().to_string();
    let tokenizer = Tokenizer::from_file(&tokenizer)?;
    let (model, config) = checkpoint::load(path, device)?;
    ensure!(
        tokenizer.vocab_size() <= config.padded_vocab_size(),
        "{spec} has {} entries and the model {}: it is another model's",
        tokenizer.vocab_size(),
        config.padded_vocab_size()
    );
    let mut experiment = Experiment::default();
    if config.max_positions > 0 {
        experiment.data.seq_len = experiment.data.seq_len.min(config.max_positions);
    }
    experiment.model = config;
    experiment.data.tokenizer = spec;
    Ok(LoadedRun {
        experiment,
        model,
        tokenizer,
        weights: Weights::Pretrained,
    })
}

/// The tokenizer in the folder of a pretrained model, or that of its family, of which Mamba's and Mamba-2's authors publish
/// none with their models.
fn tokenizer_of(folder: &Path) -> Result<PathBuf> {
    let tokenizer = folder.join(TOKENIZER);
    if tokenizer.is_file() {
        return Ok(tokenizer);
    }
    let absent = format!("{} holds no {TOKENIZER}", folder.display());
    ensure!(
        is_gpt_neox_vocabulary(&checkpoint::read_config(folder)?),
        "{absent}: put the model's there"
    );
    Hub::from_env().gpt_neox_tokenizer().with_context(|| {
        format!("{absent}, which is that of EleutherAI/gpt-neox-20b: put it there")
    })
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
    let precision = match experiment.training.precision.on(device) {
        precision if precision.is_rounded(device) => precision,
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
