//! Results as JSON lines and as a table.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::Provenance;
use crate::measure::{Measurement, Samples};
use crate::proofs::Proof;

/// One line of the JSON file.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// What the numbers below it come from.
    Run {
        /// Machine, sources and command.
        #[serde(flatten)]
        provenance: Provenance,
        /// Version of PyTorch.
        torch: String,
    },
    /// A comparison that passed before the numbers below it were taken.
    Proof(Proof),
    /// A duration.
    Time(Time),
    /// The largest resident size of a process that did one thing only.
    Memory {
        /// What it did.
        problem: &'static str,
        /// Who did it.
        engine: &'static str,
        /// Bytes.
        bytes: u64,
    },
    /// How time grows with the length of the sequences.
    Growth {
        /// Of what.
        problem: &'static str,
        /// Whose.
        engine: &'static str,
        /// `p` of `time = c * seq_len^p`.
        exponent: f64,
    },
    /// A duration against the least time that its arithmetic takes.
    Roofline {
        /// Of what.
        problem: &'static str,
        /// Sizes.
        size: String,
        /// Arithmetic vector instructions of 16 values.
        instructions: f64,
        /// Milliseconds of as many fused multiply-adds on registers, one value a round.
        floor_ms: Samples,
        /// Milliseconds of the op, one value a round.
        ms: Samples,
        /// The second over the first, round by round.
        ratio: Samples,
        /// Cores that other processes kept busy meanwhile.
        other_cores: Option<f64>,
    },
}

/// What [`Record::Time`] holds.
#[derive(Clone, Debug, Serialize)]
pub struct Time {
    /// What was done.
    pub problem: &'static str,
    /// Who did it.
    pub engine: &'static str,
    /// Sequences at once.
    pub batch: usize,
    /// Positions of a sequence.
    pub seq_len: usize,
    /// Milliseconds of a call, one value a round.
    pub ms: Samples,
    /// Tokens a second at the median.
    pub tokens_per_second: f64,
    /// This engine's time over ours, round by round; absent for ours.
    pub over_ours: Option<Samples>,
    /// Cores that other processes kept busy meanwhile.
    pub other_cores: Option<f64>,
}

impl Record {
    /// One record an engine, ours first.
    pub fn times(
        problem: &'static str,
        [batch, seq_len]: [usize; 2],
        engines: &[&'static str],
        measured: &[Measurement],
    ) -> Vec<Self> {
        let ours = &measured[0].ms;
        let record = |(i, (engine, measurement)): (usize, (&&'static str, &Measurement))| {
            Self::Time(Time {
                problem,
                engine,
                batch,
                seq_len,
                ms: measurement.ms.clone(),
                tokens_per_second: (batch * seq_len) as f64 / measurement.ms.median() * 1e3,
                over_ours: (i > 0).then(|| measurement.ms.over(ours)),
                other_cores: measurement.other_cores,
            })
        };
        engines
            .iter()
            .zip(measured)
            .enumerate()
            .map(record)
            .collect()
    }
}

/// As a line for people.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run {
                provenance: run,
                torch,
            } => {
                let memory = run
                    .memory_gib
                    .map_or(String::new(), |gib| format!(", {gib} GiB"));
                writeln!(f, "{}, {} cores{memory}, {}", run.cpu, run.cores, run.simd)?;
                let revision = run.revision.as_deref().unwrap_or("unknown");
                let date = run.date.as_deref().unwrap_or("unknown date");
                write!(
                    f,
                    "{} threads, revision {revision}, torch {torch}, {date}",
                    run.threads
                )?;
                run.environment
                    .iter()
                    .try_for_each(|variable| write!(f, ", {variable}"))
            }
            Self::Proof(Proof {
                claim,
                error,
                tolerance,
            }) => {
                write!(
                    f,
                    "proved: {claim} (error {error:.1e}, allowed {tolerance:.0e})"
                )
            }
            Self::Time(time) => time.fmt(f),
            Self::Memory {
                problem,
                engine,
                bytes,
            } => {
                let mib = *bytes as f64 / f64::from(1 << 20);
                write!(f, "{problem:<18} {engine:<20} peak memory {mib:>8.0} MiB")
            }
            Self::Growth {
                problem,
                engine,
                exponent,
            } => {
                write!(
                    f,
                    "{problem:<18} {engine:<20} time grows with length^{exponent:.2}"
                )
            }
            Self::Roofline {
                problem,
                size,
                instructions,
                floor_ms,
                ms,
                ratio,
                other_cores,
            } => {
                let floor = floor_ms.median();
                let peak = instructions * 32.0 / floor * 1e-6;
                write!(
                    f,
                    "{problem:<18} {size}: floor {floor:.1} ms at {peak:.0} GFLOP/s, measured \
                     {:.1} ms ({:.1} to {:.1}), {:.2} x the floor ({:.2} to {:.2}){}",
                    ms.median(),
                    ms.min(),
                    ms.max(),
                    ratio.median(),
                    ratio.min(),
                    ratio.max(),
                    Others(*other_cores)
                )
            }
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            problem,
            engine,
            seq_len,
            ms,
            tokens_per_second,
            ..
        } = self;
        write!(
            f,
            "{problem:<18} {engine:<20} {seq_len:>6} {:>10.1} ms {:>10.1} to {:<10.1} \
             {tokens_per_second:>9.0} tok/s",
            ms.median(),
            ms.min(),
            ms.max(),
        )?;
        if let Some(ratio) = &self.over_ours {
            let (min, max) = (ratio.min(), ratio.max());
            write!(f, " {:>8.2} x ours ({min:.2} to {max:.2})", ratio.median())?;
        }
        Others(self.other_cores).fmt(f)
    }
}

/// A warning beside numbers that were taken on a busy machine.
struct Others(Option<f64>);

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A core's share that a desktop's background tasks stay below.
        const QUIET: f64 = 0.1;
        match self.0 {
            Some(cores) if cores > QUIET => write!(f, "  [others kept {cores:.1} cores busy]"),
            _ => Ok(()),
        }
    }
}

/// Writes one JSON object a line.
///
/// # Errors
///
/// If the file or its folder cannot be written.
pub fn write_json_lines(path: &Path, records: &[impl Serialize]) -> Result<()> {
    let mut text = String::new();
    for record in records {
        text += &serde_json::to_string(record)?;
        text.push('\n');
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| {
            format!(
                "cannot create {}: choose another --output",
                folder.display()
            )
        })?;
    }
    fs::write(path, text)
        .with_context(|| format!("cannot write {}: choose another --output", path.display()))
}
