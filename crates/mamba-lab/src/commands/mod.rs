//! One file a subcommand: its arguments, and a call into the library that does the work.

pub mod bench;
pub mod chat;
pub mod compare;
pub mod convert;
pub mod evaluate;
pub mod generate;
pub mod info;
pub mod train;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use burn::tensor::Device;
use mamba_core::device;
use mamba_train::run::DEFAULT_RUNS;

/// Starts the device of that name, or the default one of this build.
fn start_device(name: Option<&str>) -> Result<Device> {
    let name = name.or_else(|| device::device_names().first().copied());
    match name {
        Some(name) => Ok(device::start(name)?),
        None => bail!("this build has no backend: build with one, as in `--features flex`"),
    }
}

/// The folder of a run that is given by its path or by its name below the default folder.
fn run_path(run: &str) -> PathBuf {
    let path = Path::new(run);
    let named = Path::new(DEFAULT_RUNS).join(run);
    if !path.exists() && named.exists() {
        named
    } else {
        path.to_path_buf()
    }
}
