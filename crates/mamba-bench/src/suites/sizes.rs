//! What the suites of whole models have in common.

use std::time::Instant;

use anyhow::{Result, ensure};
use mamba_core::Precision;

use crate::attempt::attempt;
use crate::engines::model::{LONG, Subject};
use crate::machine::{available_memory, gpu_total_memory};
use crate::problems::{Model, Size, flops};
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
    let mut lengths = match run.lengths.is_empty() {
        true => own.to_vec(),
        false => run.lengths.to_vec(),
    };
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// The user's batches, or those of the suite: for `--quick`, for a CPU, for a GPU.
pub(super) fn batches(run: &Run, quick: &[usize], cpu: &[usize], gpu: &[usize]) -> Vec<usize> {
    let own = match (run.options.quick, run.on_cpu()) {
        (true, _) => quick,
        (false, true) => cpu,
        (false, false) => gpu,
    };
    match run.batches.is_empty() {
        true => own.to_vec(),
        false => run.batches.to_vec(),
    }
}

/// How many seconds one call may take: more, if the user chose its length.
pub(super) fn patience(run: &Run) -> f64 {
    match (run.options.quick, run.lengths.is_empty()) {
        (true, true) => 2.0,
        (false, true) => 20.0,
        (_, false) => 30.0,
    }
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

/// Prompts are this much shorter by which the time of a long one is guessed.
pub(super) const SHORTER: usize = 16;

/// Operations a second on a prompt: the `rate` that is known, or, where a long one is the first, that on a shorter one. It
/// is preceded by a much shorter one, which is enough where the whole would take far longer than `patience`.
///
/// # Errors
///
/// If the device fails.
pub(super) fn rate_before(
    subject: &Subject,
    batch: usize,
    length: usize,
    rate: Option<f64>,
    patience: f64,
) -> Result<Option<f64>> {
    /// A device may be so much slower on a prompt that does not fill it.
    const FILLED: f64 = 8.0;
    let mut rate = rate;
    if rate.is_some() || batch * length <= LONG {
        return Ok(rate);
    }
    let work = |length| flops::forward(&subject.problem.config, batch, length, 1);
    for shorter in [SHORTER * SHORTER, SHORTER] {
        if worth_waiting(FILLED * patience, work(length), rate).is_err() {
            break;
        }
        let length = (length / shorter).max(1);
        let prompts = subject.tokens(batch, length);
        attempt(|| subject.prefill(&prompts))?;
        let start = Instant::now();
        attempt(|| subject.prefill(&prompts))?;
        rate = Some(work(length) / start.elapsed().as_secs_f64());
    }
    Ok(rate)
}

/// Refuses a prompt whose key-value cache alone is larger than the memory of the device.
pub(super) fn fits(run: &Run, model: &Model, batch: usize, length: usize) -> Result<()> {
    let size = match run.options.precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let cache = (batch * length * size * model.cached_values()) as u64;
    let memory = match run.on_cpu() {
        true => available_memory(),
        false => gpu_total_memory(run.name.split_once(':').map_or("0", |(_, index)| index)),
    };
    if let Some(memory) = memory {
        ensure!(
            cache < memory,
            "out of memory: its key-value cache takes {} MiB, the device has {} MiB",
            cache >> 20,
            memory >> 20
        );
    }
    Ok(())
}
