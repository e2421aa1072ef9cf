//! Devices that fail while they are in use: one line instead of a panic's message and backtrace.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use mamba_core::failure::DeviceFailure;

/// The first failure of a device that a panic told of, on whatever thread.
static FIRST: Mutex<Option<DeviceFailure>> = Mutex::new(None);

/// Keeps panics that tell of a failing device from printing, for [`guard`] to tell of them, and those that follow:
/// threads that waited for the device. They go to the log. All other panics print as ever.
pub fn install_hook() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        log::error!("{info}");
        let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = info.payload_as_str().and_then(DeviceFailure::recognise);
        }
        if first.is_none() {
            drop(first);
            hook(info);
        }
    }));
}

/// A failure of a device, and what to do about it.
#[derive(Debug)]
pub struct Failed {
    failure: DeviceFailure,
    advice: &'static str,
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.failure {
            DeviceFailure::OutOfMemory { .. } | DeviceFailure::TooLarge { .. } => {
                write!(f, "{}: {}", self.failure, self.advice)
            }
            _ => write!(f, "{}", self.failure),
        }
    }
}

impl Error for Failed {}

impl Failed {
    /// Whether `error` tells of a failed device.
    pub fn is_in(error: &anyhow::Error) -> bool {
        error.chain().any(|cause| cause.is::<Self>())
    }
}

/// Runs `work`, whose errors and panics become a [`Failed`] where they tell of a failing device; `advice` is for one
/// that has not the memory.
pub fn guard<T>(advice: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let failed = |failure| Failed { failure, advice }.into();
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Err(error)) if !Failed::is_in(&error) => {
            let failure = DeviceFailure::recognise(&format!("{error:#}"));
            Err(failure.map_or(error, failed))
        }
        Ok(outcome) => outcome,
        Err(payload) => {
            let first = FIRST.lock().unwrap_or_else(PoisonError::into_inner).take();
            match first {
                Some(failure) => Err(failed(failure)),
                None => panic::resume_unwind(payload),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn errors_and_panics_of_a_device_become_one_line() {
        let advice = "take less";
        let message = "the device failed: An IO error happened\nCaused by:\n  out of device memory allocating 1048576 \
                       bytes\nNo backtrace available";
        let error = guard::<()>(advice, || Err(anyhow!(message))).unwrap_err();
        let told = "the device is out of memory (1 MiB more were asked for): take less";
        assert_eq!(format!("{error:#}"), told);

        install_hook();
        let error = guard::<()>(advice, || panic!("{message}")).unwrap_err();
        assert_eq!(format!("{error:#}"), told);

        let error = guard::<()>("not this", || Err(error.context("stopped"))).unwrap_err();
        assert_eq!(format!("{error:#}"), format!("stopped: {told}"));
    }

    #[test]
    fn other_errors_stay() {
        let error = guard::<()>("", || Err(anyhow!("no such file"))).unwrap_err();
        assert_eq!(format!("{error:#}"), "no such file");
    }
}
