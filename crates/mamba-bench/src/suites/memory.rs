//! What reading a prompt takes, and what a model remembers of it.

use anyhow::{Result, anyhow};

use super::proving;
use super::scaling::GUESS;
use super::sizes::{SHORTER, fits, lengths, models, patience, worth_waiting};
use crate::engines::model::LONG;
use crate::plot::{Axis, Chart, Scale, Series, Style};
use crate::probe::{Probe, Work};
use crate::problems::flops;
use crate::results::{Entry, Row};
use crate::run::{OURS, Run};

const MIB: f64 = (1 << 20) as f64;

/// A prompt is read once or twice here, and not in rounds: its call may take so many times longer than others.
const ONCE: f64 = 4.0;

pub(super) fn run(run: &mut Run) -> Result<()> {
    let lengths = lengths(
        run,
        &[256, 1024, 4096],
        &[256, 1024, 4096],
        &[1024, 4096, 16_384, 65_536],
    );
    let models = models(run, &lengths, 0)?;
    proving::models(run, &models)?;
    run.expect((models.len() * lengths.len()) as f64);
    let (mut states, mut peaks) = (Vec::new(), Vec::new());
    let on_cpu = run.on_cpu();
    for (color, model) in models.iter().enumerate() {
        let new = |name: &str, style| Series {
            name: format!("{}, {name}", model.name),
            points: vec![],
            spread: vec![],
            style,
            color: Some(color),
        };
        let (mut state, mut peak) = (new("state", Style::Line), new("prefill", Style::Dashed));
        let mut rate = on_cpu.then_some(GUESS);
        for &length in &lengths {
            let what = format!("{} at length {length}", model.name);
            let work = |length| flops::forward(&model.config, 1, length, 1);
            let measure = |length| {
                let probe = Probe {
                    model: model.name.into(),
                    work: Work::Prefill,
                    batch: 1,
                    length,
                    device: run.name.into(),
                    precision: run.options.precision,
                };
                let reading = probe.start(run.options.probe)?;
                Ok((work(length) / reading.seconds, reading))
            };
            let reading = run
                .begin(what, 1.0)
                .and_then(|()| fits(run, model, 1, length))
                .and_then(|()| match rate {
                    None if length > LONG => measure(length / SHORTER).map(|it| Some(it.0)),
                    rate => Ok(rate),
                })
                .and_then(|rate| worth_waiting(ONCE * patience(run), work(length), rate))
                .and_then(|()| measure(length));
            match reading {
                Ok((reached, reading)) => {
                    rate = Some(reached);
                    let mebi = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / MIB);
                    let over = reading.over_weights();
                    let per_token = reading.state.map(|bytes| bytes as f64 / length as f64);
                    state
                        .points
                        .extend(mebi(reading.state).map(|mib| (length as f64, mib)));
                    peak.points
                        .extend(mebi(over).map(|mib| (length as f64, mib)));
                    let row = Row::untimed(run.key(model.name, 1, length))
                        .with("weights_mib", mebi(reading.weights))
                        .with("peak_mib", mebi(reading.peak))
                        .with("over_weights_mib", mebi(over))
                        .with("state_mib", mebi(reading.state))
                        .with("state_bytes_per_token", per_token);
                    if reading.peak.is_none() {
                        let reason = anyhow!(
                            "nothing here tells how much memory the device has given out; the state is known"
                        );
                        run.miss(model.name, OURS, Some(length), &reason)?;
                    }
                    run.emit(Entry::Row(Box::new(row)))?;
                }
                Err(reason) => run.miss(model.name, OURS, Some(length), &reason)?,
            }
        }
        states.push(state);
        peaks.push(peak);
    }
    let chart = Chart {
        title: "What a prompt leaves behind, and what reading it takes over the weights".into(),
        subtitle: run.subtitle(),
        x: Axis::new("tokens of the prompt", Scale::Log2),
        y: Axis::new("MiB", Scale::Log10),
        series: states.into_iter().chain(peaks).collect(),
        marks: Vec::new(),
    };
    run.folder().write("memory.svg", &chart.svg())
}
