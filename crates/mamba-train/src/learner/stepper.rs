//! The loop over optimizer steps.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::module::Module;
use burn::optim::GradientsAccumulator;
use burn::tensor::{Device, Tensor};
use burn::train::metric::store::EventStoreClient;
use burn::train::{
    EventProcessorTraining, InferenceStep, Interrupter, Learner, LearnerEvent,
    LearningCheckpointer, SupervisedTrainingEventProcessor, TrainingItem, ValidLoader,
};

use super::{LmOutput, LmTraining, Plan, Stop, TrainState};
use crate::checkpoint::CheckpointWriter;
use crate::evaluate::{LossMean, perplexity, read_losses};
use crate::experiment::TrainingConfig;
use crate::history::{EvalRecord, History, Record};
use crate::windows::TokenBatch;

/// The loop, on what it borrows from the strategy and from burn-train.
pub(super) struct Stepper<'a> {
    pub(super) training: &'a TrainingConfig,
    pub(super) plan: Plan,
    pub(super) device: &'a Device,
    pub(super) writer: &'a CheckpointWriter,
    pub(super) learner: &'a mut Learner<LmTraining>,
    pub(super) valid: &'a ValidLoader<LmTraining>,
    pub(super) processor: &'a mut SupervisedTrainingEventProcessor<LmTraining>,
    pub(super) checkpointer: Option<LearningCheckpointer<LmTraining>>,
    pub(super) store: &'a EventStoreClient,
    pub(super) interrupter: &'a Interrupter,
    pub(super) history: &'a mut History,
    pub(super) state: &'a mut TrainState,
    /// Losses of the steps since the last logged one that are still on the device.
    pub(super) pending: Vec<Tensor<1>>,
    pub(super) saved_step: Option<usize>,
    /// Whether the renderer was told that training items follow.
    pub(super) in_train_split: bool,
    /// When the time of the next step begins: where the last one was measured, or after what came in
    /// between. Handing over an item waits for the device too, so that nothing may be left out.
    pub(super) clock: Instant,
    pub(super) started: Instant,
    pub(super) wall_before: f64,
}

impl Stepper<'_> {
    /// Takes steps until the run ends or is interrupted.
    pub(super) fn run(&mut self, batches: &mut dyn DataLoaderIterator<TokenBatch>) -> Result<Stop> {
        let resumed_step = self.state.step;
        self.saved_step = (resumed_step > 0).then_some(resumed_step);
        self.end_epoch(self.plan.epoch(resumed_step) - 1);
        loop {
            let step = self.state.step;
            let mut improved = false;
            if self.evaluation_due() {
                match self.evaluate()? {
                    Some(best) => improved = best,
                    None => return self.interrupt(),
                }
                self.clock = Instant::now();
            }
            if self.plan.is_epoch_end(step) && step > resumed_step {
                self.end_epoch(step / self.plan.steps_per_epoch);
            }
            if let Some(stop) = self.end() {
                self.save()?;
                return Ok(stop);
            }
            if self.interrupter.should_stop() {
                return self.interrupt();
            }
            if improved || self.checkpoint_due() {
                self.save()?;
                self.clock = Instant::now();
            }
            self.step(batches)?;
        }
    }

    fn evaluation_due(&self) -> bool {
        let step = self.state.step;
        let every = self.training.eval_every;
        let due = step == 0
            || step == self.plan.total_steps
            || self.plan.is_epoch_end(step)
            || (every > 0 && step.is_multiple_of(every));
        due && self.state.evaluated_step != Some(step)
    }

    fn checkpoint_due(&self) -> bool {
        let step = self.state.step;
        let every = self.training.checkpoint_every;
        step > 0 && (self.plan.is_epoch_end(step) || (every > 0 && step.is_multiple_of(every)))
    }

    /// Why training ends here, if it does.
    fn end(&self) -> Option<Stop> {
        let TrainingConfig {
            patience,
            max_minutes,
            ..
        } = *self.training;
        if self.state.step >= self.plan.total_steps {
            Some(Stop::Completed)
        } else if patience > 0 && self.state.evaluations_since_best >= patience {
            Some(Stop::EarlyStopping)
        } else if max_minutes > 0.0 && self.wall_seconds() >= max_minutes * 60.0 {
            Some(Stop::TimeLimit)
        } else {
            None
        }
    }

    fn interrupt(&mut self) -> Result<Stop> {
        // After an error there may be nothing worth keeping, and the last checkpoint is whole.
        if self.interrupter.error().is_none() {
            self.save()?;
        }
        Ok(Stop::Interrupted)
    }

    fn step(&mut self, batches: &mut dyn DataLoaderIterator<TokenBatch>) -> Result<()> {
        let epoch = self.plan.epoch(self.state.step);
        self.start_train_split(epoch);
        self.device
            .seed(step_seed(self.training.seed, self.state.step));

        let mut accumulator = GradientsAccumulator::new();
        let mut losses = Vec::with_capacity(self.plan.grad_accum);
        let mut tokens = 0;
        for _ in 0..self.plan.grad_accum {
            let batch = batches
                .next()
                .context("the training data ended before the run")??;
            let output = self.learner.train_step(batch);
            accumulator.accumulate(&self.learner.model(), output.grads);
            losses.push(output.item.loss);
            tokens += output.item.tokens;
        }
        self.learner.lr_step();
        self.learner.optimizer_step(accumulator.grads());
        let loss = Tensor::cat(losses, 0).mean_dim(0);
        self.pending.push(loss.clone());
        self.state.step += 1;
        let log = self.state.step.is_multiple_of(self.training.log_every);
        if log || self.state.step == self.plan.total_steps {
            // A GPU is still at work on what it was given: reading the losses waits for it, so that
            // the time is that of the work.
            self.collect_losses()?;
        }
        let now = Instant::now();
        let seconds = (now - std::mem::replace(&mut self.clock, now)).as_secs_f64();

        self.state.tokens += tokens as u64;
        self.state.train_seconds += seconds;
        self.state.window.tokens += tokens as u64;
        self.state.window.seconds += seconds;
        if log {
            self.log(epoch)?;
        }

        let done = self.position_in_epoch();
        let item = TrainingItem::new(
            LmOutput {
                loss,
                tokens,
                seconds,
            },
            Progress::new(done, self.plan.steps_of(epoch), Some("steps".into())),
            Some(self.state.step),
            Some(self.learner.lr_current()),
        );
        self.emit_train(LearnerEvent::ProcessedItem(item));
        if self.plan.is_epoch_end(self.state.step) {
            self.emit_train(LearnerEvent::EndSplit(epoch));
            self.in_train_split = false;
        }
        log::trace!("took step {}", self.state.step);
        Ok(())
    }

    /// Moves the losses of the steps from the device to the state.
    fn collect_losses(&mut self) -> Result<()> {
        for loss in read_losses(std::mem::take(&mut self.pending))? {
            if !loss.is_finite() {
                bail!(
                    "the training loss became {loss} by step {}; lower training.learning_rate, \
                     raise training.warmup_steps or set training.clip_norm",
                    self.state.step
                );
            }
            self.state.window.loss += loss;
            self.state.window.steps += 1;
        }
        Ok(())
    }

    fn log(&mut self, epoch: usize) -> Result<()> {
        let window = std::mem::take(&mut self.state.window);
        let loss = window.mean_loss();
        self.state.train_loss = Some(loss);
        self.history.push(&Record::Train {
            step: self.state.step,
            epoch,
            loss,
            perplexity: perplexity(loss),
            learning_rate: self.learner.lr_current().base(),
            tokens: self.state.tokens,
            tokens_per_second: window.throughput(),
            seconds: self.wall_seconds(),
        })
    }

    /// Evaluates on the valid split and returns whether the loss is the best so far, or nothing
    /// where it was interrupted.
    fn evaluate(&mut self) -> Result<Option<bool>> {
        let epoch = self.plan.epoch(self.state.step.saturating_sub(1));
        let model = self.learner.model().valid();
        let total = self.valid.num_items();
        self.in_train_split = false;
        self.emit_valid(LearnerEvent::StartSplit {
            epoch_number: epoch,
            total_items: total,
        });

        let mut mean = LossMean::default();
        for (index, batch) in self.valid.iter().enumerate() {
            if self.interrupter.should_stop() {
                return Ok(None);
            }
            let output = InferenceStep::step(&model, batch?);
            mean.push(output.loss.clone(), output.tokens)?;
            let progress = Progress::new(index + 1, total, Some("batches".into()));
            let item = TrainingItem::new(output, progress, Some(index + 1), None);
            self.emit_valid(LearnerEvent::ProcessedItem(item));
        }
        self.emit_valid(LearnerEvent::EndSplit(epoch));

        let evaluation = mean
            .finish()?
            .context("the valid split holds no sequence")?;
        self.history.push(&Record::Eval(EvalRecord::new(
            "valid",
            self.state.step,
            evaluation,
        )))?;
        Ok(Some(self.state.record_evaluation(evaluation)))
    }

    fn save(&mut self) -> Result<()> {
        let step = self.state.step;
        if self.saved_step == Some(step) {
            return Ok(());
        }
        self.collect_losses()?;
        self.state.wall_seconds = self.wall_seconds();
        self.writer
            .begin(self.state)
            .with_context(|| format!("cannot save the checkpoint of step {step}"))?;
        if let Some(checkpointer) = &mut self.checkpointer {
            checkpointer.checkpoint(self.learner, step, self.store);
        }
        self.saved_step = Some(step);
        Ok(())
    }

    fn wall_seconds(&self) -> f64 {
        self.wall_before + self.started.elapsed().as_secs_f64()
    }

    fn position_in_epoch(&self) -> usize {
        (self.state.step - 1) % self.plan.steps_per_epoch + 1
    }

    fn start_train_split(&mut self, epoch: usize) {
        if !self.in_train_split {
            self.in_train_split = true;
            self.emit_train(LearnerEvent::StartSplit {
                epoch_number: epoch,
                total_items: self.plan.steps_of(epoch),
            });
        }
    }

    fn end_epoch(&mut self, epoch: usize) {
        self.emit_train(LearnerEvent::EndEpoch(epoch));
    }

    fn emit_train(&mut self, event: LearnerEvent<LmOutput>) {
        self.interrupter
            .fail_on_error(self.processor.process_train(event));
    }

    fn emit_valid(&mut self, event: LearnerEvent<LmOutput>) {
        self.interrupter
            .fail_on_error(self.processor.process_valid(event));
    }
}

/// Spreads neighbouring steps over all seeds (the finaliser of SplitMix64).
fn step_seed(seed: u64, step: usize) -> u64 {
    let mut mixed = seed.wrapping_add((step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
