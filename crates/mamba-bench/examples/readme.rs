//! Writes the README's measured table and its figure anew, from `artifacts/bench`; run in the root of the repository.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    for (path, text) in mamba_bench::readme::files(Path::new("."))? {
        fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
        println!("{path}");
    }
    Ok(())
}
