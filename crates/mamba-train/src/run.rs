//! The folder of a run.
//!
//! ```text
//! artifacts/runs/<name>/config.toml     the resolved experiment
//!                       tokenizer.json  the tokenizer; one that comes with the program is only named, in tokenizer.txt
//!                       metrics.jsonl   one object a logged step
//!                       training.log    what went on, but for quiet runs
//!                       loss.svg        the loss curve
//!                       device.txt      the device that it was trained on last
//!                       lock            locked while it is trained
//!                       checkpoints/    what a run resumes from
//!                       model.bpk       the trained weights
//!                       summary.json    the results; there once the run is finished
//! ```

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cache::write_atomic;
use crate::checkpoint::Checkpoints;
use crate::experiment::Experiment;

/// Where runs are kept unless told otherwise.
pub const DEFAULT_RUNS: &str = "artifacts/runs";

/// The resolved experiment, in a run's folder.
pub(crate) const CONFIG: &str = "config.toml";

const DEVICE: &str = "device.txt";

/// The folder of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes a folder for a run of `experiment` below `runs`, and writes its `config.toml`.
    ///
    /// # Errors
    ///
    /// When `name` is given and no name for a folder or its folder exists, or the folder cannot be made.
    pub fn create(runs: &Path, name: Option<&str>, experiment: &Experiment) -> Result<Self> {
        name.map_or(Ok(()), ensure_name)?;
        fs::create_dir_all(runs)
            .with_context(|| format!("cannot make the folder {}", runs.display()))?;
        let path = match name {
            Some(name) => {
                let path = runs.join(name);
                ensure!(make(&path)?, "{}", taken(&path));
                path
            }
            None => make_counting(runs, &experiment.name)?,
        };
        let folder = Self { path };
        folder.write_config(experiment)?;
        Ok(folder)
    }

    /// Checks that a run named `name` can be made below `runs`.
    ///
    /// # Errors
    ///
    /// When it is no name for a folder, or its folder exists.
    pub fn ensure_free(runs: &Path, name: &str) -> Result<()> {
        ensure_name(name)?;
        let path = runs.join(name);
        ensure!(!path.exists(), "{}", taken(&path));
        Ok(())
    }

    /// The existing run folder at `path`.
    ///
    /// # Errors
    ///
    /// When it is no run folder.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = Self {
            path: path.to_path_buf(),
        };
        ensure!(
            path.exists(),
            "there is no run {}: give the folder of one, or its name",
            path.display()
        );
        if !folder.config().is_file() {
            bail!(
                "{} is not a run folder: it has no config.toml; give the folder of a run",
                path.display()
            );
        }
        Ok(folder)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the run.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// The resolved experiment.
    pub fn experiment(&self) -> Result<Experiment> {
        Experiment::load(&self.config(), &[])
    }

    /// The name of the device that the run was trained on last, where that is known.
    pub fn device(&self) -> Option<String> {
        let name = fs::read_to_string(self.path.join(DEVICE)).ok()?;
        let name = name.trim();
        (!name.is_empty()).then(|| name.to_owned())
    }

    pub(crate) fn write_device(&self, name: &str) -> Result<()> {
        write_atomic(&self.path.join(DEVICE), |out| Ok(writeln!(out, "{name}")?))
    }

    /// Keeps other processes from training the run, until what is returned is dropped or the process ends.
    ///
    /// # Errors
    ///
    /// When another one trains it, or the folder cannot be written.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.path.join("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => bail!(
                "the run {} is being trained by another process: wait for it, or stop it first",
                self.path.display()
            ),
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                log::warn!("nothing keeps others from {}: {error}", self.path.display());
                Ok(file)
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    pub(crate) fn write_config(&self, experiment: &Experiment) -> Result<()> {
        let text = experiment.to_toml()?;
        write_atomic(&self.config(), |out| Ok(out.write_all(text.as_bytes())?))
    }

    /// Whether the run has come to its end.
    pub fn is_finished(&self) -> bool {
        self.summary().exists()
    }

    /// The checkpoints of the run.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.path.join("checkpoints"))
    }

    /// `config.toml`.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `loss.svg`.
    pub fn curve(&self) -> PathBuf {
        self.path.join("loss.svg")
    }

    /// `model.bpk`.
    pub fn model(&self) -> PathBuf {
        self.path.join("model.bpk")
    }

    /// `summary.json`.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// `training.log`.
    pub fn log(&self) -> PathBuf {
        self.path.join("training.log")
    }
}

/// Refuses what cannot be the name of one folder.
///
/// # Errors
///
/// When `name` is empty, several components, or stands for another folder.
pub fn ensure_name(name: &str) -> Result<()> {
    let mut components = Path::new(name).components();
    let whole = match (components.next(), components.next()) {
        (Some(Component::Normal(only)), None) => only == name,
        _ => false,
    };
    ensure!(whole, "name: must be usable as a folder name, got {name:?}");
    Ok(())
}

fn taken(path: &Path) -> String {
    format!(
        "the run {} exists; give --resume to continue it, or another name",
        path.display()
    )
}

/// Makes a folder, and returns whether it did not exist.
fn make(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => {
            Err(error).with_context(|| format!("cannot make the folder {}", path.display()))
        }
    }
}

fn make_counting(runs: &Path, name: &str) -> Result<PathBuf> {
    let mut path = runs.join(name);
    let mut number = 1;
    while !make(&path)? {
        number += 1;
        path = runs.join(format!("{name}-{number}"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment() -> Experiment {
        Experiment {
            name: "quickstart".into(),
            ..Experiment::default()
        }
    }

    #[test]
    fn default_names_count_up() {
        let runs = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..3)
            .map(|_| {
                RunFolder::create(runs.path(), None, &experiment())
                    .unwrap()
                    .name()
            })
            .collect();
        assert_eq!(names, ["quickstart", "quickstart-2", "quickstart-3"]);
    }

    #[test]
    fn given_name_is_never_overwritten() {
        let runs = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(runs.path(), Some("mine"), &experiment()).unwrap();
        let config = fs::read_to_string(folder.config()).unwrap();
        let error = RunFolder::create(runs.path(), Some("mine"), &Experiment::default());
        let message = error.unwrap_err().to_string();
        assert!(message.contains("mine exists; give --resume"), "{message}");
        assert_eq!(fs::read_to_string(folder.config()).unwrap(), config);
    }

    #[test]
    fn a_name_is_one_folder() {
        let runs = tempfile::tempdir().unwrap();
        let inner = runs.path().join("inner");
        for name in ["", ".", "..", "../escape", "a/b", "a/", "/tmp/a"] {
            let create = RunFolder::create(&inner, Some(name), &experiment()).unwrap_err();
            let free = RunFolder::ensure_free(&inner, name).unwrap_err();
            for message in [create.to_string(), free.to_string()] {
                assert!(message.contains(&format!("{name:?}")), "{message}");
            }
        }
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
        assert!(ensure_name("..a b").is_ok());
    }

    #[test]
    fn a_run_is_trained_by_one_at_a_time() {
        let runs = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(runs.path(), None, &experiment()).unwrap();
        let lock = folder.lock().unwrap();
        let message = folder.lock().unwrap_err().to_string();
        assert!(
            message.contains("is being trained by another process"),
            "{message}"
        );
        drop(lock);
        folder.lock().unwrap();
    }

    #[test]
    fn the_device_is_remembered() {
        let runs = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(runs.path(), None, &experiment()).unwrap();
        assert_eq!(folder.device(), None);
        folder.write_device("cuda:1").unwrap();
        assert_eq!(folder.device().as_deref(), Some("cuda:1"));
    }

    #[test]
    fn experiment_comes_back_from_the_folder() {
        let runs = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(runs.path(), None, &experiment()).unwrap();
        let again = RunFolder::open(folder.path())
            .unwrap()
            .experiment()
            .unwrap();
        assert_eq!(again.to_toml().unwrap(), experiment().to_toml().unwrap());

        let message = RunFolder::open(runs.path()).unwrap_err().to_string();
        assert!(message.contains("not a run folder"), "{message}");
    }
}
