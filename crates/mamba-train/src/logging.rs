//! Where log records go: compilations of kernels are counted, the rest is written to the run's log file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use burn::train::ApplicationLoggerInstaller;
use log::{Level, LevelFilter, Log, Metadata, Record};
use mamba_core::compilation::LOG_TARGET;

static LOGGER: Logger = Logger {
    compiled: AtomicUsize::new(0),
    file: Mutex::new(None),
};

/// Takes the log records of the process; for a program, before it starts its first device.
///
/// Does nothing where the process has a logger: kernels are then not counted.
pub fn install() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Kernels compiled since [`install`]; those read from a cache are none of them.
pub fn kernels_compiled() -> usize {
    LOGGER.compiled.load(Ordering::Relaxed)
}

struct Logger {
    compiled: AtomicUsize,
    file: Mutex<Option<File>>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // wgpu tells too much at this level.
        metadata.level() <= Level::Info
            && !(metadata.level() == Level::Info && metadata.target().starts_with("wgpu"))
    }

    fn log(&self, record: &Record<'_>) {
        if record.target() == LOG_TARGET {
            self.compiled.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut *file {
            let time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            // There is nobody to tell that a message was lost.
            let _ = writeln!(
                file,
                "{:.3} {} {}: {}",
                time.as_secs_f64(),
                record.level(),
                record.target(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

/// Sends the records to a file from here on.
pub(crate) struct LogFile(pub(crate) PathBuf);

impl ApplicationLoggerInstaller for LogFile {
    fn install(&self) -> Result<(), String> {
        install();
        let file = OpenOptions::new().append(true).create(true).open(&self.0);
        let file = file.map_err(|error| format!("{}: {error}", self.0.display()))?;
        *LOGGER.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilations_are_counted_and_the_rest_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("training.log");
        LogFile(path.clone()).install().unwrap();
        let before = kernels_compiled();
        log::info!(target: LOG_TARGET, "[Compiling kernel] one");
        log::info!(target: LOG_TARGET, "[Compiling kernel] two");
        log::info!(target: "wgpu_core", "chatter");
        log::warn!(target: "cubecl_cuda", "a kernel failed");
        assert_eq!(kernels_compiled() - before, 2);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("WARN cubecl_cuda: a kernel failed"), "{text}");
        assert!(
            !text.contains("chatter") && !text.contains("[Compiling"),
            "{text}"
        );
    }
}
