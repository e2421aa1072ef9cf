//! The tutorial's experiment: how forward time grows with the length of a sequence.

mod curves;

use anyhow::{Result, ensure};
use curves::{Curves, conclude};

use super::peers::{self, Peers, Task};
use super::proving;
use super::sizes::{fits, longest};
use crate::attempt::attempt;
use crate::engines::model::Subject;
use crate::engines::model_peer::Work;
use crate::engines::read_some;
use crate::machine::available_memory;
use crate::measure::{Measurement, clocked};
use crate::problems::{Model, Size, flops};
use crate::results::{Entry, Key, Row};
use crate::run::{OURS, Run};

const LENGTHS: [usize; 11] = [
    64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536,
];
const QUICK_LENGTHS: [usize; 5] = [64, 256, 1024, 2048, 4096];

/// The tutorial's.
const BATCH: usize = 32;

/// Up to where sequences come in full batches, and how long a call may take.
struct Limits {
    tokens: usize,
    seconds: f64,
}

/// Operations a second by which the time left is guessed before anything was measured.
pub(super) const GUESS: f64 = 5e10;

pub(super) fn run(run: &mut Run) -> Result<()> {
    let (lengths, limits) = match run.options.quick {
        true => (
            QUICK_LENGTHS.to_vec(),
            Limits {
                tokens: 1 << 14,
                seconds: 1.0,
            },
        ),
        false => (
            LENGTHS.to_vec(),
            Limits {
                tokens: 1 << 19,
                seconds: 20.0,
            },
        ),
    };
    let mut lengths = match run.lengths.is_empty() {
        true => lengths,
        false => run.lengths.to_vec(),
    };
    lengths.sort_unstable();
    lengths.dedup();
    let positions = longest(run, Size::Tutorial, &lengths, 0);
    let models = run.filtered(Model::all(Size::Tutorial, positions), |model| model.name)?;

    proving::models(run, &models)?;
    let subject = |model| Subject::new(model, run.options.precision, run.device);
    let subjects: Vec<_> = models.iter().map(subject).collect();
    let pace = run.pace();
    let cost = |model: &Model, length: usize| {
        let batch = (limits.tokens / length).clamp(1, BATCH);
        let call = flops::forward(&model.config, batch, length, 0) / GUESS;
        pace.cost(call.min(limits.seconds))
    };
    run.expect(
        lengths
            .iter()
            .flat_map(|&length| models.iter().map(move |model| cost(model, length)))
            .sum(),
    );

    let mut peers = Peers::default();
    for subject in &subjects {
        peers.load(run, subject, false)?;
    }
    let mut curves = Curves::default();
    for &length in &lengths {
        for subject in &subjects {
            let model = &subject.problem;
            let what = format!("{} at length {length}", model.name);
            let last = curves.last(model.name);
            let batch = run
                .begin(what, cost(model, length))
                .and_then(|()| fits(run, model, 1, length))
                .and_then(|()| batch(run, model, length, last, &limits));
            let batch = match batch {
                Ok(batch) => batch,
                Err(reason) => {
                    run.miss(model.name, OURS, Some(length), &reason)?;
                    continue;
                }
            };
            let tokens = subject.tokens(batch, length);
            if let Err(reason) = attempt(|| read_some(subject.forward(&tokens)?)) {
                run.miss(model.name, OURS, Some(length), &reason)?;
                continue;
            }
            let ours = clocked(|| subject.forward(&tokens).map(drop));
            let flops = flops::forward(&model.config, batch, length, 0);
            let task = Task {
                work: Work::Forward,
                batch,
                length,
                flops,
                patience: limits.seconds,
            };
            let (ours, theirs) = peers.measure(run, subject, ours, task);
            match ours {
                Ok(ours) => {
                    let row = row(run.key(model.name, batch, length), ours.clone(), flops);
                    let key = row.key.clone();
                    curves.add(&row);
                    run.emit(Entry::Row(Box::new(row)))?;
                    for (name, ms) in peers::emit(run, &key, &ours, theirs, batch * length)? {
                        curves.add_peer(model.name, name, (length as f64, ms / batch as f64));
                    }
                }
                Err(reason) => run.miss(model.name, OURS, Some(length), &reason)?,
            }
        }
    }
    for subject in &subjects {
        peers.forget(run, subject);
    }
    conclude(run, &curves)
}

fn row(key: Key, measured: Measurement, flops: f64) -> Row {
    let (batch, length) = (key.batch, key.length);
    let ms = measured.ms.median();
    Row::timed(key, measured)
        .with("ms_per_sequence", ms / batch as f64)
        .with("tokens_per_second", (batch * length) as f64 / ms * 1e3)
        .with("gflop_per_second", flops * 1e-9 / ms * 1e3)
}

/// How many sequences of `length` a call takes, by the last shorter one: its length and milliseconds a sequence.
fn batch(
    run: &Run,
    model: &Model,
    length: usize,
    last: Option<(f64, f64)>,
    limits: &Limits,
) -> Result<usize> {
    /// Activations of a position that are alive at once, over the width of the model; with room to spare.
    const ALIVE: usize = 32 * size_of::<f32>();
    /// Of the memory that is left.
    const SHARE: f64 = 0.6;
    let mut most = BATCH.min(limits.tokens / length).max(1) as f64;
    if let Some((last_length, ms)) = last {
        let power = if model.attends() { 2 } else { 1 };
        let seconds = ms * 1e-3 * (length as f64 / last_length).powi(power);
        ensure!(
            seconds < limits.seconds,
            "one sequence would take {seconds:.0} s, more than the {} s that a call may take",
            limits.seconds
        );
        most = most.min(limits.seconds / seconds);
    }
    if let Some(bytes) = available_memory().filter(|_| run.on_cpu()) {
        let room = SHARE * bytes as f64 / (length as f64 * (ALIVE * model.config.d_model) as f64);
        ensure!(
            room >= 1.0,
            "one sequence would take more than the {} MiB of memory that are left",
            bytes >> 20
        );
        most = most.min(room);
    }
    // Powers of two, which share out evenly over cores.
    Ok(1 << (most as usize).ilog2())
}
