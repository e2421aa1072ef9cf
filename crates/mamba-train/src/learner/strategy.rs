//! The loop as a strategy of burn-train.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use burn::tensor::Device;
use burn::train::checkpoint::CheckpointerError;
use burn::train::{
    Learner, SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader,
    TrainingComponents, TrainingError, ValidLoader,
};
use serde::{Deserialize, Serialize};

use super::stepper::Stepper;
use super::{LmTraining, Plan, TrainState};
use crate::checkpoint::CheckpointWriter;
use crate::experiment::TrainingConfig;
use crate::history::History;

/// Why training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// All steps were taken.
    Completed,
    /// `training.patience` evaluations brought no improvement.
    EarlyStopping,
    /// `training.max_minutes` were used up.
    TimeLimit,
    /// Someone asked for it; the run can be resumed.
    Interrupted,
}

/// A learning strategy that counts in optimizer steps.
///
/// It evaluates, saves and stops between any two steps. Every step draws its data and its random
/// numbers from the seed and its own number alone, so that a run restored from a checkpoint takes
/// exactly the steps that an uninterrupted one takes.
pub struct StepStrategy {
    training: TrainingConfig,
    plan: Plan,
    device: Device,
    writer: CheckpointWriter,
    session: Mutex<Session>,
}

/// What the loop starts from and what it leaves.
struct Session {
    state: TrainState,
    history: Option<History>,
    outcome: Option<Result<Stop>>,
}

impl StepStrategy {
    /// A strategy that continues from `state` on the autodiff device `device`.
    pub fn new(
        training: TrainingConfig,
        plan: Plan,
        device: Device,
        writer: CheckpointWriter,
        state: TrainState,
        history: History,
    ) -> Self {
        let session = Session {
            state,
            history: Some(history),
            outcome: None,
        };
        Self {
            training,
            plan,
            device,
            writer,
            session: Mutex::new(session),
        }
    }

    /// Why the loop ended, the state it left and the history it wrote.
    ///
    /// # Errors
    ///
    /// When the loop failed, or never ran.
    pub fn finish(&self) -> Result<(Stop, TrainState, History)> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let stop = session.outcome.take().context("training did not run")??;
        let history = session.history.take().context("training did not run")?;
        Ok((stop, session.state.clone(), history))
    }
}

impl SupervisedLearningStrategy<LmTraining> for StepStrategy {
    fn fit(
        &self,
        components: TrainingComponents<LmTraining>,
        mut learner: Learner<LmTraining>,
        train: TrainLoader<LmTraining>,
        valid: ValidLoader<LmTraining>,
        _starting_epoch: usize,
    ) -> (LmTraining, SupervisedTrainingEventProcessor<LmTraining>) {
        let train = train.to_device(&self.device);
        let valid = valid.to_device(&self.device.clone().inner());
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let Session {
            state,
            history,
            outcome,
        } = &mut *session;
        let mut processor = components.event_processor;
        let interrupter = components.interrupter;

        let result = match history {
            Some(history) => {
                let wall_before = state.wall_seconds;
                let mut stepper = Stepper {
                    training: &self.training,
                    plan: self.plan,
                    device: &self.device,
                    writer: &self.writer,
                    learner: &mut learner,
                    valid: &valid,
                    processor: &mut processor,
                    checkpointer: components.checkpointer,
                    store: &components.event_store,
                    interrupter: &interrupter,
                    history,
                    state,
                    pending: Vec::new(),
                    saved_step: None,
                    in_train_split: false,
                    clock: Instant::now(),
                    started: Instant::now(),
                    wall_before,
                };
                stepper.run(&mut *train.iter())
            }
            None => Err(anyhow!("a training strategy runs once")),
        };
        // The stepper's checkpointer is dropped by here, which waits for its files; only then is it
        // known whether they could be written.
        *outcome = Some(match interrupter.error() {
            Some(error) => Err(told(&error)),
            None => result,
        });
        (learner.model(), processor)
    }
}

/// An error of burn-train's, with what to do about it.
fn told(error: &TrainingError) -> anyhow::Error {
    match error {
        TrainingError::Checkpoint(CheckpointerError::Unknown(problem)) => anyhow!(
            "cannot save the checkpoint ({problem}); free some space or mend what else is wrong, then resume"
        ),
        other => anyhow!("{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_that_cannot_be_saved_is_told_as_such() {
        let full = "cannot write step-00000020.partial/model.bpk: No space left on device";
        let error = TrainingError::Checkpoint(CheckpointerError::Unknown(full.into()));
        let told = told(&error).to_string();
        assert!(
            told.starts_with("cannot save the checkpoint (cannot write step-00000020"),
            "{told}"
        );
        assert!(told.ends_with("then resume"), "{told}");
    }
}
