//! The line on standard error that tells that kernels are being compiled.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mamba_core::compilation;

use crate::logging::kernels_compiled;

/// How often the line is brought up to date.
const TICK: Duration = Duration::from_millis(250);
/// When a line is first written where it cannot be replaced; from there the pauses double, up to a minute.
const FIRST_PLAIN_LINE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// One line a process, as it has one standard error.
static SHOWN: Mutex<Option<Shown>> = Mutex::new(None);

struct Shown {
    bar: ProgressBar,
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// Shows how many kernels were compiled, from the first one until [`hide`]: in place on a terminal, a line now and
/// then elsewhere. Where nothing is compiled, nothing is shown.
///
/// It counts what [`logging`](crate::logging) has seen, and the seconds since this call.
pub fn show() {
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if shown.is_some() {
        return;
    }
    let style = ProgressStyle::with_template("{msg}").expect("the template is a constant");
    let bar = ProgressBar::new_spinner().with_style(style);
    let (stop, stopped) = mpsc::channel();
    let on_thread = bar.clone();
    let watch = move || {
        let (before, started) = (kernels_compiled(), Instant::now());
        let mut next = FIRST_PLAIN_LINE;
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
            let (count, elapsed) = (kernels_compiled(), started.elapsed());
            if count == before {
                continue;
            }
            let line = line(count, elapsed, compilation::kept_in());
            if !on_thread.is_hidden() {
                on_thread.set_message(line);
                on_thread.tick();
            } else if elapsed >= next {
                eprintln!("{line}");
                next = elapsed + elapsed.min(LONGEST_PAUSE);
            }
        }
    };
    // Training goes on without a line, too.
    if let Ok(thread) = thread::Builder::new().name("compiling".into()).spawn(watch) {
        *shown = Some(Shown { bar, stop, thread });
    }
}

/// Takes the line away, if there is one. What was compiled is good for the next start then.
pub fn hide() {
    let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Shown { bar, stop, thread }) = shown {
        drop(stop);
        // It does not panic, and if it did, there would be no line to take away.
        let _ = thread.join();
        bar.finish_and_clear();
        compilation::seal();
    }
}

/// Runs `print`, which writes to the terminal, beside the line if there is one.
pub fn beside<T>(print: impl FnOnce() -> T) -> T {
    let bar = {
        let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
        shown.as_ref().map(|shown| shown.bar.clone())
    };
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

fn line(count: usize, elapsed: Duration, kept: Option<&Path>) -> String {
    let kept = kept.map_or(String::new(), |path| {
        format!(" (kept in {} for the next start)", path.display())
    });
    format!(
        "starting: {count} kernels compiled, {} s{kept}",
        elapsed.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_where_kernels_are_kept_if_they_are() {
        let elapsed = Duration::from_millis(21_900);
        assert_eq!(
            line(37, elapsed, None),
            "starting: 37 kernels compiled, 21 s"
        );
        assert_eq!(
            line(37, elapsed, Some(Path::new("/c/kernels/1.db"))),
            "starting: 37 kernels compiled, 21 s (kept in /c/kernels/1.db for the next start)"
        );
    }

    #[test]
    fn what_is_printed_beside_the_line_is_printed_without_it_too() {
        hide();
        assert_eq!(beside(|| 1), 1);
        show();
        show();
        assert_eq!(beside(|| 2), 2);
        hide();
        assert!(SHOWN.lock().unwrap().is_none());
    }
}
