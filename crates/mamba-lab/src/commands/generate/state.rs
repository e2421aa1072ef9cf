//! Saved states, as options of a command.

use std::path::Path;

use anyhow::{Result, ensure};
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
    Ok(())
}

/// The state saved at `path`.
pub fn load(path: &Path, model: &LanguageModel, device: &Device) -> Result<Snapshot> {
    Ok(Snapshot::load(path, model, device)?)
}
