//! Ctrl-C, and a terminal that is closed.

use anyhow::Result;
use burn::train::Interrupter;

/// Makes the first Ctrl-C (or request to terminate) stop `interrupter`, so that training saves a
/// checkpoint and returns, and the second end the process at once. A terminal that is closed stops it, too, unless the
/// process was told to outlive it, as by `nohup`.
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
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    /// Shells report a process ended by signal `n` as `128 + n`.
    const SIGNAL_STATUS: i32 = 128;

    let interrupter = interrupter.clone();
    let watched: &[i32] = match outlives_its_terminal() {
        true => &[SIGINT, SIGTERM],
        false => &[SIGINT, SIGTERM, SIGHUP],
    };
    let mut signals = Signals::new(watched).context("cannot watch for Ctrl-C")?;
    std::thread::Builder::new()
        .name("ctrl-c".into())
        .spawn(move || {
            for signal in signals.forever() {
                // Of a terminal that is closed both the system and the shell may tell.
                if interrupter.should_stop() && signal != SIGHUP {
                    std::process::exit(SIGNAL_STATUS + signal);
                }
                interrupter.stop(Some("Ctrl-C"));
            }
        })
        .context("cannot watch for Ctrl-C")?;
    Ok(())
}

/// Whether the process was started with hangups ignored.
#[cfg(unix)]
fn outlives_its_terminal() -> bool {
    // SAFETY: all zeros is a value of this plain C struct, and a null pointer asks for the old action alone.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
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
