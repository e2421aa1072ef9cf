//! What the user is told beside the dashboard.

use indicatif::ProgressBar;
use mamba_train::compiling;
use mamba_train::run::RunFolder;
use mamba_train::train::TrainEvent;

use crate::progress;

/// Tells what goes on before and after the time of the dashboard.
pub struct Reporter {
    /// The device as the user should know it.
    device: String,
    folder: Option<RunFolder>,
    bar: Option<(&'static str, ProgressBar)>,
}

impl Reporter {
    /// A reporter of training on a device that is called so.
    pub fn new(device: String) -> Self {
        Self {
            device,
            folder: None,
            bar: None,
        }
    }

    /// The folder of the run, once it has one.
    pub fn folder(&self) -> Option<&RunFolder> {
        self.folder.as_ref()
    }

    /// Tells of an event.
    pub fn report(&mut self, event: TrainEvent) {
        match event {
            TrainEvent::Notice(line) => compiling::beside(|| eprintln!("{line}")),
            TrainEvent::Started {
                folder,
                data,
                parameters,
                step,
                total_steps,
                train_tokens,
            } => compiling::beside(|| {
                self.folder = Some(folder.clone());
                eprintln!("{data}: {train_tokens} training tokens");
                if let Ok(Some(from)) = folder.experiment().map(|it| it.from) {
                    eprintln!("Beginning with {}", from.display());
                }
                eprintln!("Model of {parameters} parameters");
                eprintln!("Training on {}", self.device);
                match step {
                    0 => eprintln!(
                        "Training {total_steps} steps in {}",
                        folder.path().display()
                    ),
                    step => eprintln!(
                        "Continuing {} after step {step} of {total_steps}",
                        folder.path().display()
                    ),
                }
            }),
            TrainEvent::Evaluating { split, done, total } => {
                if self
                    .bar
                    .as_ref()
                    .is_none_or(|(current, _)| *current != split)
                {
                    self.finish();
                    self.bar = Some((split, progress::bar(split, total)));
                }
                if let Some((_, bar)) = &self.bar {
                    bar.set_position(done as u64);
                }
            }
        }
    }

    /// Takes the bar away, if there is one.
    pub fn finish(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
