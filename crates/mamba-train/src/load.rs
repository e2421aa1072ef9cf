//! A trained model from its folder alone: a run, or a pretrained model in Hugging Face's layout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::Device;
use mamba_core::{LanguageModel, LanguageModelConfig, Precision, checkpoint};

use crate::experiment::Experiment;
use crate::files::digest;
use crate::hub::{Hub, is_gpt_neox_vocabulary, resolve};
use crate::learner::LmTraining;
use crate::run::{CONFIG as RUN_CONFIG, RunFolder};
use crate::summary::Summary;
use crate::tokenizer::{Fit, Tokenizer};

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
    /// One line for the user, where something about the files is doubtful.
    pub notice: Option<String>,
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

/// Whether a folder holds a run or a pretrained model, whole or not.
pub fn is_model(path: &Path) -> bool {
    path.join(RUN_CONFIG).is_file() || is_pretrained(path)
}

/// Whether a folder holds a pretrained model, whole or not.
pub fn is_pretrained(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}

/// Loads the run or the pretrained model at `path` to `device`. A path that is none may be the name of a model on the hub.
/// `tokenizer` is as for [`load_pretrained`]; a run has its own.
///
/// # Errors
///
/// As [`load_run`] and [`load_pretrained`], and when a run is given another tokenizer.
pub fn load_model(path: &Path, tokenizer: Option<&str>, device: &Device) -> Result<LoadedRun> {
    let path = &*resolve(path)?;
    if is_pretrained(path) {
        return load_pretrained(path, tokenizer, device);
    }
    ensure!(
        path.exists(),
        "there is no run and no model {}: give the folder of one, or a model's name on the hub such as \
         state-spaces/mamba-130m",
        path.display()
    );
    ensure!(
        path.join(RUN_CONFIG).is_file(),
        "{} holds neither a run ({RUN_CONFIG}) nor a pretrained model ({CONFIG}): give the folder of one",
        path.display()
    );
    ensure!(
        tokenizer.is_none(),
        "--tokenizer: {} is a run, which has the tokenizer that it was trained with",
        path.display()
    );
    load_run(path, device)
}

/// Loads the pretrained model in the folder `path`, or of that name on the hub, to `device`, with the `tokenizer.json` beside it or
/// the `tokenizer` given (`gpt2`, `bytes`, or the path of a `tokenizer.json`).
///
/// # Errors
///
/// When a file is missing or damaged, the model is none of ours, the tokenizer is another model's, or the hub does not give it.
pub fn load_pretrained(path: &Path, tokenizer: Option<&str>, device: &Device) -> Result<LoadedRun> {
    let path = &*resolve(path)?;
    let (config, ends) = (
        checkpoint::read_config(path)?,
        checkpoint::read_end_tokens(path)?,
    );
    let given = tokenizer.is_some();
    let tokenizer = match tokenizer {
        Some(spec) => Tokenizer::from_spec(spec).context("--tokenizer")?,
        None => Tokenizer::from_file(&tokenizer_of(path, &config)?)?,
    };
    let spec = tokenizer.name().to_owned();
    let notice = check(&tokenizer, config.vocab_size, &ends, given)?;
    let tokenizer = tokenizer.ending_with(&ends);
    let (model, config) = checkpoint::load(path, device)?;
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
        notice,
    })
}

/// Whether a pretrained model and a tokenizer belong together; what is odd about them, where they may. A tokenizer that was
/// `given` beside the model is taken at its word wherever that is possible.
fn check(
    tokenizer: &Tokenizer,
    vocab_size: usize,
    ends: &[u32],
    given: bool,
) -> Result<Option<String>> {
    let (name, entries) = (tokenizer.name(), tokenizer.vocab_size());
    let sizes = format!("the tokenizer {name} has {entries} entries and the model {vocab_size}");
    match Fit::of(tokenizer, vocab_size, ends) {
        Fit::Own => Ok(None),
        Fit::TooLarge => {
            bail!("{sizes}: it is another model's; give the model's own by --tokenizer FILE")
        }
        Fit::TooSmall if given => Ok(Some(format!(
            "Warning: {sizes}, more than a padding leaves over: it may be another model's"
        ))),
        Fit::TooSmall => bail!(
            "{sizes}, more than a padding leaves over: it looks like another model's; give the model's own by \
             --tokenizer FILE, or this file if you are sure of it"
        ),
        Fit::OtherEnd(odd) => Ok(Some(format!(
            "Warning: the model says that texts end by {odd}: the tokenizer {name} may be another model's; give the model's \
             own by --tokenizer FILE"
        ))),
    }
}

/// The tokenizer in the folder of a pretrained model, or that of its family, of which Mamba's and Mamba-2's authors publish
/// none with their models.
fn tokenizer_of(folder: &Path, config: &LanguageModelConfig) -> Result<PathBuf> {
    let tokenizer = folder.join(TOKENIZER);
    if tokenizer.is_file() {
        return Ok(tokenizer);
    }
    let absent = format!("{} holds no {TOKENIZER}", folder.display());
    ensure!(
        is_gpt_neox_vocabulary(config),
        "{absent}: put the model's there, or give it by --tokenizer FILE"
    );
    Hub::from_env().gpt_neox_tokenizer().with_context(|| {
        format!("{absent}, which is that of EleutherAI/gpt-neox-20b: put it there, or give it by --tokenizer FILE")
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
    let tokenizer = tokenizer_of_run(&folder, &experiment)?;
    let precision = match experiment.training.precision.on(device) {
        precision if precision.is_rounded(device) => precision,
        _ => Precision::F32,
    };
    let model = experiment.model.init_to_load(device);
    let weights = folder.model();
    if weights.exists() {
        verify(&folder)?;
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
            notice: None,
        });
    }
    let checkpoint = folder.checkpoints().latest()?;
    let checkpoint = checkpoint.with_context(|| match folder.is_finished() {
        true => format!(
            "{} is missing, and there is no checkpoint",
            weights.display()
        ),
        false => format!(
            "{} holds no weights: it was stopped before its first checkpoint",
            path.display()
        ),
    })?;
    let model = load_training(LmTraining::new(model, 1, 0.0), checkpoint.model()?)?.model;
    let step = checkpoint.state.step;
    let notice = folder.is_finished().then(|| {
        format!(
            "{} is missing although the run is finished: using its checkpoint after step {step}",
            weights.display()
        )
    });
    Ok(LoadedRun {
        experiment,
        model: model.with_precision(precision),
        tokenizer,
        weights: Weights::Checkpoint(step),
        notice,
    })
}

/// Whether the weights of a finished run are those that it wrote, where it noted which those were.
fn verify(folder: &RunFolder) -> Result<()> {
    if !folder.is_finished() {
        return Ok(());
    }
    let summary = Summary::read(&folder.summary())
        .context("cannot tell whether model.bpk is whole; remove summary.json to go without")?;
    let Some(written) = summary.model else {
        return Ok(());
    };
    let path = folder.model();
    let (sha256, bytes) =
        digest(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        (bytes, sha256) == (written.bytes, written.sha256),
        "{} is damaged; remove it to use the last checkpoint",
        path.display()
    );
    Ok(())
}

/// The tokenizer that a run keeps, which must be the one that it was trained with.
pub(crate) fn tokenizer_of_run(folder: &RunFolder, experiment: &Experiment) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::load(folder.path())?;
    let (entries, vocab_size) = (tokenizer.vocab_size(), experiment.model.vocab_size);
    // Runs of before wrote no fingerprint, and those from a pretrained model may have a vocabulary with padding in it.
    let own = match (&experiment.data.tokenizer_sha256, &experiment.from) {
        (Some(own), _) => own == tokenizer.fingerprint(),
        (None, Some(_)) => entries <= vocab_size,
        (None, None) => entries == vocab_size,
    };
    ensure!(
        own,
        "the tokenizer {} in {} ({entries} entries) is not the one that the run was trained with: put that one back",
        tokenizer.name(),
        folder.path().display()
    );
    Ok(tokenizer)
}

/// Puts the parameters of a checkpoint into a training module.
pub(crate) fn load_training(module: LmTraining, record: ModuleRecord) -> Result<LmTraining> {
    module
        .try_load_record(record)
        .map_err(|error| anyhow!("the checkpoint does not fit the model of config.toml: {error}"))
}
