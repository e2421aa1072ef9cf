//! What a download tells while it runs: to a person, a bar; to the thread that waits, that it is alive.

use std::sync::mpsc::{SyncSender, TrySendError};

use hf_hub::api::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// News of a thread that downloads.
pub(super) enum Event<T> {
    Alive,
    Done(T),
}

/// Shows a download and tells the waiting thread that it goes on.
pub(super) struct Report {
    /// Whether someone still waits.
    tell: Box<dyn FnMut() -> bool + Send>,
    bar: ProgressBar,
}

impl Report {
    pub fn new<T: Send + 'static>(events: SyncSender<Event<T>>) -> Self {
        Self {
            // A full queue already says that bytes arrive.
            tell: Box::new(move || {
                !matches!(
                    events.try_send(Event::Alive),
                    Err(TrySendError::Disconnected(_))
                )
            }),
            bar: ProgressBar::hidden(),
        }
    }

    /// The bar, which is hidden until a download begins.
    pub fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }
}

impl Progress for Report {
    fn init(&mut self, size: usize, filename: &str) {
        if !(self.tell)() {
            return;
        }
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        self.bar.set_length(size as u64);
        self.bar.set_position(0);
        self.bar.set_message(filename.to_string());
    }

    fn update(&mut self, size: usize) {
        if (self.tell)() {
            self.bar.inc(size as u64);
        }
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}
