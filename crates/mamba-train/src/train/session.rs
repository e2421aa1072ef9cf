//! One stretch of a run, from its start or a checkpoint to its end or an interruption.

use std::io;
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use burn::data::dataloader::DataLoader;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::tensor::Device;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{LearningRateMetric, MetricDefinition, NumericEntry};
use burn::train::renderer::MetricsRenderer;
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::{ApplicationLoggerInstaller, Learner, SupervisedTraining, TrainingStrategy};
use mamba_core::LanguageModel;

use super::{Display, Outcome, TrainEvent, TrainOptions};
use crate::cache::{sha256_hex, write_atomic};
use crate::checkpoint::{Checkpoint, CheckpointWriter, Part, SaveAlways};
use crate::compiling;
use crate::curve::write_curve;
use crate::dashboard::Late;
use crate::data::Splits;
use crate::evaluate::{Evaluation, evaluate};
use crate::experiment::Experiment;
use crate::hardware::{Hardware, peak_memory};
use crate::history::{EvalRecord, History, Record, read_history};
use crate::learner::{
    LmTraining, MemoryMetric, PerplexityMetric, Plan, StepStrategy, Stop, ThroughputMetric,
    TokenLoader, TokenLossMetric, TrainState,
};
use crate::load::load_training;
use crate::logging::{LogFile, kernels_compiled};
use crate::optimizer::build_optimizer;
use crate::renderer::{PlainOptions, PlainRenderer};
use crate::run::RunFolder;
use crate::schedule::WarmupSchedule;
use crate::summary::{ModelFile, Scores, Summary, Versions, git_revision};
use crate::windows::{TokenBatch, Windows};

pub(super) struct Session {
    pub(super) experiment: Experiment,
    pub(super) splits: Splits,
    pub(super) plan: Plan,
    pub(super) folder: RunFolder,
    pub(super) options: TrainOptions,
}

impl Session {
    pub(super) fn carry_out(
        &self,
        checkpoint: Option<Checkpoint>,
        source: Option<LanguageModel>,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<Outcome> {
        let state = checkpoint
            .as_ref()
            .map_or_else(TrainState::default, |c| c.state.clone());
        if self.display() != Display::Quiet {
            compiling::show();
        }
        let learner = self.learner(checkpoint, source)?;
        let parameters = learner.model().num_params();
        on_event(TrainEvent::Started {
            folder: self.folder.clone(),
            data: self.splits.description.clone(),
            parameters,
            step: state.step,
            total_steps: self.plan.total_steps,
            train_tokens: self.splits.train.num_targets(),
        });

        let (module, stop, state, mut history) = self.fit(learner, state)?;
        self.draw_curve()?;
        if stop == Stop::Interrupted {
            return Ok(self.interrupted(&state, false));
        }

        let (module, kept_step) = match (stop, state.best) {
            (Stop::EarlyStopping, Some(best)) => {
                let record = self.folder.checkpoints().open(best.step)?.model()?;
                (load_training(module, record)?, best.step)
            }
            _ => (module, state.step),
        };
        let model = module.model;
        let valid = self.evaluate(&model, "valid", &self.splits.valid, on_event)?;
        let test = match &self.splits.test {
            Some(test) => self.evaluate(&model, "test", test, on_event)?,
            None => None,
        };
        if self.options.interrupter.should_stop() {
            return Ok(self.interrupted(&state, true));
        }
        for (split, evaluation) in [("valid", valid), ("test", test)] {
            if let Some(evaluation) = evaluation {
                history.push(&Record::Final(EvalRecord::new(
                    split, kept_step, evaluation,
                )))?;
            }
        }

        let model = self.save_model(&model)?;
        let summary = Summary {
            name: self.folder.name(),
            corpus: self.splits.corpus.clone(),
            stop,
            steps: state.step,
            epochs: state.step as f64 / self.plan.steps_per_epoch as f64,
            tokens: state.tokens,
            parameters,
            kept_step,
            before: state.before.map(Scores::from),
            train: state.train_loss.map(Scores::of_loss),
            valid: valid.map(Scores::from),
            test: test.map(Scores::from),
            tokens_per_second: state.throughput(),
            wall_seconds: state.wall_seconds,
            peak_memory: peak_memory(),
            hardware: Hardware::detect(&self.options.device),
            git_revision: git_revision(),
            versions: Versions::default(),
            model: Some(model),
        };
        summary.write(&self.folder.summary())?;
        Ok(Outcome::Finished {
            folder: self.folder.clone(),
            summary: Box::new(summary),
        })
    }

    fn interrupted(&self, state: &TrainState, evaluating: bool) -> Outcome {
        Outcome::Interrupted {
            folder: self.folder.clone(),
            step: state.step,
            total_steps: self.plan.total_steps,
            evaluating,
        }
    }

    /// The learner of the run, as it was at `checkpoint`; at its beginning with the parameters of `source`, if there is one.
    fn learner(
        &self,
        checkpoint: Option<Checkpoint>,
        source: Option<LanguageModel>,
    ) -> Result<Learner<LmTraining>> {
        let training = &self.experiment.training;
        let device = self.train_device();
        device.seed(training.seed);
        let mut model = self.experiment.model.init(&device);
        if let Some(source) = source {
            let loaded = model.try_load_record(source.into_record());
            model =
                loaded.map_err(|error| anyhow!("cannot begin with the model given: {error}"))?;
        }
        let model = model.with_precision(training.precision.on(&self.options.device));
        let mut module = LmTraining::new(model, training.grad_accum, training.clip_norm);
        let mut optimizer = build_optimizer(training, &module);
        let schedule = WarmupSchedule::new(training, self.plan.total_steps);
        let mut schedule = ModuleLrScheduler::new(schedule);
        if let Some(checkpoint) = checkpoint {
            module = load_training(module, checkpoint.model()?)?;
            let record = checkpoint.optimizer()?;
            let tensors = record.len();
            optimizer = optimizer.load_record(record);
            // Burn leaves out what it cannot restore, and would begin those moments from zero.
            ensure!(
                optimizer.to_record().len() == tensors,
                "the optimizer state of step {} does not fit training.optimizer in {}; undo the \
                 change to that file, or start a new run",
                checkpoint.state.step,
                self.folder.config().display()
            );
            schedule = schedule.load_record(checkpoint.scheduler()?);
        }
        Ok(Learner::new(module, optimizer, schedule))
    }

    fn fit(
        &self,
        learner: Learner<LmTraining>,
        state: TrainState,
    ) -> Result<(LmTraining, Stop, TrainState, History)> {
        let training = &self.experiment.training;
        let interrupter = self.options.interrupter.clone();
        let history = History::open(&self.folder.metrics(), &state)?;
        let writer = CheckpointWriter::new(self.folder.checkpoints(), training.keep_checkpoints);
        let renderer = self.renderer(&state);
        let first_batch = state.step * self.plan.grad_accum;
        let strategy = Arc::new(StepStrategy::new(
            training.clone(),
            self.plan,
            self.train_device(),
            writer.clone(),
            state,
            history,
        ));

        let result = SupervisedTraining::new(
            self.folder.path(),
            self.train_batches(first_batch),
            self.valid_batches(),
        )
        .metric_train_numeric(TokenLossMetric::default())
        .metric_valid_numeric(TokenLossMetric::default())
        .metric_train_numeric(PerplexityMetric::default())
        .metric_valid_numeric(PerplexityMetric::default())
        .metric_train_numeric(LearningRateMetric::new())
        .metric_train_numeric(ThroughputMetric::default())
        .metric_train_numeric(MemoryMetric::default())
        .with_custom_checkpointers(
            writer.part(Part::Model),
            writer.part(Part::Optimizer),
            writer.part(Part::Scheduler),
        )
        .with_checkpointing_strategy(SaveAlways)
        .with_metric_logger(NoMetricFiles)
        .with_application_logger(self.application_logger())
        .with_interrupter(interrupter)
        .num_epochs(self.plan.epochs())
        .renderer(renderer)
        .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
        .launch(learner);

        let module = result.model;
        // The dashboard gives the terminal back when it is dropped.
        drop(result.renderer);
        let (stop, state, history) = strategy.finish()?;
        Ok((module, stop, state, history))
    }

    fn train_device(&self) -> Device {
        self.options.device.clone().autodiff()
    }

    fn train_batches(&self, first: usize) -> Arc<dyn DataLoader<TokenBatch>> {
        let Plan {
            steps_per_epoch,
            total_steps,
            grad_accum,
        } = self.plan;
        let loader = TokenLoader::shuffled(
            self.splits.train.clone(),
            self.experiment.data.batch_size,
            self.experiment.training.seed,
            steps_per_epoch * grad_accum,
            total_steps * grad_accum,
            &self.train_device(),
        );
        Arc::new(loader.starting_at(first))
    }

    fn valid_batches(&self) -> Arc<dyn DataLoader<TokenBatch>> {
        let loader = TokenLoader::sequential(
            self.splits.valid.clone(),
            self.experiment.data.batch_size,
            &self.options.device,
        );
        Arc::new(loader.take(self.experiment.training.eval_batches))
    }

    fn evaluate(
        &self,
        model: &LanguageModel,
        split: &'static str,
        windows: &Arc<Windows>,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<Option<Evaluation>> {
        // A run that takes no step has not said that what it needs is compiled.
        compiling::hide();
        let batch_size = self.experiment.data.batch_size;
        let batches = TokenLoader::sequential(windows.clone(), batch_size, &self.options.device);
        evaluate(model, &batches, |done, total| {
            on_event(TrainEvent::Evaluating { split, done, total });
            !self.options.interrupter.should_stop()
        })
    }

    fn save_model(&self, model: &LanguageModel) -> Result<ModelFile> {
        let path = self.folder.model();
        let bytes = model
            .clone()
            .into_record()
            .into_bytes()
            .map_err(|error| anyhow!("cannot serialise the model: {error}"))?;
        write_atomic(&path, |out| Ok(out.write_all(&bytes)?))?;
        Ok(ModelFile {
            bytes: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        })
    }

    fn draw_curve(&self) -> Result<()> {
        let records = read_history(&self.folder.metrics())?;
        write_curve(&self.folder.curve(), &self.folder.name(), &records)
    }

    fn display(&self) -> Display {
        match self.options.display {
            Display::Auto if Display::has_terminal() => Display::Dashboard,
            Display::Auto => Display::Plain,
            display => display,
        }
    }

    fn renderer(&self, state: &TrainState) -> Box<dyn MetricsRenderer> {
        let options = PlainOptions {
            start_step: state.step,
            total_steps: self.plan.total_steps,
            every: self.experiment.training.log_every,
        };
        match self.display() {
            Display::Dashboard => {
                let interrupter = self.options.interrupter.clone();
                let epochs_done = self.plan.epoch(state.step) - 1;
                let checkpoint = (epochs_done > 0).then_some(epochs_done);
                let open = move || -> Box<dyn MetricsRenderer> {
                    Box::new(TuiMetricsRendererWrapper::new(interrupter, checkpoint))
                };
                if kernels_compiled() > 0 {
                    Box::new(Late::new(open))
                } else {
                    compiling::hide();
                    open()
                }
            }
            Display::Quiet => Box::new(PlainRenderer::with_output(options, io::sink())),
            Display::Plain | Display::Auto => Box::new(PlainRenderer::new(options)),
        }
    }

    /// Sends log messages to a file of the run.
    fn application_logger(&self) -> Option<Box<dyn ApplicationLoggerInstaller>> {
        match self.display() {
            Display::Quiet => None,
            _ => Some(Box::new(LogFile(self.folder.log()))),
        }
    }
}

/// Keeps burn-train from writing a log file a metric and epoch: the history has it all.
struct NoMetricFiles;

impl MetricLogger for NoMetricFiles {
    fn log(&mut self, _update: MetricsUpdate, _epoch: usize, _split: &Split) {}

    fn read_numeric(
        &mut self,
        _name: &str,
        _epoch: usize,
        _split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _definition: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}
