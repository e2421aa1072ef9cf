//! The operations that models are made of, against what the device can do at most.

use anyhow::Result;
use mamba_core::Precision;

use super::sizes::op_fits;
use super::{op_peers, peers, proving};
use crate::attempt::attempt;
use crate::engines::launches;
use crate::engines::op::OpEngine;
use crate::engines::read_some;
use crate::measure::{Calls, Measurement, clocked, queued};
use crate::peaks::Peaks;
use crate::plot::{Axis, Chart, Scale, Series, Style};
use crate::problems::Op;
use crate::results::{Entry, Row};
use crate::run::{OURS, Run};

pub(super) fn run(run: &mut Run) -> Result<()> {
    let (batch, lengths) = match (run.options.quick, run.on_cpu()) {
        (true, _) => (1, vec![512]),
        (false, true) => (1, vec![2048]),
        (false, false) => (8, vec![2048]),
    };
    let lengths = match run.lengths.is_empty() {
        true => lengths,
        false => run.lengths.to_vec(),
    };
    let mut ops = Vec::new();
    for &length in &lengths {
        // A step is the same at every length.
        let others = |op: &Op| {
            ops.iter()
                .all(|other: &Op| (other.name(), other.size()) != (op.name(), op.size()))
        };
        let new: Vec<_> = Op::all(batch, length).into_iter().filter(others).collect();
        ops.extend(new);
    }
    let ops = run.filtered(ops, |op| op.name())?;
    let (precision, name, device) = (run.options.precision, run.name, run.device);
    for op in &ops {
        proving::op(run, op, name, device)?;
    }

    let pace = run.pace();
    let cost = pace.cost(0.0);
    run.expect(cost * (ops.len() + 2) as f64);
    run.begin("the peaks of the device".into(), 2.0 * cost)?;
    let peaks = Peaks::measure(&pace, run.options.quick, precision, name, device)?;
    for row in peak_rows(run, &peaks) {
        run.emit(Entry::Row(Box::new(row)))?;
    }
    let mut points = Vec::new();
    for op in &ops {
        let [batch, length] = op.size();
        // Once to compile, once to count.
        let prepare = || {
            let engine = OpEngine::new(op, precision, device);
            read_some(engine.run()?)?;
            let launches = launches::count(device, || engine.run().map(drop))?;
            Ok((engine, launches))
        };
        let ready = run
            .begin(format!("{} at length {length}", op.name()), cost)
            .and_then(|()| op_fits(run, op))
            .and_then(|()| attempt(prepare));
        let (engine, launches) = match ready {
            Ok(ready) => ready,
            Err(reason) => {
                run.miss(op.name(), OURS, Some(length), &reason)?;
                continue;
            }
        };
        let calls: Calls = match run.on_cpu() {
            true => clocked(|| engine.run().map(drop)),
            false => queued(|| engine.queue(), || engine.finish()),
        };
        let (ours, theirs) = op_peers::measure(run, op, calls)?;
        match ours {
            Ok(measured) => {
                let size = if precision == Precision::F32 { 4 } else { 2 };
                let with_rates =
                    |row, measured: &Measurement| rates(row, measured, op.flops(), op.bytes(size));
                let key = run.key(op.name(), batch, length);
                let row = Row::timed(key.clone(), measured.clone());
                let row = with_rates(row, &measured).with("launches", launches);
                let roof = peaks.roof_ms(op.bytes(size), op.flops());
                let row = row.with("share_of_roof", roof / measured.ms.median());
                points.push((
                    format!("{}, {batch} x {length}", op.name()),
                    row.figures["flop_per_byte"],
                    row.figures["gflop_per_second"],
                ));
                run.emit(Entry::Row(Box::new(row)))?;
                for (engine, outcome) in theirs {
                    match outcome {
                        Ok(theirs) => {
                            let row = peers::beside(&key, &engine, theirs.clone(), &measured);
                            let row = with_rates(row, &theirs);
                            run.emit(Entry::Row(Box::new(row)))?;
                        }
                        Err(reason) => run.miss(op.name(), &engine, Some(length), &reason)?,
                    }
                }
            }
            Err(reason) => run.miss(op.name(), OURS, Some(length), &reason)?,
        }
    }
    run.folder()
        .write("roofline.svg", &roofline(run, &peaks, points).svg())
}

/// The names of the operations.
pub(super) fn names(_: bool) -> Vec<&'static str> {
    Op::all(1, 64).iter().map(Op::name).collect()
}

/// The row with its operations and bytes, and their rates.
fn rates(row: Row, measured: &Measurement, flops: f64, bytes: f64) -> Row {
    let seconds = measured.ms.median() * 1e-3;
    row.with("gflop", flops * 1e-9)
        .with("gflop_per_second", flops * 1e-9 / seconds)
        .with("mib", bytes / f64::from(1 << 20))
        .with("gb_per_second", bytes * 1e-9 / seconds)
        .with("flop_per_byte", flops / bytes)
}

/// What both peaks were measured with, and what they gave.
pub(super) fn peak_rows(run: &Run, peaks: &Peaks) -> [Row; 2] {
    let (copy, bytes) = &peaks.copy;
    let (arithmetic, flops) = &peaks.arithmetic;
    let key = |name: &str| run.key(name, 1, 1);
    [
        Row::timed(key("peak: copy"), copy.clone())
            .with("mib", bytes / f64::from(1 << 20))
            .with("gb_per_second", peaks.bytes_per_second() * 1e-9),
        Row::timed(
            key(&format!("peak: {}", peaks.arithmetic_name)),
            arithmetic.clone(),
        )
        .with("gflop", flops * 1e-9)
        .with("gflop_per_second", peaks.flops_per_second() * 1e-9),
    ]
}

fn roofline(run: &Run, peaks: &Peaks, points: Vec<(String, f64, f64)>) -> Chart {
    let (bandwidth, peak) = (peaks.bytes_per_second(), peaks.flops_per_second() * 1e-9);
    let ridge = peak * 1e9 / bandwidth;
    let low = points.iter().map(|point| point.1).fold(ridge, f64::min) / 2.0;
    let high = points.iter().map(|point| point.1).fold(ridge, f64::max) * 2.0;
    let mut series = vec![Series {
        name: format!("{:.0} GB/s, {peak:.0} GFLOP/s", bandwidth * 1e-9),
        points: vec![(low, low * bandwidth * 1e-9), (ridge, peak), (high, peak)],
        spread: Vec::new(),
        style: Style::Dashed,
        color: None,
    }];
    series.extend(points.into_iter().map(|(name, x, y)| Series {
        name,
        points: vec![(x, y)],
        spread: Vec::new(),
        style: Style::Dots,
        color: None,
    }));
    Chart {
        title: "Operations below the roof".into(),
        subtitle: run.subtitle(),
        x: Axis::new("operations a byte", Scale::Log10),
        y: Axis::new("GFLOP/s", Scale::Log10),
        series,
        marks: Vec::new(),
    }
}
