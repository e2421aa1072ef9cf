//! Ctrl-C.

use std::process;

use anyhow::{Context, Result};
use burn::train::Interrupter;

/// The exit status of a process ended by Ctrl-C, as shells count it.
const INTERRUPTED: i32 = 130;

/// Makes the first Ctrl-C (or request to terminate) stop `interrupter`, so that training saves a
/// checkpoint and returns, and the second end the process at once.
///
/// The dashboard takes over the keyboard: there, `q` stops the run instead.
///
/// # Errors
///
/// When the process has a handler already.
pub fn stop_on_ctrl_c(interrupter: &Interrupter) -> Result<()> {
    let interrupter = interrupter.clone();
    ctrlc::set_handler(move || {
        if interrupter.should_stop() {
            process::exit(INTERRUPTED);
        }
        interrupter.stop(Some("Ctrl-C"));
    })
    .context("cannot watch for Ctrl-C")
}
