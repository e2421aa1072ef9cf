//! What a run remembers besides model, optimizer and schedule.

use serde::{Deserialize, Serialize};

use crate::evaluate::Evaluation;

/// The bookkeeping of a run, saved with every checkpoint.
///
/// Nothing here says where in the data the run is, nor in which state random numbers are: both
/// are functions of the seed and `step`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimizer steps taken.
    pub step: usize,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds spent in optimizer steps.
    pub train_seconds: f64,
    /// Seconds spent in total, evaluations and checkpoints included.
    pub wall_seconds: f64,
    /// Training losses since the last logged one.
    pub window: LossWindow,
    /// The last logged training loss.
    pub train_loss: Option<f64>,
    /// The step of the last evaluation.
    pub evaluated_step: Option<usize>,
    /// The evaluation before the first step.
    pub before: Option<Evaluation>,
    /// The best evaluation so far, the one before the first step left out.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub evaluations_since_best: usize,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step after which it was made.
    pub step: usize,
    /// Its loss.
    pub loss: f64,
}

/// Training losses on their way into one logged number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossWindow {
    /// The sum of the losses of the steps.
    pub loss: f64,
    /// Steps.
    pub steps: usize,
    /// Tokens.
    pub tokens: u64,
    /// Seconds spent in the steps.
    pub seconds: f64,
}

impl LossWindow {
    /// The mean loss of the steps.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.steps as f64
    }

    /// Tokens a second of computation.
    pub fn throughput(&self) -> f64 {
        throughput(self.tokens, self.seconds)
    }
}

/// Tokens a second; 0 where nothing was done, since JSON has no other number for that.
fn throughput(tokens: u64, seconds: f64) -> f64 {
    match seconds > 0.0 {
        true => tokens as f64 / seconds,
        false => 0.0,
    }
}

impl TrainState {
    /// Tokens a second of computation.
    pub fn throughput(&self) -> f64 {
        throughput(self.tokens, self.train_seconds)
    }

    /// Takes note of an evaluation on the valid split, and returns whether it is the best after
    /// any step so far.
    pub fn record_evaluation(&mut self, evaluation: Evaluation) -> bool {
        self.evaluated_step = Some(self.step);
        if self.step == 0 {
            self.before = Some(evaluation);
            return false;
        }
        let improved = self.best.is_none_or(|best| evaluation.loss < best.loss);
        if improved {
            self.best = Some(Best {
                step: self.step,
                loss: evaluation.loss,
            });
            self.evaluations_since_best = 0;
        } else {
            self.evaluations_since_best += 1;
        }
        improved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_without_improvement_are_counted() {
        let mut state = TrainState::default();
        let seen: Vec<(bool, usize)> = [0.5, 3.0, 2.0, 2.5, 2.0, 1.0]
            .into_iter()
            .enumerate()
            .map(|(step, loss)| {
                state.step = step;
                let improved = state.record_evaluation(Evaluation { loss, tokens: 1 });
                (improved, state.evaluations_since_best)
            })
            .collect();
        let expected = [
            (false, 0),
            (true, 0),
            (true, 0),
            (false, 1),
            (false, 2),
            (true, 0),
        ];
        assert_eq!(seen, expected);
        assert_eq!(state.best, Some(Best { step: 5, loss: 1.0 }));
        assert_eq!(state.before.unwrap().loss, 0.5);
    }
}
