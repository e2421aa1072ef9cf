use std::collections::BTreeMap;
use std::fmt::Write;

use super::table::digits;
use super::{Key, Results, Time};

/// The same thing measured twice.
#[derive(Clone, Debug)]
pub struct Change {
    /// What.
    pub key: Key,
    /// Median milliseconds, before and after.
    pub ms: [f64; 2],
    /// Speed after over speed before: above 1 is faster.
    pub speed: f64,
    /// Standard error of `speed`, by the spread of the rounds of both; infinite where one has fewer than three.
    pub error: f64,
}

impl Change {
    /// The time by which it got slower, as a share of the time before; below 0 if it got faster.
    pub fn slower_by(&self) -> f64 {
        self.speed.recip() - 1.0
    }

    /// Whether it got slower by more than `share`, and by more than twice the error: noise fails nothing.
    pub fn fails(&self, share: f64) -> bool {
        self.slower_by() > share && 1.0 - self.speed > 2.0 * self.error
    }
}

/// Two runs side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What both measured, in the order of the first.
    pub changes: Vec<Change>,
    /// What only the first measured, and only the second.
    pub alone: [Vec<Key>; 2],
}

impl Comparison {
    /// Pairs rows of equal keys.
    pub fn new(before: &Results, after: &Results) -> Self {
        let [first, second] = [before, after].map(times);
        let ordered = before.rows.iter().map(|row| &row.key);
        let mut changes = Vec::new();
        for key in ordered {
            if let (Some(a), Some(b)) = (first.get(key), second.get(key)) {
                let speed = a.median_ms / b.median_ms;
                let error = speed * a.error().hypot(b.error());
                changes.push(Change {
                    key: key.clone(),
                    ms: [a.median_ms, b.median_ms],
                    speed,
                    error,
                });
            }
        }
        let alone = |these: &BTreeMap<&Key, &Time>, those: &BTreeMap<&Key, &Time>| {
            these
                .keys()
                .filter(|key| !those.contains_key(*key))
                .map(|&key| key.clone())
                .collect()
        };
        Self {
            changes,
            alone: [alone(&first, &second), alone(&second, &first)],
        }
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<20}{:<16}{:<8}{:>6}{:>9}{:>12}{:>12}  {}\n",
            "problem",
            "engine",
            "device",
            "batch",
            "length",
            "before, ms",
            "after, ms",
            "speed, after over before"
        );
        for Change {
            key,
            ms,
            speed,
            error,
        } in &self.changes
        {
            let verdict = match (speed - 1.0).abs() > 2.0 * error {
                _ if error.is_infinite() => "+- unknown: fewer than three rounds".into(),
                true if *speed > 1.0 => format!("+- {error:.3}, faster"),
                true => format!("+- {error:.3}, slower"),
                false => format!("+- {error:.3}, no difference that shows"),
            };
            let _ = writeln!(
                text,
                "{:<20}{:<16}{:<8}{:>6}{:>9}{:>12}{:>12}  {speed:.3} {verdict}",
                key.problem,
                key.engine,
                key.device,
                key.batch,
                key.length,
                digits(ms[0]),
                digits(ms[1])
            );
        }
        let unknown = self.changes.iter().filter(|it| it.error.is_infinite());
        if let count @ 1.. = unknown.count() {
            let _ = writeln!(
                text,
                "{count} of {} fail nothing, however slow: measure both runs in three rounds or more",
                self.changes.len()
            );
        }
        for (keys, which) in self.alone.iter().zip(["first", "second"]) {
            if !keys.is_empty() {
                let names = keys.iter().map(|key| {
                    format!(
                        "{} x {} of {} by {}",
                        key.batch, key.length, key.problem, key.engine
                    )
                });
                let _ = writeln!(
                    text,
                    "Only in the {which}: {}",
                    names.collect::<Vec<_>>().join("; ")
                );
            }
        }
        text
    }
}

/// Of equal keys the first counts.
fn times(results: &Results) -> BTreeMap<&Key, &Time> {
    let timed = results
        .rows
        .iter()
        .filter_map(|row| Some((&row.key, row.time.as_ref()?)));
    timed.rev().collect()
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::super::testing::row;
    use super::*;

    fn results(rows: Vec<Row>) -> Results {
        Results {
            rows,
            ..Results::default()
        }
    }

    #[test]
    fn a_slower_row_fails_and_a_noisy_one_does_not() {
        let before = results(vec![
            row("steady", 64, &[10.0, 10.1, 9.9, 10.0]),
            row("noisy", 64, &[10.0, 30.0, 5.0, 12.0]),
            row("gone", 64, &[1.0]),
        ]);
        let after = results(vec![
            row("noisy", 64, &[14.0, 40.0, 6.0, 13.0]),
            row("steady", 64, &[12.5, 12.4, 12.6, 12.5]),
        ]);
        let comparison = Comparison::new(&before, &after);
        let [steady, noisy] = &comparison.changes[..] else {
            panic!("two in common")
        };
        assert!((steady.speed - 0.8).abs() < 1e-9 && (steady.slower_by() - 0.25).abs() < 1e-9);
        assert!(steady.fails(0.1) && !steady.fails(0.3), "{steady:?}");
        assert!(noisy.slower_by() > 0.1 && !noisy.fails(0.1), "{noisy:?}");
        assert_eq!(
            (comparison.alone[0].len(), comparison.alone[1].len()),
            (1, 0)
        );
        let text = comparison.table();
        assert!(
            text.contains("slower") && text.contains("no difference") && text.contains("gone"),
            "{text}"
        );
    }

    #[test]
    fn what_was_measured_once_or_twice_fails_nothing_and_says_so() {
        let run = |ms: &[f64]| results(vec![row("scan", 64, ms)]);
        for few in [&[1.0][..], &[1.0, 1.0]] {
            for (before, after) in [(few, &[9.0; 5][..]), (&[0.1; 5], few)] {
                let comparison = Comparison::new(&run(before), &run(after));
                assert!(!comparison.changes[0].fails(0.1));
                let text = comparison.table();
                assert!(
                    text.contains("+- unknown: fewer than three rounds"),
                    "{text}"
                );
                assert!(text.contains("1 of 1 fail nothing"), "{text}");
            }
        }
        let comparison = Comparison::new(&run(&[1.0; 3]), &run(&[9.0; 3]));
        assert!(comparison.changes[0].fails(0.1));
    }

    #[test]
    fn a_run_equals_itself() {
        let run = results(vec![row("scan", 64, &[3.0, 3.1, 3.2])]);
        let comparison = Comparison::new(&run, &run);
        assert_eq!(comparison.changes[0].speed, 1.0);
        assert!(!comparison.changes[0].fails(0.0));
    }
}
