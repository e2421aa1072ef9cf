//! Saved states, as options of a command.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use mamba_core::{LanguageModel, Snapshot};

/// Checks that a state can be saved to `path` before anything is computed that would be lost.
pub fn check_writable(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    ensure!(
        folder.is_dir(),
        "cannot save a state to {}: there is no folder {}",
        path.display(),
        folder.display()
    );
    ensure!(
        !path.is_dir(),
        "cannot save a state to {}: it is a folder",
        path.display()
    );
    // As the state itself is: whole under another name first.
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = Path::new(&part);
    File::create(part)
        .and_then(|_| fs::remove_file(part))
        .with_context(|| format!("cannot save a state to {}", path.display()))
}

/// The state saved at `path`.
pub fn load(path: &Path, model: &LanguageModel, device: &Device) -> Result<Snapshot> {
    ensure!(
        path.exists(),
        "--state-in: there is no file {}",
        path.display()
    );
    Ok(Snapshot::load(path, model, device)?)
}
