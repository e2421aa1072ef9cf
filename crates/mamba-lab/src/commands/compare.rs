//! `mamba-lab compare`

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;
use mamba_train::curve::write_curves;
use mamba_train::history::read_history;
use mamba_train::run::RunFolder;
use mamba_train::summary::{Scores, Summary};

use super::run_path;

/// Show finished runs side by side, and draw their loss curves on one picture.
#[derive(Args)]
pub struct Arguments {
    /// Runs: their folders, or their names below artifacts/runs.
    #[arg(required = true)]
    runs: Vec<String>,
    /// The picture.
    #[arg(long, short, value_name = "FILE.svg")]
    output: Option<PathBuf>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut out = stdout().lock();
    writeln!(
        out,
        "{:<24}{:>12}{:>8}{:>9}{:>9}{:>9}{:>10}{:>10}",
        "run", "parameters", "steps", "train", "valid", "test", "test ppl", "tokens/s"
    )?;
    let mut curves = Vec::new();
    let mut corpora = Vec::new();
    for run in &arguments.runs {
        let folder = RunFolder::open(&run_path(run))?;
        ensure!(
            folder.is_finished(),
            "{} is not finished: continue it with mamba-lab train --name {} --resume",
            folder.path().display(),
            folder.name()
        );
        let summary = Summary::read(&folder.summary())?;
        let loss = |scores: &Option<Scores>| match scores {
            Some(scores) => format!("{:.4}", scores.loss),
            None => "-".into(),
        };
        let perplexity = match &summary.test {
            Some(scores) => format!("{:.1}", scores.perplexity),
            None => "-".into(),
        };
        writeln!(
            out,
            "{:<24}{:>12}{:>8}{:>9}{:>9}{:>9}{:>10}{:>10.0}",
            folder.name(),
            summary.parameters,
            summary.steps,
            loss(&summary.train),
            loss(&summary.valid),
            loss(&summary.test),
            perplexity,
            summary.tokens_per_second
        )?;
        curves.push((folder.name(), read_history(&folder.metrics())?));
        corpora.push(summary.corpus);
    }
    corpora.sort();
    corpora.dedup();
    if corpora.len() > 1 {
        writeln!(
            out,
            "Not on one corpus ({}): losses cannot be compared",
            corpora.join(", ")
        )?;
    }
    if let Some(path) = arguments.output {
        write_curves(&path, &corpora.join(", "), &curves)?;
        writeln!(out, "Curves in {}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
