//! What the suites of whole models have in common.

use anyhow::{Result, ensure};

use crate::problems::{Model, Size};
use crate::run::Run;

/// The models of a run: the official sizes, or small ones for `--quick`. `longest` is the longest sequence.
pub(super) fn models(run: &Run, longest: usize) -> Result<Vec<Model>> {
    let size = if run.options.quick {
        Size::Small
    } else {
        Size::Official
    };
    run.filtered(Model::all(size, longest), |model| model.name)
}

/// The user's lengths, or those of the suite: for `--quick`, for a CPU, for a GPU.
pub(super) fn lengths(run: &Run, quick: &[usize], cpu: &[usize], gpu: &[usize]) -> Vec<usize> {
    let own = match (run.options.quick, run.on_cpu()) {
        (true, _) => quick,
        (false, true) => cpu,
        (false, false) => gpu,
    };
    let mut lengths = match run.options.lengths.is_empty() {
        true => own.to_vec(),
        false => run.options.lengths.clone(),
    };
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// How many seconds one call may take.
pub(super) fn patience(run: &Run) -> f64 {
    if run.options.quick { 2.0 } else { 20.0 }
}

/// Refuses what would take longer than `patience` at a rate in operations a second, if there is one.
pub(super) fn worth_waiting(patience: f64, flops: f64, rate: Option<f64>) -> Result<()> {
    let seconds = rate.map_or(0.0, |rate| flops / rate);
    ensure!(
        seconds < patience,
        "one call would take {seconds:.0} s, more than the {patience} s that it may take"
    );
    Ok(())
}
