//! `mamba-lab compare`

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use mamba_train::curve::write_curves;
use mamba_train::evaluate::show_perplexity;
use mamba_train::experiment::DataConfig;
use mamba_train::history::read_history;
use mamba_train::run::RunFolder;
use mamba_train::summary::{Scores, Summary};

use super::run_path;
use crate::output::stdout;

/// Show finished runs side by side, and draw their loss curves on one picture.
#[derive(Args)]
pub struct Arguments {
    /// Runs: their folders, or their names below artifacts/runs.
    #[arg(required = true)]
    runs: Vec<String>,
    /// The picture, a name that ends in .svg in a folder that is there. Only a picture of that form is overwritten.
    #[arg(long, short, value_name = "FILE.svg")]
    output: Option<PathBuf>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(path) = &arguments.output {
        check_picture(path)?;
    }
    // Nothing is shown of runs of which one cannot be read.
    let mut table = Vec::new();
    writeln!(
        table,
        "{:<24}{:>12}{:>8}{:>9}{:>9}{:>9}{:>10}{:>10}",
        "run", "parameters", "steps", "train", "valid", "test", "test ppl", "tokens/s"
    )?;
    let mut curves = Vec::new();
    let mut corpora = Vec::new();
    let mut data = Vec::new();
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
            Some(scores) => show_perplexity(scores.perplexity, 1),
            None => "-".into(),
        };
        writeln!(
            table,
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
        data.push(folder.experiment()?.data);
    }
    let mut out = stdout();
    out.write_all(&table)?;
    corpora.sort();
    corpora.dedup();
    if corpora.len() > 1 {
        writeln!(
            out,
            "Not on one corpus ({}): losses cannot be compared",
            corpora.join(", ")
        )?;
    }
    // Runs of before did not note these.
    let differ = |hash: fn(&DataConfig) -> &Option<String>| {
        let mut known = data.iter().filter_map(|it| hash(it).as_deref());
        let first = known.next();
        known.any(|it| Some(it) != first)
    };
    if differ(|it| &it.tokenizer_sha256) {
        writeln!(out, "Not with one tokenizer: losses cannot be compared")?;
    } else if corpora.len() == 1 && differ(|it| &it.text_sha256) {
        writeln!(out, "Not on one text: losses cannot be compared")?;
    }
    if let Some(path) = arguments.output {
        write_curves(&path, &corpora.join(", "), &curves)?;
        writeln!(out, "Curves in {}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a place where the picture cannot go, or would take that of something else.
fn check_picture(path: &Path) -> Result<()> {
    ensure!(
        path.extension()
            .is_some_and(|it| it.eq_ignore_ascii_case("svg")),
        "--output {}: the picture is an SVG; give a name that ends in .svg",
        path.display()
    );
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    ensure!(
        folder.is_dir(),
        "--output {}: there is no folder {}",
        path.display(),
        folder.display()
    );
    if path.exists() {
        let mut begin = Vec::new();
        let read = File::open(path).and_then(|file| file.take(4).read_to_end(&mut begin));
        read.with_context(|| format!("--output: cannot read {}", path.display()))?;
        ensure!(
            begin == b"<svg",
            "--output {}: the file that is there is none of these pictures; give another name",
            path.display()
        );
    }
    Ok(())
}
