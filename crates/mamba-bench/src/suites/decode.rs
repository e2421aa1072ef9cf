//! Tokens a second behind a prompt, greedily chosen.

use anyhow::Result;

use super::peers::{self, Peers, Task};
use super::proving;
use super::sizes::{batches, fits, lengths, models, patience, rate_before, worth_waiting};
use crate::attempt::attempt;
use crate::engines;
use crate::engines::model::{Decoding, Subject};
use crate::engines::model_peer::Work;
use crate::measure::Calls;
use crate::plot::Bars;
use crate::problems::flops;
use crate::results::{Entry, Row};
use crate::run::{OURS, Run};

pub(super) fn run(run: &mut Run) -> Result<()> {
    let lengths = lengths(run, &[64, 512], &[128, 1024], &[128, 1024, 4096]);
    let batches = batches(run, &[1, 4], &[1, 8], &[1, 64]);
    let tokens = match (run.options.quick, run.on_cpu()) {
        (true, _) => 16,
        (false, true) => 32,
        (false, false) => 128,
    };
    // The token behind the prompt, one that does not count, and those that do.
    let models = models(run, &lengths, tokens + 2)?;
    proving::models(run, &models)?;
    run.expect((models.len() * batches.len() * lengths.len()) as f64);
    let (on_cpu, patience) = (run.on_cpu(), patience(run));
    let mut peers = Peers::default();
    let mut bars = Vec::new();
    for (color, model) in models.iter().enumerate() {
        if let Err(reason) = run.in_limit() {
            run.miss(model.name, OURS, None, &reason)?;
            continue;
        }
        let subject = Subject::new(model, run.options.precision, run.device);
        peers.load(run, &subject, false)?;
        for &batch in &batches {
            for &length in &lengths {
                let last = length.saturating_add(tokens);
                // The peer reads the prompt again for every continuation.
                let flops = flops::forward(&model.config, batch, last, 1);
                let decoding = run
                    .begin(format!("{}, {batch} x {length}", model.name), 1.0)
                    .and_then(|()| fits(run, model, batch, last))
                    .and_then(|()| rate_before(&subject, batch, length, None, patience))
                    .and_then(|rate| worth_waiting(patience, flops, rate))
                    .and_then(|()| attempt(|| subject.decoding(batch, length, on_cpu)));
                let decoding = match decoding {
                    Ok(decoding) => decoding,
                    Err(reason) => {
                        run.miss(model.name, OURS, Some(length), &reason)?;
                        continue;
                    }
                };
                // A turn is a continuation: what a call counts is one of its steps.
                let steps: Calls = Box::new(|_| Ok(vec![decoding.continue_for(tokens)?]));
                let task = Task {
                    work: Work::Decode(tokens),
                    batch,
                    length,
                    flops,
                    patience,
                };
                let (ours, theirs) = peers.measure(run, &subject, steps, task);
                match ours {
                    Ok(ours) => {
                        let rate = batch as f64 / ours.ms.median() * 1e3;
                        bars.push((format!("{}, {batch} x {length}", model.name), rate, color));
                        let key = run.key(model.name, batch, length);
                        let row = Row::timed(key.clone(), ours.clone())
                            .with("launches", launches(run, &decoding)?)
                            .with("tokens", tokens as f64)
                            .with("tokens_per_second", rate)
                            .with("first_token_ms", decoding.first_token_ms())
                            .with(
                                "state_mib",
                                decoding.state_bytes() as f64 / f64::from(1 << 20),
                            );
                        run.emit(Entry::Row(Box::new(row)))?;
                        let theirs = peers::emit(run, &key, &ours, theirs, batch)?;
                        bars.extend(theirs.into_iter().map(|(name, ms)| {
                            let rate = batch as f64 / ms * 1e3;
                            (format!("{}, {name}", model.name), rate, color)
                        }));
                    }
                    Err(reason) => run.miss(model.name, OURS, Some(length), &reason)?,
                }
            }
        }
        peers.forget(run, &subject);
    }
    let chart = Bars {
        title: "Generated tokens a second: model, sequences x prompt".into(),
        subtitle: run.subtitle(),
        unit: "tokens/s".into(),
        bars,
    };
    run.folder().write("decode.svg", &chart.svg())
}

/// Kernels that a step launches, the steps around it apart.
fn launches(run: &Run, decoding: &Decoding) -> Result<Option<f64>> {
    const FEW: usize = 1;
    const MORE: usize = 9;
    let count =
        |tokens| engines::launches::count(run.device, || decoding.continue_for(tokens).map(drop));
    let both = count(FEW)?.zip(count(MORE)?);
    Ok(both.map(|(few, more)| (more - few) / (MORE - FEW) as f64))
}
