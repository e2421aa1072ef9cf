use super::figures::FIGURES;
use super::{Entry, Results, Row};

/// Cores kept busy by others below which a machine counts as quiet: what a desktop's background tasks need.
const QUIET: f64 = 0.1;

/// All that was found, for a terminal: rows, what is missing, exponents, sentences.
pub fn table(results: &Results) -> String {
    let mut text = String::new();
    for line in results.heads.iter().flat_map(|head| head.lines()) {
        text += &line;
        text.push('\n');
    }
    text.push('\n');
    text += &rows(&results.rows);
    let busiest = results
        .rows
        .iter()
        .filter_map(|row| row.time.as_ref()?.other_cores)
        .fold(0.0, f64::max);
    if busiest > QUIET {
        text += &format!(
            "* Others kept up to {busiest:.1} cores busy meanwhile: measure again on a quiet machine.\n"
        );
    }
    for absent in &results.absent {
        let length = absent
            .length
            .map_or(String::new(), |length| format!(" at length {length}"));
        text += &format!(
            "Not measured: {} by {} on {}{length}: {}\n",
            absent.problem, absent.engine, absent.device, absent.reason
        );
    }
    for growth in &results.growth {
        let error = growth
            .law
            .error
            .map_or(String::new(), |error| format!(" +- {error:.2}"));
        text += &format!(
            "{} by {} on {}: time grows with length to the power {:.2}{error} (lengths {} to {})\n",
            growth.problem,
            growth.engine,
            growth.device,
            growth.law.exponent,
            growth.lengths[0],
            growth.lengths[1]
        );
    }
    for finding in &results.findings {
        text += finding;
        text.push('\n');
    }
    text
}

/// One entry as a line, when it is there; none for what the table alone shows.
pub fn line(entry: &Entry) -> Option<String> {
    Some(match entry {
        Entry::Head(head) => head.lines().join("\n"),
        Entry::Proof(proof) => {
            format!(
                "proved: {} (error {:.1e}, allowed {:.0e})",
                proof.claim, proof.error, proof.tolerance
            )
        }
        Entry::Row(row) => {
            let key = &row.key;
            let time = row.time.as_ref().map_or(String::new(), |time| {
                format!(
                    " {} ms [{}, {}]",
                    digits(time.median_ms),
                    digits(time.q1_ms),
                    digits(time.q3_ms)
                )
            });
            let mut text = format!(
                "{}, {}, {} x {}:{time}",
                key.problem, key.engine, key.batch, key.length
            );
            for figure in FIGURES {
                if let Some(value) = row.figures.get(figure.name) {
                    text += &format!("  {:.*} {}", figure.decimals, value, figure.title);
                }
            }
            text
        }
        Entry::Absent(absent) => format!(
            "{}, {}: not measured: {}",
            absent.problem, absent.engine, absent.reason
        ),
        Entry::Growth(_) | Entry::Finding { .. } => return None,
    })
}

fn rows(rows: &[Row]) -> String {
    let figures: Vec<_> = FIGURES
        .iter()
        .filter(|figure| rows.iter().any(|row| row.figures.contains_key(figure.name)))
        .collect();
    let mut head = vec![
        "problem",
        "engine",
        "device",
        "type",
        "batch",
        "length",
        "ms",
        "quartiles",
    ];
    head.extend(figures.iter().map(|figure| figure.title));
    let mut lines = vec![head.into_iter().map(String::from).collect::<Vec<_>>()];
    for Row {
        key,
        time,
        figures: values,
    } in rows
    {
        let mut cells = vec![
            key.problem.clone(),
            key.engine.clone(),
            key.device.clone(),
            key.precision.clone(),
            key.batch.to_string(),
            key.length.to_string(),
        ];
        match time {
            Some(time) => {
                let mark = if time.other_cores.is_some_and(|cores| cores > QUIET) {
                    "*"
                } else {
                    ""
                };
                cells.push(digits(time.median_ms));
                cells.push(format!(
                    "{} to {}{mark}",
                    digits(time.q1_ms),
                    digits(time.q3_ms)
                ));
            }
            None => cells.extend([String::new(), String::new()]),
        }
        cells.extend(figures.iter().map(|figure| {
            values
                .get(figure.name)
                .map_or("-".into(), |value| format!("{value:.*}", figure.decimals))
        }));
        lines.push(cells);
    }
    aligned(&lines)
}

/// Columns as wide as their widest cell: names to the left, numbers to the right. A column that is the same all the
/// way down, names of devices and types, is kept: it tells.
fn aligned(lines: &[Vec<String>]) -> String {
    const NAMES: usize = 4;
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells =
            line.iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| match column < NAMES {
                    true => format!("{cell:<width$}"),
                    false => format!("{cell:>width$}"),
                });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Three digits or more, as a reader needs them.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::row;
    use super::super::{Absent, Growth};
    use super::*;
    use crate::fit::PowerLaw;

    #[test]
    fn a_table_has_rows_gaps_exponents_and_sentences() {
        let mut results = Results::default();
        results
            .rows
            .push(row("mamba1", 64, &[1.0, 2.0, 3.0]).with("tokens_per_second", 64_000.0));
        results.rows.push(row("transformer", 16_384, &[123.4]));
        results.push(Entry::Absent(Absent {
            problem: "mamba2".into(),
            engine: "mamba-lab".into(),
            device: "flex".into(),
            length: Some(64),
            reason: "out of memory".into(),
        }));
        results.push(Entry::Growth(Growth {
            problem: "mamba1".into(),
            engine: "mamba-lab".into(),
            device: "flex".into(),
            law: PowerLaw {
                exponent: 1.004,
                factor: 1.0,
                error: Some(0.02),
            },
            lengths: [1024, 4096],
        }));
        results.push(Entry::Finding {
            text: "It is so.".into(),
        });
        let text = table(&results);
        for part in [
            "1.50 to 2.50*",
            "64000",
            "16384",
            "123",
            "at length 64: out of memory",
            "power 1.00 +- 0.02",
            "It is so.",
            "quiet machine",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let column = |line: &str| line.find("flex");
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.contains("mamba-lab  flex"))
            .collect();
        assert!(
            lines.len() == 2 && column(lines[0]) == column(lines[1]),
            "{text}"
        );
    }
}
