//! Progress on standard error, where a terminal can show it.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that names what goes on; invisible where standard error is no terminal.
pub fn bar(what: &'static str, total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {eta}")
        .expect("the template is a constant")
        .progress_chars("=> ");
    ProgressBar::new(total as u64)
        .with_style(style)
        .with_message(what)
}
