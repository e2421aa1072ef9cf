//! Renderers for places without a dashboard.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::{MetricDefinition, MetricEntry, MetricId, NumericEntry};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};

use crate::compiling;

/// What the [`PlainRenderer`] cannot learn from burn-train's events.
#[derive(Clone, Copy, Debug)]
pub struct PlainOptions {
    /// Optimizer steps taken before.
    pub start_step: usize,
    /// Optimizer steps in the run.
    pub total_steps: usize,
    /// Steps between lines.
    pub every: usize,
}

/// Prints one line every few steps and one an evaluation.
///
/// ```text
/// step   120/1000 | epoch 1 | loss 6.4021 | ppl 603.1 | lr 9.80e-4 | 2150 tok/s | eta 7m12s
/// ```
pub struct PlainRenderer<W: Write = io::Stdout> {
    options: PlainOptions,
    out: W,
    step: usize,
    epoch: usize,
    training: bool,
    names: Vec<(MetricId, String)>,
    interval: Interval,
    valid_loss: f64,
    started: Instant,
}

/// The metrics since the last line.
#[derive(Default)]
struct Interval {
    loss: Mean,
    throughput: Mean,
    learning_rate: f64,
}

#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn push(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(self) -> f64 {
        self.sum / self.count as f64
    }
}

impl PlainRenderer {
    /// A renderer on standard output.
    pub fn new(options: PlainOptions) -> Self {
        Self::with_output(options, io::stdout())
    }
}

impl<W: Write> PlainRenderer<W> {
    /// A renderer on `out`.
    pub fn with_output(options: PlainOptions, out: W) -> Self {
        Self {
            options,
            out,
            step: options.start_step,
            epoch: 1,
            training: true,
            names: Vec::new(),
            interval: Interval::default(),
            valid_loss: f64::NAN,
            started: Instant::now(),
        }
    }

    fn name(&self, entry: &MetricEntry) -> &str {
        self.names
            .iter()
            .find(|(id, _)| *id == entry.metric_id)
            .map_or("", |(_, name)| name.as_str())
    }

    fn line(&mut self) {
        let PlainOptions {
            start_step,
            total_steps,
            ..
        } = self.options;
        let Interval {
            loss,
            throughput,
            learning_rate,
        } = std::mem::take(&mut self.interval);
        let per_step = self.started.elapsed().as_secs_f64() / (self.step - start_step) as f64;
        let left = total_steps.saturating_sub(self.step) as f64 * per_step;
        let width = total_steps.to_string().len();
        self.print(&format!(
            "step {:>width$}/{total_steps} | epoch {} | loss {:.4} | ppl {:.1} | lr {:.2e} | \
             {:.0} tok/s | eta {}",
            self.step,
            self.epoch,
            loss.value(),
            loss.value().exp(),
            learning_rate,
            throughput.value(),
            Duration::try_from_secs_f64(left).map_or("never".into(), format_duration),
        ));
    }

    fn print(&mut self, line: &str) {
        // A reader that has gone away must not end the training.
        let printed =
            compiling::beside(|| writeln!(self.out, "{line}").and_then(|()| self.out.flush()));
        if let Err(error) = printed {
            log::debug!("cannot print progress: {error}");
        }
    }
}

/// A duration as `1h02m`, `7m12s` or `9s`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// The numeric value of a metric at a batch; the closing value of an epoch is none.
fn batch_value(state: &MetricState) -> Option<(&MetricEntry, f64)> {
    match state {
        MetricState::Numeric(entry, Some(value)) if !matches!(value, NumericEntry::Final(_)) => {
            Some((entry, value.current()))
        }
        _ => None,
    }
}

impl<W: Write + Send + Sync> MetricsRendererTraining for PlainRenderer<W> {
    fn update_train(&mut self, state: MetricState) {
        let Some((entry, value)) = batch_value(&state) else {
            return;
        };
        match self.name(entry) {
            "Loss" => {
                // The first step is done: what it needs is compiled.
                if self.interval.loss.count == 0 {
                    compiling::hide();
                }
                self.interval.loss.push(value);
            }
            "Tokens/s" => self.interval.throughput.push(value),
            "Learning Rate" => self.interval.learning_rate = value,
            _ => {}
        }
    }

    fn update_valid(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, Some(NumericEntry::Final(value))) = &state
            && self.name(entry) == "Loss"
        {
            self.valid_loss = *value;
        }
    }
}

impl<W: Write + Send + Sync> TrainingProgressLogger for PlainRenderer<W> {
    fn start(
        &mut self,
        _total_epochs: usize,
        starting_epoch: usize,
        _total_items: Option<usize>,
        _label: Option<&str>,
    ) {
        self.epoch = starting_epoch;
        self.started = Instant::now();
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.epoch = epoch + 1;
    }

    fn start_split(&mut self, split: &str, _total_items: usize) {
        self.training = split == "train";
    }

    fn update_split(&mut self, _items_processed: usize) {
        if !self.training {
            return;
        }
        self.step += 1;
        if self.step.is_multiple_of(self.options.every) || self.step == self.options.total_steps {
            self.line();
        }
    }

    fn end_split(&mut self) {
        if !self.training {
            let (step, loss) = (self.step, self.valid_loss);
            self.print(&format!(
                "step {step} | valid loss {loss:.4} | valid ppl {:.1}",
                loss.exp()
            ));
        }
    }

    fn end(&mut self) {}

    fn log_event_training(&mut self, _event: String) {}
}

impl<W: Write + Send + Sync> MetricsRendererEvaluation for PlainRenderer<W> {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
}

impl<W: Write + Send + Sync> EvaluationProgressLogger for PlainRenderer<W> {
    fn start_global_progress(&mut self, _total_tests: usize) {}

    fn start_test(&mut self, _name: &str, _total_items: usize) {}

    fn update_test_progress(&mut self, _items_processed: usize) {}

    fn end_test(&mut self) {}

    fn end_global_progress(&mut self) {}

    fn log_event_evaluation(&mut self, _event: String) {}
}

impl<W: Write + Send + Sync> MetricsRenderer for PlainRenderer<W> {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names
            .push((definition.metric_id, definition.name.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::train::metric::{Metric, SerializedEntry};

    use crate::learner::{ThroughputMetric, TokenLossMetric};

    fn id(name: &str) -> MetricId {
        MetricId::new(std::sync::Arc::new(name.into()))
    }

    fn state(name: &str, value: NumericEntry) -> MetricState {
        let entry = MetricEntry::new(id(name), SerializedEntry::new(String::new(), String::new()));
        MetricState::Numeric(entry, Some(value))
    }

    fn register<W: Write + Send + Sync>(renderer: &mut PlainRenderer<W>, metric: &impl Metric) {
        renderer.register_metric(MetricDefinition::new(id(&metric.name()), metric));
    }

    #[test]
    fn one_line_every_few_steps_and_one_an_evaluation() {
        let options = PlainOptions {
            start_step: 4,
            total_steps: 9,
            every: 2,
        };
        let mut renderer = PlainRenderer::with_output(options, Vec::new());
        register(&mut renderer, &TokenLossMetric::default());
        register(&mut renderer, &ThroughputMetric::default());
        renderer.start(2, 1, None, None);
        renderer.update_epoch(1);
        renderer.start_split("train", 5);
        for loss in [4.0, 2.0, 1.0] {
            renderer.update_train(state("Loss", NumericEntry::Value(loss)));
            renderer.update_train(state("Tokens/s", NumericEntry::Value(100.0)));
            renderer.update_split(0);
        }
        renderer.update_train(state("Loss", NumericEntry::Final(9.0)));
        renderer.end_split();
        renderer.start_split("valid", 3);
        renderer.update_valid(state("Loss", NumericEntry::Value(7.0)));
        renderer.update_split(1);
        renderer.update_valid(state("Loss", NumericEntry::Final(2.5)));
        renderer.end_split();

        let text = String::from_utf8(renderer.out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("step 6/9 | epoch 2 | loss 3.0000 | ppl 20.1 |"),
            "{text}"
        );
        assert!(lines[0].contains("| 100 tok/s | eta "), "{text}");
        assert_eq!(lines[1], "step 7 | valid loss 2.5000 | valid ppl 12.2");
    }

    #[test]
    fn more_steps_than_any_time_has_room_for_do_not_end_the_run() {
        let options = PlainOptions {
            start_step: 0,
            total_steps: usize::MAX,
            every: 1,
        };
        let mut renderer = PlainRenderer::with_output(options, Vec::new());
        renderer.start(1, 1, None, None);
        renderer.start_split("train", 1);
        renderer.started = Instant::now() - Duration::from_secs(60);
        renderer.update_split(1);
        let text = String::from_utf8(renderer.out).unwrap();
        assert!(text.contains("| eta never"), "{text}");
    }

    #[test]
    fn durations_are_short() {
        let text = |seconds| format_duration(Duration::from_secs(seconds));
        assert_eq!([text(9), text(432), text(3720)], ["9s", "7m12s", "1h02m"]);
    }
}
