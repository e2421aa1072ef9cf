//! The same problems on every backend of the build.

use anyhow::Result;
use burn::tensor::{Device, s};
use mamba_core::device;

use super::proving;
use super::sizes::fits_on;
use crate::attempt::attempt;
use crate::engines::model::Subject;
use crate::engines::ours::Training;
use crate::engines::read_some;
use crate::measure::{Calls, clocked};
use crate::plot::Bars;
use crate::problems::{Model, Op, Size};
use crate::results::{Entry, Row, is_cpu};
use crate::run::{OURS, Run};

pub(super) fn run(run: &mut Run) -> Result<()> {
    let (batch, length) = if run.options.quick {
        (2, 128)
    } else {
        (8, 1024)
    };
    let length = run.lengths.first().copied().unwrap_or(length);
    if run.lengths.len() > 1 {
        run.find(format!("Of --lengths backends takes the first, {length}."))?;
    }
    let models = run.filtered(Model::all(Size::Tutorial, length), |model| model.name)?;
    // CPUs first: a GPU's kernels may take minutes to compile, in software most of all.
    let mut names = device::device_names();
    names.sort_by_key(|name| !is_cpu(name));
    run.expect((names.len() * (models.len() + 1)) as f64);
    let mut bars = Vec::new();
    for (color, name) in names.into_iter().enumerate() {
        let outcome = run
            .begin(format!("start and proofs of {name}"), 1.0)
            .and_then(|()| {
                let device = device::start(name)?;
                prove(run, &models, name, &device)?;
                Ok(device)
            });
        let device = match outcome {
            Ok(device) => device,
            Err(reason) => {
                run.miss_on(name, "every problem", OURS, None, &reason)?;
                continue;
            }
        };
        for model in &models {
            let precision = run.options.precision;
            let possible = run
                .begin(format!("{} on {name}", model.name), 1.0)
                .and_then(|()| fits_on(name, &device, precision, model, [batch, length]));
            if let Err(reason) = possible {
                run.miss_on(name, model.name, OURS, None, &reason)?;
                continue;
            }
            for (what, measured) in measure(run, model, batch, length, &device) {
                let problem = format!("{} {what}", model.name);
                match measured {
                    Ok(measured) => {
                        let ms = measured.ms.median();
                        bars.push((format!("{problem}, {name}"), ms, color));
                        let mut key = run.key(problem, batch, length);
                        key.device = name.into();
                        let rate = (batch * length) as f64 / ms * 1e3;
                        run.emit(Entry::Row(Box::new(
                            Row::timed(key, measured).with("tokens_per_second", rate),
                        )))?;
                    }
                    Err(reason) => run.miss_on(name, &problem, OURS, None, &reason)?,
                }
            }
        }
    }
    bars.sort_by(|a, b| a.0.cmp(&b.0));
    let chart = Bars {
        title: format!("The tutorial's models on every backend, {batch} x {length}"),
        subtitle: run.subtitle(),
        unit: "milliseconds".into(),
        bars,
    };
    run.folder().write("backends.svg", &chart.svg())
}

/// On one device; a failure concerns it alone.
fn prove(run: &mut Run, models: &[Model], name: &str, device: &Device) -> Result<()> {
    let has = run.options.precision.is_supported(device);
    anyhow::ensure!(has, "it has no bf16");
    for op in Op::of(models) {
        run.in_time()?;
        proving::op(run, &op, name, device)?;
    }
    for model in models {
        run.in_time()?;
        proving::model(run, model, name, device)?;
        proving::gradients(run, model, name, device)?;
    }
    Ok(())
}

type Outcome = Result<crate::measure::Measurement>;

fn measure(
    run: &Run,
    model: &Model,
    batch: usize,
    length: usize,
    device: &Device,
) -> [(&'static str, Outcome); 2] {
    let pace = run.pace();
    let forward = attempt(|| {
        run.in_time()?;
        let subject = Subject::new(model, run.options.precision, device);
        let tokens = subject.tokens(batch, length);
        read_some(subject.forward(&tokens)?)?;
        pace.measure_one(clocked(|| subject.forward(&tokens).map(drop)))
    });
    let training = attempt(|| {
        run.in_time()?;
        let device = device.clone().autodiff();
        let subject = Subject::new(model, run.options.precision, &device);
        let tokens = subject.tokens(batch, length + 1);
        let pair = [
            tokens.clone().slice(s![.., ..length]),
            tokens.slice(s![.., 1..]),
        ];
        pace.measure_one(steps(Training::on(subject.model, pair, &device)))
    });
    [("forward", forward), ("training", training)]
}

/// Training steps, one after the other.
pub(super) fn steps<'a>(training: Training) -> Calls<'a> {
    let mut training = Some(training);
    clocked(move || {
        let next = training.take().map(Training::step).transpose()?;
        training = next.map(|(training, _)| training);
        anyhow::ensure!(training.is_some(), "a training step failed");
        Ok(())
    })
}
