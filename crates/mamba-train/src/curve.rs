//! Loss curves: that of a run, and those of several runs on one picture.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;

use crate::cache::write_atomic;
use crate::history::Record;

const SIZE: (u32, u32) = (800, 480);
/// One colour a curve, then a pair a run.
const COLORS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x8c, 0x56, 0x4b),
];
/// How strong the line of a noisy training loss is beside its run's valid loss.
const FAINT: f64 = 0.45;
/// Room above and below the curves, as a share of their height.
const MARGIN: f64 = 0.05;

type Points = Vec<(f64, f64)>;

struct Curve {
    label: String,
    color: RGBAColor,
    points: Points,
    /// Whether each point is an evaluation of its own and gets a mark.
    marked: bool,
}

/// Draws the loss curve of `records` to `path`.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_curve(path: &Path, title: &str, records: &[Record]) -> Result<()> {
    let (train, valid) = points(records);
    let curve = |label: &str, color: RGBColor, points, marked| Curve {
        label: label.into(),
        color: color.to_rgba(),
        points,
        marked,
    };
    let curves = vec![
        curve("train", COLORS[0], train, false),
        curve("valid", COLORS[1], valid, true),
    ];
    write(path, title, curves)
}

/// Draws the loss curves of several runs, each with its name, to `path`.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_curves(path: &Path, title: &str, runs: &[(String, Vec<Record>)]) -> Result<()> {
    let curves = runs
        .iter()
        .zip(COLORS.iter().cycle())
        .flat_map(|((name, records), color)| {
            let (train, valid) = points(records);
            let curve = |split: &str, color, points, marked| Curve {
                label: format!("{name}, {split}"),
                color,
                points,
                marked,
            };
            [
                curve("train", color.mix(FAINT), train, false),
                curve("valid", color.to_rgba(), valid, true),
            ]
        });
    write(path, title, curves.collect())
}

fn write(path: &Path, title: &str, curves: Vec<Curve>) -> Result<()> {
    let svg = draw(title, curves).with_context(|| format!("cannot draw {}", path.display()))?;
    write_atomic(path, |out| Ok(out.write_all(svg.as_bytes())?))
}

fn draw(title: &str, curves: Vec<Curve>) -> Result<String> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let steps = range(all().map(|point| point.0), 0.0);
    let losses = range(all().map(|point| point.1), MARGIN);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(steps, losses)?;
        chart
            .configure_mesh()
            .x_desc("optimizer step")
            .y_desc("cross-entropy (nats a token)")
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 13))
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|loss| format!("{loss:.2}"))
            .light_line_style(WHITE.mix(0.0))
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        for Curve {
            label,
            color,
            points,
            marked,
        } in curves
        {
            if points.is_empty() {
                continue;
            }
            let style = color.stroke_width(2);
            let line = match marked {
                true => LineSeries::new(points, style.filled()).point_size(4),
                false => LineSeries::new(points, style),
            };
            chart
                .draw_series(line)?
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .label_font(("sans-serif", 15))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

fn points(records: &[Record]) -> (Points, Points) {
    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for record in records {
        match record {
            Record::Train { step, loss, .. } => train.push((*step as f64, *loss)),
            Record::Eval(eval) => valid.push((eval.step as f64, eval.loss)),
            Record::Final(_) => {}
        }
    }
    (train, valid)
}

/// The range of `values`, wider by the share `margin` of its length on both sides.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low >= high {
        let middle = if low > high { 0.5 } else { low };
        return middle - 0.5..middle + 0.5;
    }
    let margin = (high - low) * margin;
    low - margin..high + margin
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Evaluation;
    use crate::history::EvalRecord;

    fn train(step: usize, loss: f64) -> Record {
        Record::Train {
            step,
            epoch: 1,
            loss,
            perplexity: loss.exp(),
            learning_rate: 1e-3,
            tokens: 1,
            tokens_per_second: 1.0,
            seconds: 1.0,
        }
    }

    fn eval(step: usize, loss: f64) -> Record {
        Record::Eval(EvalRecord::new(
            "valid",
            step,
            Evaluation { loss, tokens: 1 },
        ))
    }

    #[test]
    fn curve_shows_both_series_and_names_its_axes() {
        let records: Vec<Record> = (1..=50)
            .flat_map(|i| {
                let loss = 5.0 + 5.8 * (-(i as f64) / 12.0).exp();
                let train = train(i * 10, loss + 0.1 * (i as f64 * 2.3).sin());
                let valid = (i % 10 == 0).then(|| eval(i * 10, loss + 0.15));
                [Some(train), valid].into_iter().flatten()
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        write_curve(&path, "quickstart", &records).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for (color, points) in [("#1F77B4", 50), ("#D62728", 5)] {
            let curve = svg
                .split("<polyline")
                .find(|shape| shape.contains(color) && shape.matches(',').count() >= points);
            assert!(curve.is_some(), "the {color} curve is missing");
        }
        for text in [
            "quickstart",
            "optimizer step",
            "cross-entropy",
            "train",
            "valid",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn curves_without_points_are_drawn() {
        for records in [vec![], vec![eval(0, 10.8)], vec![train(1, 10.8)]] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("loss.svg");
            write_curve(&path, "short", &records).unwrap();
            write_curves(&path, "short", &[("a".into(), records)]).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            assert!(svg.contains("</svg>") && !svg.contains("NaN"));
        }
    }
}
