//! What the curves say: exponents, crossings, a plot.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

use crate::fit::{Crossing, PowerLaw, crossing};
use crate::plot::{Axis, Chart, Mark, Scale, Series, Style};
use crate::results::{Entry, Growth, Row, Time};
use crate::run::{OURS, Run};

/// Shorter sequences do not count for the exponent: on them what does not grow still shows.
const FIT_FROM: usize = 1024;

/// The name of what the others are compared with.
const TRANSFORMER: &str = "transformer";

/// Milliseconds a sequence over length, of every model, their errors as shares of them, and the quartiles.
#[derive(Default)]
pub(super) struct Curves {
    by_model: BTreeMap<String, Vec<(f64, f64)>>,
    errors: BTreeMap<String, Vec<f64>>,
    spread: BTreeMap<String, Vec<(f64, f64)>>,
    /// Milliseconds a sequence of peers, by the model that they computed and their names.
    peers: BTreeMap<(String, String), Vec<(f64, f64)>>,
}

impl Curves {
    pub fn add(&mut self, row: &Row) {
        let Some(time) = &row.time else {
            return;
        };
        let Time {
            median_ms,
            q1_ms,
            q3_ms,
            ..
        } = *time;
        let a_sequence = |ms: f64| ms / row.key.batch as f64;
        let name = row.key.problem.clone();
        self.by_model
            .entry(name.clone())
            .or_default()
            .push((row.key.length as f64, a_sequence(median_ms)));
        self.errors
            .entry(name.clone())
            .or_default()
            .push(time.error());
        self.spread
            .entry(name)
            .or_default()
            .push((a_sequence(q1_ms), a_sequence(q3_ms)));
    }

    /// A point of a peer's: length, milliseconds a sequence.
    pub fn add_peer(&mut self, model: &str, peer: String, point: (f64, f64)) {
        let key = (model.to_string(), peer);
        self.peers.entry(key).or_default().push(point);
    }

    /// How fast a model is beside another, at every length at which both were measured.
    fn ratios(&self, model: &str, other: &str) -> Vec<Ratio> {
        let points = |name: &str| {
            let points = self.by_model.get(name).into_iter().flatten();
            points.zip(self.errors.get(name).into_iter().flatten())
        };
        let ratio = |(&(length, ms), error): (&(f64, f64), &f64)| {
            let (&(_, theirs), their) = points(other).find(|(point, _)| point.0 == length)?;
            let speed = theirs / ms;
            let error = speed * error.hypot(*their);
            Some(Ratio {
                length,
                speed,
                error,
            })
        };
        points(model).filter_map(ratio).collect()
    }

    pub fn last(&self, model: &str) -> Option<(f64, f64)> {
        self.by_model.get(model)?.last().copied()
    }
}

/// Exponents, crossings and the plot.
pub(super) fn conclude(run: &mut Run, curves: &Curves) -> Result<()> {
    let mut series = Vec::new();
    for (color, (name, points)) in curves.by_model.iter().enumerate() {
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
            color: Some(color),
        });
        let theirs = curves.peers.iter().filter(|((model, _), _)| model == name);
        series.extend(theirs.map(|((_, peer), points)| Series {
            name: format!("{name}, {peer}"),
            points: points.clone(),
            spread: vec![],
            style: Style::Dashed,
            color: Some(color),
        }));
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
    for name in curves.by_model.keys().filter(|it| *it != TRANSFORMER) {
        let ratios = curves.ratios(name, TRANSFORMER);
        if ratios.is_empty() {
            continue;
        }
        run.find(verdict(name, run.name, &ratios))?;
        let mark = |x: f64| Mark {
            x,
            label: format!("{name} = transformer at {x:.0}"),
        };
        marks.extend(places(&ratios).into_iter().map(mark));
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

/// How fast a model is beside another at some length: above 1 is faster.
#[derive(Clone, Copy, Debug)]
struct Ratio {
    length: f64,
    speed: f64,
    /// Standard error of `speed`.
    error: f64,
}

impl Ratio {
    /// Whether both differ by more than twice the error.
    fn shows(&self) -> bool {
        (self.speed - 1.0).abs() > 2.0 * self.error
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shows() || self.error.is_infinite() {
            true => write!(f, "{:.2} times as fast", self.speed),
            false => write!(f, "as fast"),
        }?;
        write!(f, " at length {:.0}", self.length)
    }
}

/// Lengths at which one overtakes the other. What lies within the error makes no further ones.
fn places(ratios: &[Ratio]) -> Vec<f64> {
    let crossings = |ratios: &[Ratio]| {
        let curve: Vec<_> = ratios.iter().map(|it| (it.length, it.speed)).collect();
        let even: Vec<_> = ratios.iter().map(|it| (it.length, 1.0)).collect();
        match crossing(&curve, &even) {
            Some(Crossing::At(places)) => places,
            _ => Vec::new(),
        }
    };
    let sure: Vec<_> = ratios.iter().copied().filter(Ratio::shows).collect();
    let (all, sure) = (crossings(ratios), crossings(&sure));
    // Points within the error tell best where it is, if there is one.
    match (all.len(), sure.len()) {
        (1, 1) => all,
        _ => sure,
    }
}

/// Who is faster where, in a sentence. There is at least one ratio, in ascending order of lengths.
fn verdict(name: &str, device: &str, ratios: &[Ratio]) -> String {
    let (first, last) = (ratios[0], ratios[ratios.len() - 1]);
    let ends = match ratios.len() {
        1 => format!("{first} as the {TRANSFORMER}"),
        _ => format!("{first} and {last}"),
    };
    if ratios.iter().any(|it| it.error.is_infinite()) {
        return format!(
            "On {device}, {name} beside the {TRANSFORMER}: {ends}; fewer than three rounds do not tell whether that is noise."
        );
    }
    if ratios.len() == 1 {
        return format!("On {device}, {name} is {ends}.");
    }
    const BOTH: &str = "at every length at which both were measured";
    let faster = |it: &Ratio| it.shows() && it.speed > 1.0;
    let slower = |it: &Ratio| it.shows() && it.speed < 1.0;
    let any = |which: fn(&Ratio) -> bool| ratios.iter().any(which);
    let all = |which: fn(&Ratio) -> bool| ratios.iter().all(which);
    let places: Vec<_> = places(ratios)
        .iter()
        .map(|place| format!("{place:.0}"))
        .collect();
    let where_ = match (any(faster), any(slower)) {
        (false, false) => format!("{name} is as fast as the {TRANSFORMER} {BOTH}"),
        (true, false) if all(faster) => {
            format!("{name} is faster than the {TRANSFORMER} {BOTH}")
        }
        (false, true) if all(slower) => {
            format!("the {TRANSFORMER} is faster than {name} {BOTH}")
        }
        (true, false) => format!("{name} is faster than the {TRANSFORMER} or as fast {BOTH}"),
        (false, true) => format!("the {TRANSFORMER} is faster than {name} or as fast {BOTH}"),
        (true, true) if places.len() == 1 => {
            let transformer = format!("the {TRANSFORMER}");
            let (before, after) = match ratios.iter().find(|it| it.shows()).is_some_and(slower) {
                true => (transformer.as_str(), name),
                false => (name, transformer.as_str()),
            };
            format!(
                "{before} is faster below length {}, {after} above it",
                places[0]
            )
        }
        (true, true) => format!(
            "{name} and the {TRANSFORMER} change places at lengths {}",
            places.join(", ")
        ),
    };
    format!("On {device}, {where_}: {name} is {ends}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::testing::row;

    /// Ratios at lengths that double, with an error of 1 %.
    fn ratios(speeds: &[f64]) -> Vec<Ratio> {
        let ratio = |(index, &speed): (usize, &f64)| Ratio {
            length: 64.0 * f64::powi(2.0, index as i32),
            speed,
            error: 0.01 * speed,
        };
        speeds.iter().enumerate().map(ratio).collect()
    }

    #[test]
    fn the_verdict_says_where_the_transformer_wins() {
        let text = verdict("mamba1", "flex", &ratios(&[0.125, 0.5, 2.0, 8.0]));
        for part in [
            "the transformer is faster below length 181, mamba1 above it",
            "0.12 times as fast at length 64 and 8.00 times as fast at length 512.",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let text = verdict("mamba1", "flex", &ratios(&[0.125]));
        assert_eq!(
            text,
            "On flex, mamba1 is 0.12 times as fast at length 64 as the transformer."
        );
    }

    #[test]
    fn what_lies_within_the_error_is_as_fast() {
        let said = |speeds: &[f64]| verdict("mamba2", "wgpu", &ratios(speeds));
        for (speeds, part) in [
            (
                &[1.004, 2.0][..],
                "faster than the transformer or as fast at every length at which both were measured",
            ),
            (
                &[1.5, 2.0],
                "mamba2 is faster than the transformer at every length at which both",
            ),
            (
                &[0.5, 0.99],
                "the transformer is faster than mamba2 or as fast at every length",
            ),
            (
                &[0.99, 1.004, 1.01],
                "mamba2 is as fast as the transformer at every length",
            ),
            (
                &[1.004, 2.0],
                "mamba2 is as fast at length 64 and 2.00 times as fast at length 128.",
            ),
        ] {
            assert!(said(speeds).contains(part), "{part}: {}", said(speeds));
        }
        // Once overtaken, whatever noise says.
        let (noisy, often) = (ratios(&[0.5, 1.01, 0.99, 2.0]), ratios(&[0.5, 2.0, 0.5]));
        assert_eq!((places(&noisy).len(), places(&often).len()), (1, 2));
        let text = verdict("mamba2", "wgpu", &often);
        assert!(text.contains("change places at lengths 91, 181"), "{text}");
    }

    #[test]
    fn one_round_tells_nothing_for_sure() {
        let mut one = ratios(&[2.0, 2.0]);
        one[0].error = f64::INFINITY;
        let text = verdict("mamba1", "flex", &one);
        assert!(text.contains("fewer than three rounds"), "{text}");
        assert!(!text.contains("every length"), "{text}");
    }

    #[test]
    fn only_lengths_of_both_are_compared() {
        let mut curves = Curves::default();
        for (model, length, ms) in [
            ("mamba1", 64, [4.0; 3]),
            ("mamba1", 128, [8.0; 3]),
            (TRANSFORMER, 64, [2.0; 3]),
        ] {
            curves.add(&row(model, length, &ms));
        }
        let ratios = curves.ratios("mamba1", TRANSFORMER);
        let [ratio] = ratios[..] else {
            panic!("{ratios:?}");
        };
        assert_eq!((ratio.length, ratio.speed, ratio.error), (64.0, 0.5, 0.0));
    }
}
