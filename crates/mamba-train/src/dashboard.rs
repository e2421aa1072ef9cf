//! A dashboard that leaves the terminal to the compilation of kernels first.

use std::error::Error;

use burn::train::LearnerSummary;
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};

use crate::compiling;

type Renderer = Box<dyn MetricsRenderer>;
type Event = Box<dyn FnOnce(&mut Renderer) + Send + Sync>;

/// A renderer that is opened with the first result of a training step, and then told what came before.
///
/// Until then the line of [`compiling`] has the terminal.
pub(crate) struct Late {
    state: State,
}

enum State {
    Waiting {
        open: Box<dyn FnOnce() -> Renderer + Send + Sync>,
        events: Vec<Event>,
    },
    Opening,
    Open(Renderer),
}

impl Late {
    pub(crate) fn new(open: impl FnOnce() -> Renderer + Send + Sync + 'static) -> Self {
        Self {
            state: State::Waiting {
                open: Box::new(open),
                events: Vec::new(),
            },
        }
    }

    fn tell(&mut self, event: impl FnOnce(&mut Renderer) + Send + Sync + 'static) {
        match &mut self.state {
            State::Open(renderer) => event(renderer),
            State::Waiting { events, .. } => events.push(Box::new(event)),
            State::Opening => {}
        }
    }

    fn open(&mut self) -> Option<&mut Renderer> {
        match std::mem::replace(&mut self.state, State::Opening) {
            State::Waiting { open, events } => {
                compiling::hide();
                let mut renderer = open();
                events.into_iter().for_each(|event| event(&mut renderer));
                self.state = State::Open(renderer);
            }
            state => self.state = state,
        }
        self.opened()
    }

    fn opened(&mut self) -> Option<&mut Renderer> {
        match &mut self.state {
            State::Open(renderer) => Some(renderer),
            State::Waiting { .. } | State::Opening => None,
        }
    }
}

impl MetricsRendererTraining for Late {
    fn update_train(&mut self, state: MetricState) {
        if let Some(renderer) = self.open() {
            renderer.update_train(state);
        }
    }

    fn update_valid(&mut self, state: MetricState) {
        self.tell(|renderer| renderer.update_valid(state));
    }

    fn on_train_end(&mut self, summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        match self.opened() {
            Some(renderer) => renderer.on_train_end(summary),
            None => Ok(()),
        }
    }
}

impl TrainingProgressLogger for Late {
    fn start(
        &mut self,
        total_epochs: usize,
        starting_epoch: usize,
        total_items: Option<usize>,
        label: Option<&str>,
    ) {
        let label = label.map(String::from);
        self.tell(move |renderer| {
            renderer.start(total_epochs, starting_epoch, total_items, label.as_deref());
        });
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.tell(move |renderer| renderer.update_epoch(epoch));
    }

    fn start_split(&mut self, split: &str, total_items: usize) {
        let split = split.to_string();
        self.tell(move |renderer| renderer.start_split(&split, total_items));
    }

    fn update_split(&mut self, items_processed: usize) {
        self.tell(move |renderer| renderer.update_split(items_processed));
    }

    fn end_split(&mut self) {
        self.tell(|renderer| renderer.end_split());
    }

    fn end(&mut self) {
        self.tell(|renderer| renderer.end());
    }

    fn log_event_training(&mut self, event: String) {
        self.tell(|renderer| renderer.log_event_training(event));
    }
}

impl MetricsRendererEvaluation for Late {
    fn update_test(&mut self, name: EvaluationName, state: MetricState) {
        self.tell(|renderer| renderer.update_test(name, state));
    }

    fn on_test_end(&mut self, summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        match self.opened() {
            Some(renderer) => renderer.on_test_end(summary),
            None => Ok(()),
        }
    }
}

impl EvaluationProgressLogger for Late {
    fn start_global_progress(&mut self, total_tests: usize) {
        self.tell(move |renderer| renderer.start_global_progress(total_tests));
    }

    fn start_test(&mut self, name: &str, total_items: usize) {
        let name = name.to_string();
        self.tell(move |renderer| renderer.start_test(&name, total_items));
    }

    fn update_test_progress(&mut self, items_processed: usize) {
        self.tell(move |renderer| renderer.update_test_progress(items_processed));
    }

    fn end_test(&mut self) {
        self.tell(|renderer| renderer.end_test());
    }

    fn end_global_progress(&mut self) {
        self.tell(|renderer| renderer.end_global_progress());
    }

    fn log_event_evaluation(&mut self, event: String) {
        self.tell(|renderer| renderer.log_event_evaluation(event));
    }
}

impl MetricsRenderer for Late {
    fn manual_close(&mut self) {
        if let Some(renderer) = self.opened() {
            renderer.manual_close();
        }
    }

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.tell(|renderer| renderer.register_metric(definition));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use burn::train::metric::{MetricEntry, MetricId, SerializedEntry};

    use crate::renderer::{PlainOptions, PlainRenderer};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_came_before_the_first_training_step_is_told_then() {
        let out = Shared::default();
        let shared = out.clone();
        let mut late = Late::new(move || {
            let options = PlainOptions {
                start_step: 3,
                total_steps: 9,
                every: 1,
            };
            Box::new(PlainRenderer::with_output(options, shared))
        });
        late.start_split("valid", 1);
        late.end_split();
        late.start_split("train", 5);
        assert!(out.0.lock().unwrap().is_empty());

        let id = MetricId::new(Arc::new("Loss".into()));
        let entry = MetricEntry::new(id, SerializedEntry::new(String::new(), String::new()));
        late.update_train(MetricState::Generic(entry));
        late.update_split(1);
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("step 3 | valid loss"), "{text}");
        assert!(lines[1].starts_with("step 4/9"), "{text}");
    }
}
