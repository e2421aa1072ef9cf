//! How many steps a run takes.

use anyhow::{Result, ensure};

use crate::experiment::Experiment;

/// The steps of a run, which follow from the experiment and the size of the training split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Optimizer steps in a pass over the training split.
    pub steps_per_epoch: usize,
    /// Optimizer steps in the run.
    pub total_steps: usize,
    /// Batches in an optimizer step.
    pub grad_accum: usize,
}

impl Plan {
    /// Plans the run of `experiment` over `windows` training sequences.
    ///
    /// # Errors
    ///
    /// When the training split does not fill a single optimizer step.
    pub fn new(experiment: &Experiment, windows: usize) -> Result<Self> {
        let (data, training) = (&experiment.data, &experiment.training);
        let step_windows = data.batch_size.saturating_mul(training.grad_accum);
        let steps_per_epoch = windows / step_windows;
        ensure!(
            steps_per_epoch > 0,
            "the training split has {windows} sequences of {} tokens but one optimizer step takes \
             {step_windows}; lower data.batch_size, data.seq_len or training.grad_accum, or use \
             more text",
            data.seq_len
        );
        let total_steps = match training.max_steps {
            0 => training.epochs.saturating_mul(steps_per_epoch),
            max_steps => max_steps,
        };
        // No run comes this far, and every count of its batches and sequences fits in a number.
        let total_steps = total_steps.min(usize::MAX / step_windows);
        Ok(Self {
            steps_per_epoch,
            total_steps,
            grad_accum: training.grad_accum,
        })
    }

    /// The epoch, counted from 1, of the step that follows `step` others.
    pub fn epoch(&self, step: usize) -> usize {
        step / self.steps_per_epoch + 1
    }

    /// Optimizer steps of an epoch; the last one may be cut short.
    pub fn steps_of(&self, epoch: usize) -> usize {
        let before = (epoch - 1) * self.steps_per_epoch;
        self.steps_per_epoch
            .min(self.total_steps.saturating_sub(before))
    }

    /// The number of epochs that are begun.
    pub fn epochs(&self) -> usize {
        self.total_steps.div_ceil(self.steps_per_epoch)
    }

    /// Whether an epoch has just ended after `step` steps.
    pub fn is_epoch_end(&self, step: usize) -> bool {
        step > 0 && step.is_multiple_of(self.steps_per_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment(overrides: &[&str]) -> Experiment {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Experiment::parse("", "test", &overrides).unwrap()
    }

    #[test]
    fn epochs_and_steps_follow_from_batches() {
        let base = [
            "data.batch_size=4",
            "training.grad_accum=2",
            "training.epochs=3",
        ];
        let plan = Plan::new(&experiment(&base), 35).unwrap();
        assert_eq!(
            (plan.steps_per_epoch, plan.total_steps, plan.epochs()),
            (4, 12, 3)
        );
        assert_eq!((plan.epoch(3), plan.epoch(4)), (1, 2));
        assert!(!plan.is_epoch_end(0) && plan.is_epoch_end(8));

        let plan = Plan::new(
            &experiment(&[&base[..], &["training.max_steps=9"]].concat()),
            35,
        );
        let plan = plan.unwrap();
        assert_eq!(plan.epochs(), 3);
        assert_eq!((plan.steps_of(2), plan.steps_of(3)), (4, 1));
    }

    #[test]
    fn numbers_that_no_run_comes_to_do_not_wrap() {
        let most = i64::MAX as usize;
        let message = Plan::new(
            &experiment(&[
                "data.batch_size=4",
                &format!("training.grad_accum={}", most / 2 + 1),
            ]),
            31,
        );
        let message = message.unwrap_err().to_string();
        assert!(message.contains("31 sequences"), "{message}");

        let batches = ["data.batch_size=4", "training.grad_accum=2"];
        for key in ["training.epochs", "training.max_steps"] {
            let endless = format!("{key}={most}");
            let plan = Plan::new(&experiment(&[&batches[..], &[&endless]].concat()), 35).unwrap();
            assert_eq!(plan.total_steps, usize::MAX / 8);
            assert_eq!(plan.epochs(), plan.total_steps.div_ceil(4));
        }
    }

    #[test]
    fn too_little_text_is_an_error_with_both_numbers() {
        let message = Plan::new(&experiment(&["data.batch_size=32"]), 31)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("31 sequences") && message.contains("takes 32"),
            "{message}"
        );
    }
}
