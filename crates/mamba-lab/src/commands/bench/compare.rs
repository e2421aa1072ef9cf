use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use mamba_bench::results::{Comparison, Results};

/// Compare two runs of a suite: relative speed with its error.
#[derive(Args)]
pub struct Compare {
    /// The run before: its results.json or its folder.
    before: PathBuf,
    /// The run after.
    after: PathBuf,
    /// Fail if anything got slower by more than this, such as 10%, and by more than twice its error, which is
    /// unknown below three rounds.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, allow_negative_numbers = true)]
    fail_above: Option<f64>,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim().parse::<f64>().ok();
    let share = number
        .filter(|number| number.is_finite() && *number >= 0.0)
        .map(|number| number / 100.0);
    share.ok_or_else(|| "expected a percentage such as 10%".into())
}

pub fn run(arguments: &Compare) -> Result<ExitCode> {
    let [before, after] = [&arguments.before, &arguments.after].map(|path| Results::read(path));
    let comparison = Comparison::new(&before?, &after?);
    write!(stdout().lock(), "{}", comparison.table())?;
    if comparison.changes.is_empty() {
        bail!("the two runs have nothing in common to compare");
    }
    let share = arguments.fail_above.unwrap_or(f64::INFINITY);
    let failed: Vec<_> = comparison
        .changes
        .iter()
        .filter(|change| change.fails(share))
        .collect();
    if let Some(worst) = failed
        .iter()
        .max_by(|a, b| a.slower_by().total_cmp(&b.slower_by()))
    {
        bail!(
            "{} of {} got slower by more than {:.0} %, {} at length {} by {:.0} %",
            failed.len(),
            comparison.changes.len(),
            100.0 * share,
            worst.key.problem,
            worst.key.length,
            100.0 * worst.slower_by()
        );
    }
    Ok(ExitCode::SUCCESS)
}
