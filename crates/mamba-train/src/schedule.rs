//! The learning rate over the steps of a run.

use std::f64::consts::PI;

use burn::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::optim::LearningRate;
use serde::{Deserialize, Serialize};

use crate::experiment::TrainingConfig;

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// The peak rate to the end.
    Constant,
    /// Half a cosine from the peak rate down to the minimum.
    Cosine,
}

/// Linear warm-up, then a constant rate or a cosine decay.
///
/// ```text
/// rate(t) = peak * (t + 1) / warmup                                      t < warmup
/// rate(t) = min + (peak - min) * (1 + cos(pi * progress)) / 2            cosine
/// ```
///
/// Where:
/// - `t`: optimizer steps taken before this one
/// - `progress`: `(t - warmup) / (total - warmup)`
#[derive(Clone, Debug)]
pub struct WarmupSchedule {
    kind: ScheduleKind,
    peak: f64,
    min: f64,
    warmup_steps: usize,
    total_steps: usize,
    step: usize,
}

impl WarmupSchedule {
    /// The schedule of a run of `total_steps` optimizer steps.
    pub fn new(training: &TrainingConfig, total_steps: usize) -> Self {
        let warmup_steps = match training.warmup_fraction {
            0.0 => training.warmup_steps,
            fraction => (fraction * total_steps as f64).ceil() as usize,
        };
        Self {
            kind: training.schedule,
            peak: training.learning_rate,
            min: training.min_learning_rate,
            warmup_steps,
            total_steps,
            step: 0,
        }
    }

    /// The learning rate of the optimizer step that follows `step` others.
    pub fn rate(&self, step: usize) -> LearningRate {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.kind {
            ScheduleKind::Constant => self.peak,
            ScheduleKind::Cosine => {
                let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
                let progress = (step - self.warmup_steps) as f64 / decay_steps as f64;
                let cosine = (PI * progress.min(1.0)).cos();
                self.min + (self.peak - self.min) * (1.0 + cosine) / 2.0
            }
        }
    }
}

const STEP: &str = "step";

impl LrScheduler for WarmupSchedule {
    fn step(&mut self) -> LearningRate {
        let rate = self.rate(self.step);
        self.step += 1;
        rate
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new().with_scalar(STEP, self.step)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        if let Some(step) = record.scalar(STEP) {
            self.step = step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> WarmupSchedule {
        let training = TrainingConfig {
            learning_rate: 1.0,
            min_learning_rate: 0.1,
            schedule: kind,
            warmup_steps: 4,
            ..TrainingConfig::default()
        };
        WarmupSchedule::new(&training, 12)
    }

    #[test]
    fn warms_up_linearly_then_follows_the_cosine() {
        let schedule = schedule(ScheduleKind::Cosine);
        let warmup: Vec<f64> = (0..4).map(|step| schedule.rate(step)).collect();
        assert_eq!(warmup, [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(schedule.rate(4), 1.0);
        assert!((schedule.rate(8) - 0.55).abs() < 1e-12);
        assert!((schedule.rate(12) - 0.1).abs() < 1e-12);
        assert!((schedule.rate(40) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn a_fraction_of_the_steps_warms_up() {
        let training = TrainingConfig {
            learning_rate: 1.0,
            warmup_fraction: 0.1,
            ..TrainingConfig::default()
        };
        let schedule = WarmupSchedule::new(&training, 31);
        let warmup: Vec<f64> = (0..4).map(|step| schedule.rate(step)).collect();
        assert_eq!(warmup, [0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn constant_stays_at_the_peak() {
        let schedule = schedule(ScheduleKind::Constant);
        assert_eq!(schedule.rate(1), 0.5);
        assert_eq!(schedule.rate(11), 1.0);
    }

    #[test]
    fn record_continues_the_schedule() {
        let mut whole = schedule(ScheduleKind::Cosine);
        let rates: Vec<f64> = (0..12).map(|_| whole.step()).collect();

        let mut first = schedule(ScheduleKind::Cosine);
        (0..5).for_each(|_| {
            first.step();
        });
        let mut second = schedule(ScheduleKind::Cosine);
        second.load_record(first.to_record());
        let rest: Vec<f64> = (5..12).map(|_| second.step()).collect();
        assert_eq!(rest, rates[5..]);
    }
}
