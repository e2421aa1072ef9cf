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
use mamba_train::load::{LoadedRun, Weights, load_model};
use mamba_train::run::DEFAULT_RUNS;

/// Starts the device of that name, or the default one of this build.
fn start_device(name: Option<&str>) -> Result<Device> {
    let name = name.or_else(|| device::device_names().first().copied());
    match name {
        Some(name) => Ok(device::start(name)?),
        None => bail!("this build has no backend: build with one, as in `--features flex`"),
    }
}

/// Loads a model to the device and tells what the user should know of it.
fn open(run: &str, tokenizer: Option<&str>, device: &Device) -> Result<LoadedRun> {
    let run = load_model(&run_path(run), tokenizer, device)?;
    if let Some(notice) = &run.notice {
        eprintln!("{notice}");
    }
    if let Weights::Checkpoint(step) = run.weights {
        eprintln!("The run is not finished: using its checkpoint after step {step}");
    }
    Ok(run)
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
