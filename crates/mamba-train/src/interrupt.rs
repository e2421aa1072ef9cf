//! Ctrl-C.

use anyhow::Result;
use burn::train::Interrupter;

/// Makes the first Ctrl-C (or request to terminate) stop `interrupter`, so that training saves a
/// checkpoint and returns, and the second end the process at once.
///
/// The dashboard takes over the keyboard: there, `q` stops the run instead. Elsewhere than on
/// Unix, Ctrl-C keeps ending the process, and a run continues from its last checkpoint.
///
/// # Errors
///
/// When the system does not accept the handler.
#[cfg(unix)]
pub fn stop_on_ctrl_c(interrupter: &Interrupter) -> Result<()> {
    use anyhow::Context;
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    /// Shells report a process ended by signal `n` as `128 + n`.
    const SIGNAL_STATUS: i32 = 128;

    let interrupter = interrupter.clone();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot watch for Ctrl-C")?;
    std::thread::Builder::new()
        .name("ctrl-c".into())
        .spawn(move || {
            for signal in signals.forever() {
                if interrupter.should_stop() {
                    std::process::exit(SIGNAL_STATUS + signal);
                }
                interrupter.stop(Some("Ctrl-C"));
            }
        })
        .context("cannot watch for Ctrl-C")?;
    Ok(())
}

/// Does nothing: Ctrl-C keeps ending the process, and a run continues from its last checkpoint.
///
/// # Errors
///
/// Never on this system.
#[cfg(not(unix))]
pub fn stop_on_ctrl_c(_interrupter: &Interrupter) -> Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn signal_stops_the_interrupter() {
        let interrupter = Interrupter::new();
        stop_on_ctrl_c(&interrupter).unwrap();
        signal_hook::low_level::raise(signal_hook::consts::SIGINT).unwrap();
        let patience = Instant::now() + Duration::from_secs(10);
        while !interrupter.should_stop() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(interrupter.get_message().as_deref(), Some("Ctrl-C"));
    }
}
