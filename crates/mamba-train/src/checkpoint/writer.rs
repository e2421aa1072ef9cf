//! Writing checkpoints through burn-train's checkpointers.
//!
//! burn-train saves model, optimizer and schedule through three checkpointers, each on a thread of
//! its own. The writer gathers the three files of a step and publishes them together.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use burn::train::checkpoint::{
    Checkpoint as Record, Checkpointer, CheckpointerError, CheckpointingAction,
    CheckpointingStrategy,
};
use burn::train::metric::store::EventStoreClient;

use super::{Checkpoints, FORMAT, FileDigest, MANIFEST, Manifest, remove};
use crate::cache::{sync_folder, write_atomic};
use crate::files::digest;
use crate::learner::TrainState;

/// One of the files of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The parameters.
    Model,
    /// The optimizer's moments.
    Optimizer,
    /// The position in the learning rate schedule.
    Scheduler,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Model, Self::Optimizer, Self::Scheduler];

    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Model => "model.bpk",
            Self::Optimizer => "optimizer.bpk",
            Self::Scheduler => "scheduler.bpk",
        }
    }
}

/// Publishes a checkpoint once all its parts are written, and removes those no longer wanted.
#[derive(Clone)]
pub struct CheckpointWriter {
    checkpoints: Checkpoints,
    keep: usize,
    pending: Arc<Mutex<HashMap<usize, Pending>>>,
}

struct Pending {
    state: TrainState,
    missing: usize,
}

impl CheckpointWriter {
    /// A writer that keeps the last `keep` checkpoints and the best one.
    pub fn new(checkpoints: Checkpoints, keep: usize) -> Self {
        Self {
            checkpoints,
            keep,
            pending: Arc::default(),
        }
    }

    /// Announces the checkpoint of `state`, whose parts are about to be saved.
    ///
    /// # Errors
    ///
    /// When its folder cannot be made.
    pub fn begin(&self, state: &TrainState) -> Result<()> {
        let folder = self.checkpoints.partial_folder(state.step);
        remove(&folder)?;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let pending = Pending {
            state: state.clone(),
            missing: Part::ALL.len(),
        };
        self.lock().insert(state.step, pending);
        Ok(())
    }

    /// The checkpointer through which burn-train saves `part`.
    pub fn part(&self, part: Part) -> PartCheckpointer {
        PartCheckpointer {
            writer: self.clone(),
            part,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save_part<R: Record>(&self, step: usize, part: Part, record: R) -> Result<()> {
        let path = self.checkpoints.partial_folder(step).join(part.file_name());
        // A record is on the disk when it is saved; its own files need nothing more.
        record
            .save(path.clone())
            .with_context(|| format!("cannot write {}", path.display()))?;

        let complete = {
            let mut pending = self.lock();
            let entry = pending
                .get_mut(&step)
                .context("the checkpoint was not announced")?;
            entry.missing -= 1;
            (entry.missing == 0)
                .then(|| pending.remove(&step))
                .flatten()
        };
        match complete {
            Some(Pending { state, .. }) => self.publish(state),
            None => Ok(()),
        }
    }

    fn publish(&self, state: TrainState) -> Result<()> {
        let step = state.step;
        let keep_best = state.best.map(|best| best.step);
        let partial = self.checkpoints.partial_folder(step);
        let files = Part::ALL
            .into_iter()
            .map(|part| {
                let path = partial.join(part.file_name());
                let (sha256, bytes) =
                    digest(&path).with_context(|| format!("cannot read {}", path.display()))?;
                Ok(FileDigest {
                    name: part.file_name().into(),
                    bytes,
                    sha256,
                })
            })
            .collect::<Result<_>>()?;
        let manifest = Manifest {
            format: FORMAT,
            state,
            files,
        };
        let manifest = toml::to_string(&manifest)?;
        write_atomic(&partial.join(MANIFEST), |out| {
            Ok(out.write_all(manifest.as_bytes())?)
        })?;

        let folder = self.checkpoints.step_folder(step);
        let replaced = self.checkpoints.replaced_folder(step);
        if folder.exists() {
            remove(&replaced)?;
            rename(&folder, &replaced)?;
        }
        rename(&partial, &folder)?;
        // Nothing older may go before this one would outlive a power cut.
        let all = &self.checkpoints.folder;
        sync_folder(all).with_context(|| format!("cannot write the folder {}", all.display()))?;
        log::info!("saved {}", folder.display());
        remove(&replaced)?;
        self.prune(keep_best)
    }

    fn prune(&self, best: Option<usize>) -> Result<()> {
        let steps = self.checkpoints.steps()?;
        let (old, _) = steps.split_at(steps.len().saturating_sub(self.keep));
        let mut unwanted = old.iter().filter(|&&step| Some(step) != best);
        unwanted.try_for_each(|&step| remove(&self.checkpoints.step_folder(step)))
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {}", from.display()))
}

/// Saves one part of a checkpoint. burn-train's "epoch" is the step here.
pub struct PartCheckpointer {
    writer: CheckpointWriter,
    part: Part,
}

impl<R: Record> Checkpointer<R> for PartCheckpointer {
    fn save(&self, step: usize, record: R) -> Result<(), CheckpointerError> {
        self.writer
            .save_part(step, self.part, record)
            .map_err(|error| CheckpointerError::Unknown(format!("{error:#}")))
    }

    fn delete(&self, _step: usize) -> Result<(), CheckpointerError> {
        // The writer removes whole checkpoints.
        Ok(())
    }

    fn restore(&self, step: usize) -> Result<R, CheckpointerError> {
        let folder = self.writer.checkpoints.step_folder(step);
        R::load(folder.join(self.part.file_name()))
    }
}

/// Saves whenever it is asked: the loop decides at which steps that is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SaveAlways;

impl CheckpointingStrategy for SaveAlways {
    fn checkpointing(
        &mut self,
        _step: usize,
        _store: &EventStoreClient,
    ) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::Best;
    use burn::lr_scheduler::LrSchedulerRecord;
    use burn::module::Module;
    use burn::nn::LinearConfig;
    use burn::optim::{AdamConfig, OptimizerRecord};
    use burn::store::ModuleRecord;
    use burn::tensor::Device;

    fn save(writer: &CheckpointWriter, state: &TrainState) {
        writer.begin(state).unwrap();
        let model: ModuleRecord = LinearConfig::new(3, 2)
            .init(&Device::default())
            .into_record();
        let optimizer: OptimizerRecord = AdamConfig::new().init().to_record();
        let scheduler = LrSchedulerRecord::new().with_scalar("step", state.step);
        writer.part(Part::Model).save(state.step, model).unwrap();
        writer
            .part(Part::Scheduler)
            .save(state.step, scheduler)
            .unwrap();
        assert!(
            !writer.checkpoints.step_folder(state.step).exists(),
            "published too early"
        );
        writer
            .part(Part::Optimizer)
            .save(state.step, optimizer)
            .unwrap();
    }

    fn state(step: usize, best: usize) -> TrainState {
        let best = Some(Best {
            step: best,
            loss: 1.0,
        });
        TrainState {
            step,
            best,
            ..TrainState::default()
        }
    }

    #[test]
    fn keeps_the_last_and_the_best() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        let writer = CheckpointWriter::new(checkpoints.clone(), 2);
        for (step, best) in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)] {
            save(&writer, &state(step, best));
        }
        assert_eq!(checkpoints.steps().unwrap(), [2, 4, 5]);
        assert_eq!(checkpoints.latest().unwrap().unwrap().state, state(5, 2));
    }

    #[test]
    fn unfinished_checkpoint_is_not_seen() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        let writer = CheckpointWriter::new(checkpoints.clone(), 2);
        save(&writer, &state(3, 3));
        writer.begin(&state(4, 3)).unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [3]);
    }

    #[test]
    fn checkpoint_of_a_step_that_has_one_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        let writer = CheckpointWriter::new(checkpoints.clone(), 2);
        save(&writer, &state(3, 1));
        // As a crash before the old one's removal would have left it.
        fs::create_dir(checkpoints.replaced_folder(3)).unwrap();
        writer.begin(&state(3, 2)).unwrap();
        for part in Part::ALL {
            let old = checkpoints.step_folder(3).join(part.file_name());
            fs::copy(old, checkpoints.partial_folder(3).join(part.file_name())).unwrap();
        }
        writer.publish(state(3, 2)).unwrap();
        assert_eq!(checkpoints.latest().unwrap().unwrap().state, state(3, 2));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_leaves_is_cleared_up_and_loses_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        checkpoints.clear_up().unwrap();
        let writer = CheckpointWriter::new(checkpoints.clone(), 2);
        save(&writer, &state(3, 1));
        save(&writer, &state(7, 1));
        // Step 3: the new one is in its place. Step 7: it is not yet.
        fs::create_dir(checkpoints.replaced_folder(3)).unwrap();
        rename(&checkpoints.step_folder(7), &checkpoints.replaced_folder(7)).unwrap();
        writer.begin(&state(7, 2)).unwrap();
        writer.begin(&state(9, 2)).unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [3]);

        checkpoints.clear_up().unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [3, 7]);
        assert_eq!(checkpoints.latest().unwrap().unwrap().state, state(7, 1));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn damage_is_an_error_that_names_file_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        let writer = CheckpointWriter::new(checkpoints.clone(), 2);
        save(&writer, &state(3, 3));
        save(&writer, &state(7, 3));

        let model = checkpoints.step_folder(7).join("model.bpk");
        let whole = fs::read(&model).unwrap();
        let message = || format!("{:#}", checkpoints.latest().unwrap_err());

        fs::write(&model, &whole[..whole.len() - 1]).unwrap();
        assert!(
            message().contains("model.bpk is damaged: it has"),
            "{}",
            message()
        );
        assert!(
            message().contains("step-00000007 to resume from step 3"),
            "{}",
            message()
        );

        let mut altered = whole.clone();
        *altered.last_mut().unwrap() ^= 1;
        fs::write(&model, altered).unwrap();
        assert!(message().contains("content has changed"), "{}", message());

        fs::remove_file(&model).unwrap();
        assert!(message().contains("cannot read"), "{}", message());

        fs::write(&model, whole).unwrap();
        assert!(checkpoints.latest().is_ok());
        fs::write(checkpoints.step_folder(7).join(MANIFEST), "{").unwrap();
        assert!(
            message().contains("checkpoint.toml is damaged"),
            "{}",
            message()
        );
    }
}
