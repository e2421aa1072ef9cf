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

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use mamba_core::device;
use mamba_train::load::{LoadedRun, Weights, is_model, load_model};
use mamba_train::run::DEFAULT_RUNS;

/// Starts the device of that name, or the default one of this build.
fn start_device(name: Option<&str>) -> Result<Device> {
    Ok(start_named(name)?.1)
}

/// [`start_device`], with the device's name.
fn start_named(name: Option<&str>) -> Result<(String, Device)> {
    let Some(name) = name else {
        let Some(default) = device::start_default() else {
            bail!("this build has no backend: build with one, as in `--features flex`")
        };
        let default = default.context("give a device that works by --device")?;
        if let Some(notice) = default.notice {
            eprintln!("{notice}");
        }
        return Ok((default.name.into(), default.device));
    };
    let device = device::start(name)?;
    let software = device::adapter(&device).filter(|it| device::is_software(it));
    if let (Some(adapter), Some(cpu)) = (software, device::cpu_name()) {
        eprintln!("{name} is a software adapter ({adapter}): --device {cpu} is faster here");
    }
    Ok((name.into(), device))
}

/// `text` as a word for a shell.
fn quoted(text: &str) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || "-_./:+=@,".contains(it);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Loads a model to the device and tells what the user should know of it.
fn open(run: &str, tokenizer: Option<&str>, device: &Device) -> Result<LoadedRun> {
    let run = load_model(&run_path(run), tokenizer, device)?;
    if let Some(notice) = &run.notice {
        eprintln!("{notice}");
    }
    if let (Weights::Checkpoint(step), None) = (run.weights, &run.notice) {
        eprintln!("The run is not finished: using its checkpoint after step {step}");
    }
    Ok(run)
}

/// The folder of a run that is given by its path or by its name below the default folder. A path that holds no model
/// does not stand in the way of a run of that name.
fn run_path(run: &str) -> PathBuf {
    let path = Path::new(run);
    let named = Path::new(DEFAULT_RUNS).join(run);
    if !is_model(path) && (is_model(&named) || !path.exists() && named.exists()) {
        named
    } else {
        path.to_path_buf()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell_where_they_need_it() {
        assert_eq!(quoted("tiny-2"), "tiny-2");
        assert_eq!(quoted("my run"), "'my run'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
