//! Checkpoints: the state of a run at a step, complete or absent.
//!
//! ```text
//! checkpoints/step-00000500/model.bpk  optimizer.bpk  scheduler.bpk  checkpoint.toml
//! ```
//!
//! A checkpoint is written to a folder of another name (`step-00000500.partial`) and renamed once it is complete and on
//! the disk; one that is there already stands aside meanwhile (`step-00000500.replaced`). Only then are older ones removed.
//! `checkpoint.toml` holds the run's bookkeeping and the size and hash of the other files, so that
//! damage is noticed before anything is loaded.

mod writer;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::lr_scheduler::LrSchedulerRecord;
use burn::optim::OptimizerRecord;
use burn::store::{ModuleRecord, RecordError};
use serde::{Deserialize, Serialize};

pub(crate) use writer::SaveAlways;
pub use writer::{CheckpointWriter, Part, PartCheckpointer};

use crate::files::{digest, toml_problem};
use crate::learner::TrainState;

/// TOML rather than JSON: its floats come back bit for bit, which an exact resume depends on.
const MANIFEST: &str = "checkpoint.toml";
const FORMAT: u32 = 1;

/// Ends the name of a checkpoint that is being written.
const PARTIAL: &str = ".partial";
/// Ends the name of a checkpoint that another one of the same step takes the place of.
const REPLACED: &str = ".replaced";

/// The folder that holds the checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// A checkpoint whose files were found whole.
#[derive(Debug)]
pub struct Checkpoint {
    /// The bookkeeping of the run.
    pub state: TrainState,
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    state: TrainState,
    files: Vec<FileDigest>,
}

#[derive(Serialize, Deserialize)]
struct FileDigest {
    name: String,
    bytes: u64,
    sha256: String,
}

impl Checkpoints {
    /// The checkpoints below `folder`, which need not exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The steps of the complete checkpoints, ascending.
    pub fn steps(&self) -> Result<Vec<usize>> {
        let names = self.names()?;
        let mut steps: Vec<usize> = names.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn names(&self) -> Result<Vec<String>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let failed = || format!("cannot read {}", self.folder.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(failed)? {
            names.extend(entry.with_context(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    /// Clears up what a crash has left: checkpoints that were not complete, and those that stood aside for one.
    ///
    /// For a run that goes on, before its checkpoints are looked at; nobody else may be writing any.
    ///
    /// # Errors
    ///
    /// When a folder cannot be removed or renamed.
    pub fn clear_up(&self) -> Result<()> {
        for name in self.names()? {
            let path = self.folder.join(&name);
            let replaced = name.strip_suffix(REPLACED).and_then(step_of);
            let partial = name.strip_suffix(PARTIAL).and_then(step_of);
            match (replaced, partial) {
                (Some(step), _) if !self.step_folder(step).exists() => {
                    fs::rename(&path, self.step_folder(step))
                        .with_context(|| format!("cannot rename {}", path.display()))?;
                }
                (Some(_), _) | (_, Some(_)) => remove(&path)?,
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// The checkpoint of the highest step, if there is any.
    ///
    /// # Errors
    ///
    /// When that checkpoint is damaged: an older one is never taken in its place silently.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        self.steps()?
            .last()
            .map(|&step| self.open(step))
            .transpose()
    }

    /// The checkpoint made after `step` steps.
    ///
    /// # Errors
    ///
    /// When a file is missing, truncated or altered. The message names the file and what to do.
    pub fn open(&self, step: usize) -> Result<Checkpoint> {
        let folder = self.step_folder(step);
        let state = verify(&folder).with_context(|| self.remedy(step))?;
        ensure!(
            state.step == step,
            "{} says it was made at step {}; it does not belong in {}",
            folder.join(MANIFEST).display(),
            state.step,
            folder.display()
        );
        Ok(Checkpoint { state, folder })
    }

    /// The folder of the checkpoint made after `step`, whether it exists or not.
    pub fn step_folder(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    fn partial_folder(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}{PARTIAL}"))
    }

    fn replaced_folder(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}{REPLACED}"))
    }

    fn remedy(&self, step: usize) -> String {
        let damaged = self.step_folder(step);
        let earlier = self
            .steps()
            .unwrap_or_default()
            .into_iter()
            .rfind(|&other| other < step);
        match earlier {
            Some(earlier) => format!(
                "the checkpoint of step {step} cannot be used; remove {} to resume from step \
                 {earlier}",
                damaged.display()
            ),
            None => format!(
                "the checkpoint of step {step} cannot be used and there is no earlier one; start \
                 a new run"
            ),
        }
    }
}

impl Checkpoint {
    /// The parameters of the training module.
    pub fn model(&self) -> Result<ModuleRecord> {
        self.read(Part::Model, ModuleRecord::load)
    }

    /// The optimizer's state.
    pub fn optimizer(&self) -> Result<OptimizerRecord> {
        self.read(Part::Optimizer, OptimizerRecord::load)
    }

    /// The schedule's state.
    pub fn scheduler(&self) -> Result<LrSchedulerRecord> {
        self.read(Part::Scheduler, LrSchedulerRecord::load)
    }

    fn read<R>(&self, part: Part, load: fn(PathBuf) -> Result<R, RecordError>) -> Result<R> {
        let path = self.folder.join(part.file_name());
        load(path.clone()).map_err(|error| anyhow!("cannot load {}: {error}", path.display()))
    }
}

fn step_of(folder: &str) -> Option<usize> {
    folder.strip_prefix("step-")?.parse().ok()
}

/// Removes a folder with all that is in it, if it is there.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn verify(folder: &Path) -> Result<TrainState> {
    let path = folder.join(MANIFEST);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest = toml::from_str(&text).map_err(|error| {
        anyhow!(
            "{} is damaged ({})",
            path.display(),
            toml_problem(&text, &error)
        )
    })?;
    ensure!(
        manifest.format == FORMAT,
        "{} has format {}, this program reads format {FORMAT}",
        path.display(),
        manifest.format
    );
    for part in Part::ALL {
        let name = part.file_name();
        let path = folder.join(name);
        let Some(expected) = manifest.files.iter().find(|file| file.name == name) else {
            bail!("{} does not list {name}", folder.join(MANIFEST).display());
        };
        let (sha256, bytes) =
            digest(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            bytes == expected.bytes,
            "{} is damaged: it has {bytes} bytes instead of {}",
            path.display(),
            expected.bytes
        );
        ensure!(
            sha256 == expected.sha256,
            "{} is damaged: its content has changed since it was written",
            path.display()
        );
    }
    Ok(manifest.state)
}
