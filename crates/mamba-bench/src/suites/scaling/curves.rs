//! What the curves say: exponents, crossings, a plot.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::fit::{Crossing, PowerLaw, crossing};
use crate::plot::{Axis, Chart, Mark, Scale, Series, Style};
use crate::results::{Entry, Growth, Row, Time};
use crate::run::{OURS, Run};

/// Shorter sequences do not count for the exponent: on them what does not grow still shows.
const FIT_FROM: usize = 1024;

/// Milliseconds a sequence over length, of every model, and the quartiles.
#[derive(Default)]
pub(super) struct Curves {
    by_model: BTreeMap<String, Vec<(f64, f64)>>,
    spread: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Curves {
    pub fn add(&mut self, row: &Row) {
        let Some(Time {
            median_ms,
            q1_ms,
            q3_ms,
            ..
        }) = row.time
        else {
            return;
        };
        let a_sequence = |ms: f64| ms / row.key.batch as f64;
        let name = row.key.problem.clone();
        self.by_model
            .entry(name.clone())
            .or_default()
            .push((row.key.length as f64, a_sequence(median_ms)));
        self.spread
            .entry(name)
            .or_default()
            .push((a_sequence(q1_ms), a_sequence(q3_ms)));
    }

    pub fn last(&self, model: &str) -> Option<(f64, f64)> {
        self.by_model.get(model)?.last().copied()
    }
}

/// Exponents, crossings and the plot.
pub(super) fn conclude(run: &mut Run, curves: &Curves) -> Result<()> {
    let mut series = Vec::new();
    for (name, points) in &curves.by_model {
        let long: Vec<_> = points
            .iter()
            .copied()
            .filter(|point| point.0 >= FIT_FROM as f64)
            .collect();
        let law = PowerLaw::fit(&long);
        let slope = law.map_or(String::new(), |law| format!(", L^{:.2}", law.exponent));
        series.push(Series {
            name: format!("{name}{slope}"),
            points: points.clone(),
            spread: curves.spread[name].clone(),
            style: Style::Line,
            color: None,
        });
        if let (Some(law), Some(first), Some(last)) = (law, long.first(), long.last()) {
            let growth = Growth {
                problem: name.clone(),
                engine: OURS.into(),
                device: run.name.into(),
                law,
                lengths: [first.0 as usize, last.0 as usize],
            };
            run.emit(Entry::Growth(growth))?;
        }
    }
    let mut marks = Vec::new();
    if let Some(theirs) = curves.by_model.get("transformer") {
        for (name, ours) in curves
            .by_model
            .iter()
            .filter(|(name, _)| *name != "transformer")
        {
            if let Some(crossing) = crossing(ours, theirs) {
                run.find(verdict(name, run.name, ours, theirs, &crossing))?;
                if let Crossing::At(places) = crossing {
                    let mark = |x: f64| Mark {
                        x,
                        label: format!("{name} = transformer at {x:.0}"),
                    };
                    marks.extend(places.into_iter().map(mark));
                }
            }
        }
    }
    let chart = Chart {
        title: "Forward time of the tutorial's models".into(),
        subtitle: run.subtitle(),
        x: Axis::new("positions of a sequence", Scale::Log2),
        y: Axis::new("milliseconds a sequence", Scale::Log10),
        series,
        marks,
    };
    run.folder().write("scaling.svg", &chart.svg())
}

/// Who is faster where, in a sentence.
fn verdict(
    name: &str,
    device: &str,
    ours: &[(f64, f64)],
    theirs: &[(f64, f64)],
    crossing: &Crossing,
) -> String {
    let ratios: Vec<(f64, f64)> = ours
        .iter()
        .filter_map(|(x, y)| {
            theirs
                .iter()
                .find(|other| other.0 == *x)
                .map(|other| (*x, other.1 / y))
        })
        .collect();
    let [(first, at_first), .., (last, at_last)] = ratios[..] else {
        let (length, ratio) = ratios[0];
        return format!(
            "On {device} at length {length:.0}, {name} is {ratio:.2} times as fast as the transformer."
        );
    };
    let where_ = match crossing {
        Crossing::Below => format!("{name} is faster than the transformer at every length"),
        Crossing::Above => format!("the transformer is faster than {name} at every length"),
        Crossing::At(places) => {
            let places: Vec<_> = places.iter().map(|place| format!("{place:.0}")).collect();
            let (before, after) = match at_first < 1.0 {
                true => ("the transformer", name),
                false => (name, "the transformer"),
            };
            match places.len() {
                1 => format!(
                    "{before} is faster below length {}, {after} above it",
                    places[0]
                ),
                _ => format!(
                    "{name} and the transformer change places at lengths {}",
                    places.join(", ")
                ),
            }
        }
    };
    format!(
        "On {device}, {where_}: {name} is {at_first:.2} times as fast at length {first:.0} and {at_last:.2} times at {last:.0}."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_says_where_the_transformer_wins() {
        let lengths = [64.0, 1024.0, 4096.0];
        let linear: Vec<_> = lengths.iter().map(|&x| (x, x)).collect();
        let square: Vec<_> = lengths.iter().map(|&x| (x, x * x / 512.0)).collect();
        let crossing = crossing(&linear, &square).unwrap();
        let text = verdict("mamba1", "flex", &linear, &square, &crossing);
        assert!(
            text.contains("the transformer is faster below length 512, mamba1 above it"),
            "{text}"
        );
        assert!(
            text.contains("0.12 times as fast at length 64 and 8.00 times at 4096"),
            "{text}"
        );
        let text = verdict(
            "mamba1",
            "flex",
            &linear[..1],
            &square[..1],
            &Crossing::Above,
        );
        assert!(text.contains("0.12 times as fast"), "{text}");
    }
}
