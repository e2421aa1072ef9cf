use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use mamba_bench::progress::{Progress, Watch};
use mamba_bench::results::{Entry, line, table};
use mamba_bench::session::Finished;

/// Entries as lines, and how far a suite is: a bar where standard error is a terminal, else lines there. In the end its table.
#[derive(Default)]
pub struct Screen {
    bar: Option<ProgressBar>,
    /// The name of the suite that runs, where there are several.
    among: Option<String>,
}

/// Steps of the bar.
const STEPS: f64 = 1000.0;

impl Screen {
    /// A reader who has had enough does not end the measurement: the folder gets it all.
    fn print(&self, text: &str) {
        let print = || drop(writeln!(stdout(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Watch for Screen {
    fn begin(&mut self, suite: &str, [number, all]: [usize; 2]) {
        self.among = (all > 1).then(|| suite.to_owned());
        if self.among.is_some() {
            self.print(&format!("\n== {suite} ({number} of {all})"));
        }
        let style = ProgressStyle::with_template("[{bar:30}] {percent}% {msg}")
            .expect("the template is a constant")
            .progress_chars("=> ");
        let bar = || ProgressBar::new(STEPS as u64).with_style(style);
        self.bar = stderr().is_terminal().then(bar);
    }

    fn entry(&mut self, entry: &Entry) {
        if let Some(text) = line(entry) {
            self.print(&text);
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let left = progress.left.map_or("?".into(), minutes);
        let what = match &self.among {
            Some(suite) => format!("{suite}: {}", progress.what),
            None => progress.what.clone(),
        };
        match &self.bar {
            Some(bar) => {
                bar.set_position((STEPS * progress.share) as u64);
                bar.set_message(format!("{left} left, {what}"));
            }
            None => {
                let percent = 100.0 * progress.share;
                let _ = writeln!(stderr(), "[{percent:3.0}%, {left} left] {what}");
            }
        }
    }

    fn end(&mut self, suite: &str, outcome: &Result<Finished>) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        match outcome {
            Ok(Finished { folder, .. }) => {
                self.print(&format!("\n{}", table(folder.results())));
                self.print(&format!("Everything is in {}", folder.path().display()));
            }
            // That of a single suite is what the program ends with.
            Err(error) if self.among.is_some() => {
                let _ = writeln!(stderr(), "{suite} failed: {error:#}");
            }
            Err(_) => {}
        }
    }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{:02}s", seconds % 60),
    }
}
