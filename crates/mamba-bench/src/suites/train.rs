//! Training steps: forward, loss over the whole vocabulary, backward, Adam.

use anyhow::Result;
use burn::tensor::s;

use super::backends::steps;
use super::kernels::peak_rows;
use super::peers::{self, Peers, Task};
use super::proving;
use super::scaling::GUESS;
use super::sizes::{batches, fits, lengths, models, patience, worth_waiting};
use crate::attempt::attempt;
use crate::engines::model::Subject;
use crate::engines::model_peer::Work;
use crate::engines::ours::Training;
use crate::peaks::Peaks;
use crate::plot::Bars;
use crate::probe::{self, Probe};
use crate::problems::{Model, flops};
use crate::results::{Entry, Row};
use crate::run::{OURS, Run};

pub(super) fn run(run: &mut Run) -> Result<()> {
    let lengths = lengths(run, &[128], &[256], &[1024]);
    let batches = batches(run, &[4], &[1], &[8]);
    let models = models(run, &lengths, 0)?;
    proving::models(run, &models)?;
    let (precision, name, device) = (run.options.precision, run.name, run.device);
    for model in &models {
        proving::gradients(run, model, name, device)?;
    }
    let pace = run.pace();
    let on_cpu = run.on_cpu();
    let work =
        |model: &Model, [batch, length]: [usize; 2]| flops::training(&model.config, batch, length);
    let cost =
        |model: &Model, size| pace.cost(work(model, size) / GUESS) + work(model, size) / GUESS;
    let pairs = |&batch: &usize| lengths.iter().map(move |&length| [batch, length]);
    let sizes: Vec<_> = batches.iter().flat_map(pairs).collect();
    let all = sizes
        .iter()
        .flat_map(|&size| models.iter().map(move |model| cost(model, size)));
    run.expect(pace.cost(0.0) * 2.0 + all.sum::<f64>());
    run.begin("the peaks of the device".into(), pace.cost(0.0) * 2.0)?;
    let peaks = Peaks::measure(&pace, run.options.quick, precision, name, device)?;
    for row in peak_rows(run, &peaks) {
        run.emit(Entry::Row(Box::new(row)))?;
    }

    let mut peers = Peers::default();
    let mut bars = Vec::new();
    for (color, model) in models.iter().enumerate() {
        for &size in &sizes {
            let [batch, length] = size;
            let what = format!("{}, {batch} x {length}", model.name);
            let flops = work(model, size);
            let limit = 3.0 * patience(run);
            let prepared = run
                .begin(what, cost(model, size))
                .and_then(|()| fits(run, model, batch, length))
                .and_then(|()| worth_waiting(limit, flops, on_cpu.then_some(GUESS)))
                .and_then(|()| attempt(|| prepare(run, model, batch, length)));
            let (subject, training) = match prepared {
                Ok(prepared) => prepared,
                Err(reason) => {
                    run.miss(model.name, OURS, Some(length), &reason)?;
                    continue;
                }
            };
            peers.load(run, &subject, true)?;
            let task = Task {
                work: Work::Train,
                batch,
                length,
                flops,
                patience: limit,
            };
            let (ours, theirs) = peers.measure(run, &subject, steps(training), task);
            peers.forget(run, &subject);
            let ours = match ours {
                Ok(ours) => ours,
                Err(reason) => {
                    run.miss(model.name, OURS, Some(length), &reason)?;
                    continue;
                }
            };
            let ms = ours.ms.median();
            let rate = (batch * length) as f64 / ms * 1e3;
            bars.push((format!("{}, {batch} x {length}", model.name), rate, color));
            let key = run.key(model.name, batch, length);
            let mut row = Row::timed(key.clone(), ours.clone())
                .with("tokens_per_second", rate)
                .with("gflop_per_second", flops * 1e-9 / ms * 1e3)
                .with("flop_share", flops / ms * 1e3 / peaks.flops_per_second());
            let probe = Probe {
                model: model.name.into(),
                work: probe::Work::Train,
                batch,
                length,
                device: name.into(),
                precision,
            };
            match probe.start(run.options.probe) {
                Ok(reading) => {
                    row = row.with(
                        "peak_mib",
                        reading.peak.map(|bytes| bytes as f64 / f64::from(1 << 20)),
                    )
                }
                Err(reason) => run.miss(
                    model.name,
                    OURS,
                    Some(length),
                    &reason.context("peak memory"),
                )?,
            }
            run.emit(Entry::Row(Box::new(row)))?;
            let theirs = peers::emit(run, &key, &ours, theirs, batch * length)?;
            bars.extend(theirs.into_iter().map(|(name, ms)| {
                let rate = (batch * length) as f64 / ms * 1e3;
                (format!("{}, {name}", model.name), rate, color)
            }));
        }
    }
    let chart = Bars {
        title: "Training: tokens a second, model, sequences x length".into(),
        subtitle: run.subtitle(),
        unit: "tokens/s".into(),
        bars,
    };
    run.folder().write("train.svg", &chart.svg())
}

fn prepare(run: &Run, model: &Model, batch: usize, length: usize) -> Result<(Subject, Training)> {
    let device = run.device.clone().autodiff();
    let subject = Subject::new(model, run.options.precision, &device);
    let tokens = subject.tokens(batch, length + 1);
    let pair = [
        tokens.clone().slice(s![.., ..length]),
        tokens.slice(s![.., 1..]),
    ];
    let training = Training::on(subject.model.clone(), pair, &device);
    Ok((subject, training))
}
