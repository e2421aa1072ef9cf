//! The time from a prompt to the first token behind it.

use std::collections::BTreeMap;

use anyhow::Result;

use super::peers::{self, Peers, Task};
use super::proving;
use super::scaling::GUESS;
use super::sizes::{batches, fits, lengths, models, patience, rate_before, worth_waiting};
use crate::engines::launches;
use crate::engines::model::Subject;
use crate::engines::model_peer::Work;
use crate::measure::clocked;
use crate::plot::{Axis, Chart, Scale, Series, Style};
use crate::problems::{Model, flops};
use crate::results::{Entry, Row};
use crate::run::{OURS, Run};

pub(super) fn run(run: &mut Run) -> Result<()> {
    let lengths = lengths(
        run,
        &[64, 256, 1024],
        &[128, 512, 2048],
        &[128, 1024, 4096, 16_384, 65_536],
    );
    let batches = batches(run, &[1, 4], &[1], &[1, 8]);
    let models = models(run, &lengths, 0)?;
    proving::models(run, &models)?;
    let pace = run.pace();
    let limit = patience(run);
    let work = |model: &Model, batch, length| flops::forward(&model.config, batch, length, 1);
    let cost =
        |model: &Model, batch, length| pace.cost((work(model, batch, length) / GUESS).min(limit));
    let cells = || {
        batches
            .iter()
            .flat_map(|&batch| lengths.iter().map(move |&length| (batch, length)))
    };
    run.expect(
        models
            .iter()
            .flat_map(|model| cells().map(move |(batch, length)| cost(model, batch, length)))
            .sum(),
    );

    let mut peers = Peers::default();
    let mut series = Vec::new();
    let mut curves = 0;
    for model in &models {
        if let Err(reason) = run.in_limit() {
            run.miss(model.name, OURS, None, &reason)?;
            continue;
        }
        let subject = Subject::new(model, run.options.precision, run.device);
        peers.load(run, &subject, false)?;
        let mut rate = None;
        for &batch in &batches {
            let mut curve = Series {
                name: format!("{}, batch {batch}", model.name),
                points: vec![],
                spread: vec![],
                style: Style::Line,
                color: Some(curves),
            };
            let mut beside = BTreeMap::<String, Series>::new();
            for &length in &lengths {
                let what = format!("{}, {batch} x {length}", model.name);
                let flops = work(model, batch, length);
                let possible = run
                    .begin(what, cost(model, batch, length))
                    .and_then(|()| fits(run, model, batch, length))
                    .and_then(|()| rate_before(&subject, batch, length, rate, limit))
                    .and_then(|rate| worth_waiting(limit, flops, rate));
                if let Err(reason) = possible {
                    run.miss(model.name, OURS, Some(length), &reason)?;
                    continue;
                }
                let prompts = subject.tokens(batch, length);
                let ours = clocked(|| subject.prefill(&prompts).map(drop));
                let task = Task {
                    work: Work::Prefill,
                    batch,
                    length,
                    flops,
                    patience: limit,
                };
                let (ours, theirs) = peers.measure(run, &subject, ours, task);
                match ours {
                    Ok(ours) => {
                        let ms = ours.ms.median();
                        rate = Some(flops / ms * 1e3);
                        curve.points.push((length as f64, ms));
                        curve
                            .spread
                            .push((ours.ms.quantile(0.25), ours.ms.quantile(0.75)));
                        let key = run.key(model.name, batch, length);
                        let launches =
                            launches::count(run.device, || subject.prefill(&prompts).map(drop));
                        let row = Row::timed(key.clone(), ours.clone())
                            .with("launches", launches?)
                            .with("tokens_per_second", (batch * length) as f64 / ms * 1e3)
                            .with("gflop_per_second", flops * 1e-9 / ms * 1e3);
                        run.emit(Entry::Row(Box::new(row)))?;
                        for (name, ms) in peers::emit(run, &key, &ours, theirs, batch * length)? {
                            let new = || Series {
                                name: format!("{}, {name}", curve.name),
                                points: vec![],
                                spread: vec![],
                                style: Style::Dashed,
                                color: Some(curves),
                            };
                            let theirs = beside.entry(name.clone()).or_insert_with(new);
                            theirs.points.push((length as f64, ms));
                        }
                    }
                    Err(reason) => run.miss(model.name, OURS, Some(length), &reason)?,
                }
            }
            series.push(curve);
            series.extend(beside.into_values());
            curves += 1;
        }
        peers.forget(run, &subject);
    }
    let chart = Chart {
        title: "Time to the first token".into(),
        subtitle: run.subtitle(),
        x: Axis::new("tokens of the prompt", Scale::Log2),
        y: Axis::new("milliseconds", Scale::Log10),
        series,
        marks: Vec::new(),
    };
    run.folder().write("prefill.svg", &chart.svg())
}
