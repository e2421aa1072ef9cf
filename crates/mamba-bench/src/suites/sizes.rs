//! What the suites of whole models have in common.

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use mamba_core::{Precision, device};

use crate::attempt::attempt;
use crate::engines::model::{LONG, Subject};
use crate::machine::{available_memory, gpu_total_memory};
use crate::problems::{Family, Model, Op, Size, flops};
use crate::results::is_cpu;
use crate::run::Run;

/// The models of a run: the official sizes, or small ones for `--quick`. They learn as many positions as the [`longest`] of
/// `lengths` and `more` need.
pub(super) fn models(run: &Run, lengths: &[usize], more: usize) -> Result<Vec<Model>> {
    let size = size(run.options.quick);
    let positions = longest(run, size, lengths, more);
    run.filtered(Model::all(size, positions), |model| model.name)
}

/// The names of [`models`].
pub(super) fn names(quick: bool) -> Vec<&'static str> {
    let models = Model::all(size(quick), 1).into_iter();
    models.map(|model| model.name).collect()
}

/// The names of the tutorial's models.
pub(super) fn tutorial(_: bool) -> Vec<&'static str> {
    let models = Model::all(Size::Tutorial, 1).into_iter();
    models.map(|model| model.name).collect()
}

fn size(quick: bool) -> Size {
    if quick { Size::Small } else { Size::Official }
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

/// Bytes of a token, at most, on the host and on a device.
const TOKEN: f64 = 16.0;

/// The longest of `lengths`, with `more` positions behind it, of which half of the device's memory holds what a model of that size
/// learns of positions: there is one such table for all lengths, so that a longer one would leave no room for the others.
pub(super) fn longest(run: &Run, size: Size, lengths: &[usize], more: usize) -> usize {
    let memory = memory_of(run.name, run.device).unwrap_or(f64::INFINITY);
    let model = Model::new(Family::Gpt2, size, 1);
    let all = lengths.iter().map(|length| length.saturating_add(more));
    let fit = all.filter(|&length| 2.0 * positions(&model, length) < memory);
    fit.max().unwrap_or(1)
}

/// Refuses a prompt that would take more than all memory: by its tokens, the positions that a model learns, or its key-value
/// cache. What else it takes shows when it is read.
pub(super) fn fits(run: &Run, model: &Model, batch: usize, length: usize) -> Result<()> {
    fits_on(
        run.name,
        run.device,
        run.options.precision,
        model,
        [batch, length],
    )
}

/// The same on any device.
pub(super) fn fits_on(
    name: &str,
    device: &Device,
    precision: Precision,
    model: &Model,
    [batch, length]: [usize; 2],
) -> Result<()> {
    let size = match precision {
        Precision::F32 => 4.0,
        Precision::Bf16 => 2.0,
    };
    let tokens = batch as f64 * length as f64;
    room("tokens", TOKEN * tokens, "machine", host_memory())?;
    let memory = memory_of(name, device);
    room(
        "learned positions",
        positions(model, length),
        "device",
        memory,
    )?;
    let made = model.config.max_positions;
    ensure!(
        made == 0 || length <= made,
        "out of memory: the device has room for {made} learned positions"
    );
    let cache = tokens * size * model.cached_values() as f64;
    room("key-value cache", cache, "device", memory)
}

/// Refuses an operation whose inputs and outputs would take more than all memory.
pub(super) fn op_fits(run: &Run, op: &Op) -> Result<()> {
    let bytes = op.bytes(size_of::<f32>());
    room("inputs and outputs", bytes, "machine", host_memory())?;
    room(
        "inputs and outputs",
        bytes,
        "device",
        memory_of(run.name, run.device),
    )
}

fn room(what: &str, bytes: f64, whose: &str, memory: Option<f64>) -> Result<()> {
    const MIB: f64 = (1 << 20) as f64;
    let memory = memory.unwrap_or(f64::INFINITY);
    ensure!(
        bytes < memory,
        "out of memory: its {what} take {:.0} MiB, the {whose} has {:.0} MiB",
        bytes / MIB,
        memory / MIB
    );
    Ok(())
}

/// Bytes of the positions that a model learns, if it does.
fn positions(model: &Model, length: usize) -> f64 {
    match model.config.max_positions {
        0 => 0.0,
        _ => 4.0 * length as f64 * model.config.d_model as f64,
    }
}

/// What the machine has left, in bytes, where the system tells.
fn host_memory() -> Option<f64> {
    available_memory().map(|bytes| bytes as f64)
}

/// What a device has, in bytes. A CPU, what imitates a GPU on one, and a GPU that does not tell are taken to have what the
/// machine has left.
fn memory_of(name: &str, device: &Device) -> Option<f64> {
    let imitated = || device::adapter(device).is_some_and(|it| device::is_software(&it));
    let own = match is_cpu(name) || imitated() {
        true => None,
        false => gpu_total_memory(name.split_once(':').map_or("0", |(_, index)| index)),
    };
    own.map(|bytes| bytes as f64).or_else(host_memory)
}

#[cfg(all(test, feature = "flex", target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_no_memory_holds_is_refused_before_it_is_taken() {
        let fits = |family, batch, length| {
            let model = Model::new(family, Size::Official, 4096);
            let sizes = [batch, length];
            let outcome = fits_on("flex", &Device::flex(), Precision::F32, &model, sizes);
            outcome.map_err(|reason| reason.to_string())
        };
        assert_eq!(fits(Family::Mamba1, 1, 64), Ok(()));
        assert_eq!(fits(Family::Gpt2, 1, 64), Ok(()));
        // Products of these are beyond every integer, too.
        for (batch, length) in [
            (1, 99_999_999_999_999),
            (usize::MAX, 2),
            (usize::MAX, usize::MAX),
        ] {
            let reason = fits(Family::Mamba1, batch, length).unwrap_err();
            assert!(
                reason.contains("out of memory: its tokens take"),
                "{reason}"
            );
        }
        let reason = fits(Family::Gpt2, 1, 4097).unwrap_err();
        assert!(
            reason.contains("room for 4096 learned positions"),
            "{reason}"
        );
        // Keys and values of 72 KiB a token.
        let reason = fits(Family::Pythia, 1 << 20, 1 << 10).unwrap_err();
        assert!(
            reason.contains("key-value cache") || reason.contains("tokens"),
            "{reason}"
        );
    }
}
