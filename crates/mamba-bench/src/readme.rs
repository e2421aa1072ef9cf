//! The README's measured table and its figure, made of `artifacts/bench/cpu-tutorial.json`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::measure::Samples;
use crate::plot::{Axis, Chart, Scale, Series, Style, number};

/// What the table lies between.
const BEGIN: &str =
    "<!-- made of artifacts/bench by `cargo run --release -p mamba-bench --example readme` -->\n";
const END: &str = "<!-- until here -->\n";

const RESULTS: &str = "artifacts/bench/cpu-tutorial.json";
const FIGURE: &str = "artifacts/figures/cpu-tutorial.svg";

/// Files, by their path from the root of the repository, as they should be.
///
/// # Errors
///
/// If the results or the README cannot be read, or the README has no place for the table.
pub fn files(root: &Path) -> Result<Vec<(&'static str, String)>> {
    let read = |path: &str| {
        fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
    };
    let run = Run::parse(&read(RESULTS)?)?;
    let readme = read("README.md")?;
    let (before, rest) = readme
        .split_once(BEGIN)
        .context("README.md has no place for the table")?;
    let (_, after) = rest
        .split_once(END)
        .context("README.md does not say where the table ends")?;
    let readme = format!("{before}{BEGIN}\n{}\n{END}{after}", run.table()?);
    Ok(vec![("README.md", readme), (FIGURE, run.figure())])
}

/// The lines of the results that are shown.
#[derive(Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
enum Line {
    Run(Machine),
    Time(Time),
    Memory(Memory),
    Growth {
        exponent: f64,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Machine {
    cpu: String,
    threads: usize,
    torch: String,
    date: String,
}

#[derive(Deserialize)]
struct Time {
    problem: String,
    engine: String,
    seq_len: usize,
    ms: Samples,
    tokens_per_second: f64,
    over_ours: Option<Samples>,
}

#[derive(Deserialize)]
struct Memory {
    engine: String,
    bytes: u64,
}

struct Run {
    machine: Machine,
    times: Vec<Time>,
    memory: Vec<Memory>,
    exponent: f64,
}

/// The columns: the engines' names in the results and in the table.
const ENGINES: [(&str, &str); 3] = [
    ("mamba-lab", "mamba-lab"),
    ("pytorch naive loop", "PyTorch, naive loop"),
    ("pytorch transformer", "PyTorch transformer, 2 layers, SDPA"),
];

impl Run {
    fn parse(text: &str) -> Result<Self> {
        let (mut machine, mut times, mut memory, mut exponent) =
            (None, Vec::new(), Vec::new(), None);
        for line in text.lines() {
            match serde_json::from_str(line).with_context(|| format!("{RESULTS}: {line}"))? {
                Line::Run(run) => machine = Some(run),
                Line::Time(time) => times.push(time),
                Line::Memory(bytes) => memory.push(bytes),
                Line::Growth { exponent: power } => exponent = Some(power),
                Line::Other => {}
            }
        }
        ensure!(!times.is_empty(), "{RESULTS} holds no times");
        Ok(Self {
            machine: machine.with_context(|| format!("{RESULTS} names no machine"))?,
            times,
            memory,
            exponent: exponent.with_context(|| format!("{RESULTS} holds no exponent"))?,
        })
    }

    fn table(&self) -> Result<String> {
        let Machine {
            cpu,
            threads,
            torch,
            date,
        } = &self.machine;
        let torch = torch.split('+').next().unwrap_or(torch);
        let date = date.split('T').next().unwrap_or(date);
        let names: Vec<_> = ENGINES.iter().map(|(_, name)| *name).collect();
        let mut text = format!(
            "{cpu}, {threads} threads, PyTorch {torch}, {date}:\n\n| | {} |\n|---|---|---|---|\n",
            names.join(" | ")
        );
        for length in self.lengths() {
            let cells =
                ENGINES.map(|(engine, _)| self.time("backbone forward", engine, Some(length)));
            let cells = cells.map(|time| {
                time.map_or(String::new(), |time| {
                    ratio(format!("{} ms", number(time.ms.median().round())), time)
                })
            });
            text += &format!(
                "| forward without head, length {} | {} |\n",
                number(length as f64),
                cells.join(" | ")
            );
        }
        let steps = ENGINES.map(|(engine, _)| self.time("training step", engine, None));
        if let Some(ours) = steps[0] {
            let cells = steps.map(|time| {
                time.map_or(String::new(), |time| {
                    ratio(
                        format!("{} tokens/s", number(time.tokens_per_second.round())),
                        time,
                    )
                })
            });
            let length = ours.seq_len;
            text += &format!(
                "| training step, length {length}, 50,257 entries | {} |\n",
                cells.join(" | ")
            );
        }
        let memory =
            ENGINES.map(|(engine, _)| self.memory.iter().find(|memory| memory.engine == engine));
        if memory.iter().any(Option::is_some) {
            let mib = |bytes: u64| {
                format!(
                    "{} MiB",
                    number((bytes as f64 / f64::from(1 << 20)).round())
                )
            };
            let cells =
                memory.map(|memory| memory.map_or(String::new(), |memory| mib(memory.bytes)));
            text += &format!("| peak memory of that step | {} |\n", cells.join(" | "));
        }
        let rounds = self.times[0].ms.values().len();
        text += &format!(
            "\nMedians of {rounds} rounds, each side as it ships; the factor is that of a round. Ours grows with length to the power {:.2}.\n",
            self.exponent
        );
        Ok(text)
    }

    fn figure(&self) -> String {
        let Machine {
            cpu,
            threads,
            torch,
            date,
        } = &self.machine;
        let series = ENGINES.iter().map(|(engine, name)| {
            let times = self
                .lengths()
                .into_iter()
                .filter_map(|length| self.time("backbone forward", engine, Some(length)));
            let times: Vec<_> = times.collect();
            Series {
                name: name.split(", 2").next().unwrap_or(name).into(),
                points: times
                    .iter()
                    .map(|time| (time.seq_len as f64, time.ms.median()))
                    .collect(),
                spread: times
                    .iter()
                    .map(|time| (time.ms.min(), time.ms.max()))
                    .collect(),
                style: Style::Line,
                color: None,
            }
        });
        let chart = Chart {
            title: "Forward time of the tutorial's models, batch 32".into(),
            subtitle: format!(
                "{cpu}, {threads} threads, f32, PyTorch {}, {}",
                torch.split('+').next().unwrap_or(torch),
                date.split('T').next().unwrap_or(date)
            ),
            x: Axis::new("positions of a sequence", Scale::Log2),
            y: Axis::new("milliseconds", Scale::Log10),
            series: series.collect(),
            marks: Vec::new(),
        };
        chart.svg()
    }

    fn lengths(&self) -> Vec<usize> {
        let forward = self
            .times
            .iter()
            .filter(|time| time.problem == "backbone forward");
        let mut lengths: Vec<_> = forward.map(|time| time.seq_len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    fn time(&self, problem: &str, engine: &str, length: Option<usize>) -> Option<&Time> {
        self.times.iter().find(|time| {
            time.problem == problem
                && time.engine == engine
                && length.is_none_or(|length| length == time.seq_len)
        })
    }
}

/// The cell with the factor over ours, where there is one.
fn ratio(cell: String, time: &Time) -> String {
    match &time.over_ours {
        Some(ratio) => format!("{cell}, {:.1}x", ratio.median()),
        None => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_the_results_say() {
        let lines = [
            r#"{"record":"run","cpu":"A CPU","threads":2,"torch":"2.9.1+cpu","date":"2026-11-22T17:10:27Z"}"#,
            r#"{"record":"proof","claim":"it holds","error":0.0,"tolerance":1.0}"#,
            r#"{"record":"time","problem":"backbone forward","engine":"mamba-lab","seq_len":1024,"ms":[104.0,100.0,112.0],"tokens_per_second":1.0,"over_ours":null}"#,
            r#"{"record":"time","problem":"backbone forward","engine":"pytorch naive loop","seq_len":1024,"ms":[1146.1],"tokens_per_second":1.0,"over_ours":[11.04]}"#,
            r#"{"record":"memory","engine":"mamba-lab","bytes":2097152}"#,
            r#"{"record":"growth","exponent":1.084}"#,
        ];
        let run = Run::parse(&lines.join("\n")).unwrap();
        let table = run.table().unwrap();
        for part in [
            "A CPU, 2 threads, PyTorch 2.9.1, 2026-11-22",
            "| forward without head, length 1,024 | 104 ms | 1,146 ms, 11.0x |  |",
            "| peak memory of that step | 2 MiB |  |  |",
            "Medians of 3 rounds",
            "power 1.08.",
        ] {
            assert!(table.contains(part), "{part}:\n{table}");
        }
        assert!(run.figure().contains("A CPU"));
        assert!(Run::parse(lines[0]).is_err());
    }
}
