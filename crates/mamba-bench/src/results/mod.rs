//! What suites find, on disk and for people.

mod compare;
mod csv;
mod figures;
mod folder;
mod head;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::fit::PowerLaw;
use crate::measure::{Measurement, Samples};
use crate::proofs::Proof;

pub use compare::{Change, Comparison};
pub use csv::csv;
pub use figures::{Figure, figure};
pub(crate) use folder::ROOM;
pub use folder::{Place, ResultFolder};
pub use head::{Head, is_cpu, threads};
pub(crate) use table::digits;
pub use table::{line, table};

/// One line of `results.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Entry {
    /// What the numbers below it come from.
    Head(Box<Head>),
    /// A comparison that passed before the numbers below it were taken.
    Proof(Proof),
    /// Something measured.
    Row(Box<Row>),
    /// Something that was not measured.
    Absent(Absent),
    /// How time grows with length.
    Growth(Growth),
    /// What the rows say, in a sentence.
    Finding {
        /// The sentence.
        text: String,
    },
}

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// A model or an operation, by its name in the catalogue, and what is done with it.
    pub problem: String,
    /// Who did it.
    pub engine: String,
    /// On what, as `--device` names it.
    pub device: String,
    /// The type of activations: `f32` or `bf16`.
    pub precision: String,
    /// Sequences at once.
    pub batch: usize,
    /// Positions of a sequence.
    pub length: usize,
}

/// Something measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What and where.
    #[serde(flatten)]
    pub key: Key,
    /// Milliseconds; absent where only figures were taken.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub time: Option<Time>,
    /// Further numbers by name; [`figure`] explains the names.
    pub figures: BTreeMap<String, f64>,
}

/// Durations in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Time {
    /// Half of the rounds took less.
    pub median_ms: f64,
    /// A quarter of the rounds took less.
    pub q1_ms: f64,
    /// A quarter of the rounds took more.
    pub q3_ms: f64,
    /// Cores that other processes kept busy meanwhile, where the system tells.
    pub other_cores: Option<f64>,
    /// One value a round.
    pub rounds_ms: Samples,
}

/// With fewer rounds nothing is known of the noise.
const FEWEST: usize = 3;

impl Time {
    /// Standard error of the median, as a share of it, by the quartiles of the rounds; infinite where there are fewer than three.
    pub fn error(&self) -> f64 {
        /// How much wider the error of a median is than that of a mean, for normal noise.
        const MEDIAN_OVER_MEAN: f64 = 1.2533;
        /// The distance of the quartiles of normal noise, in its standard deviations.
        const QUARTILES: f64 = 1.349;
        let rounds = self.rounds_ms.values().len();
        if rounds < FEWEST {
            return f64::INFINITY;
        }
        let deviation = (self.q3_ms - self.q1_ms) / QUARTILES;
        MEDIAN_OVER_MEAN * deviation / (rounds as f64).sqrt() / self.median_ms
    }
}

impl From<Measurement> for Time {
    fn from(Measurement { ms, other_cores }: Measurement) -> Self {
        Self {
            median_ms: ms.median(),
            q1_ms: ms.quantile(0.25),
            q3_ms: ms.quantile(0.75),
            other_cores,
            rounds_ms: ms,
        }
    }
}

impl Row {
    /// A measured duration.
    pub fn timed(key: Key, measurement: Measurement) -> Self {
        Self {
            key,
            time: Some(measurement.into()),
            figures: BTreeMap::new(),
        }
    }

    /// Figures alone.
    pub fn untimed(key: Key) -> Self {
        Self {
            key,
            time: None,
            figures: BTreeMap::new(),
        }
    }

    /// The same with a further figure, if there is one.
    ///
    /// # Panics
    ///
    /// If [`figure`] does not know the name.
    pub fn with(mut self, name: &str, value: impl Into<Option<f64>>) -> Self {
        assert!(figure(name).is_some(), "Row: no figure is called {name}");
        if let Some(value) = value.into() {
            self.figures.insert(name.into(), value);
        }
        self
    }

    /// The median in milliseconds.
    pub fn median_ms(&self) -> Option<f64> {
        self.time.as_ref().map(|time| time.median_ms)
    }
}

/// Something that was not measured, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Absent {
    /// A model or an operation.
    pub problem: String,
    /// Who should have done it.
    pub engine: String,
    /// On what.
    pub device: String,
    /// Positions of a sequence, where the reason holds for one length.
    pub length: Option<usize>,
    /// Why not.
    pub reason: String,
}

/// How the time of a problem grows with the length of a sequence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Growth {
    /// Of what.
    pub problem: String,
    /// Whose.
    pub engine: String,
    /// On what.
    pub device: String,
    /// Milliseconds a sequence over positions.
    #[serde(flatten)]
    pub law: PowerLaw,
    /// Shortest and longest sequence that count.
    pub lengths: [usize; 2],
}

/// All that a suite found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// One, or several where runs were put together.
    pub heads: Vec<Head>,
    /// In the order of their proof.
    pub proofs: Vec<Proof>,
    /// In the order of measurement.
    pub rows: Vec<Row>,
    /// What is missing.
    pub absent: Vec<Absent>,
    /// Fitted exponents.
    pub growth: Vec<Growth>,
    /// Sentences.
    pub findings: Vec<String>,
}

impl Results {
    /// Adds a line.
    pub fn push(&mut self, entry: Entry) {
        match entry {
            Entry::Head(head) => self.heads.push(*head),
            Entry::Proof(proof) => self.proofs.push(proof),
            Entry::Row(row) => self.rows.push(*row),
            Entry::Absent(absent) => self.absent.push(absent),
            Entry::Growth(growth) => self.growth.push(growth),
            Entry::Finding { text } => self.findings.push(text),
        }
    }

    /// Reads `results.json`, `results.jsonl`, or the folder that holds them; of a run that was cut off, what
    /// it had written.
    ///
    /// # Errors
    ///
    /// If there is no such file, or it is none of ours.
    pub fn read(path: &Path) -> Result<Self> {
        let path = match path.is_dir() {
            true => &folder::file_in(path),
            false => path,
        };
        let text = fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read {}: give the results.json of a run of bench, or its folder",
                path.display()
            )
        })?;
        if let Ok(results) = serde_json::from_str::<Self>(&text) {
            return Ok(results);
        }
        let mut results = Self::default();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            match serde_json::from_str(line) {
                Ok(entry) => results.push(entry),
                // The last line of a run that was cut off.
                Err(_) if lines.peek().is_none() && !results.heads.is_empty() => {}
                Err(error) => bail!("{} holds no results of bench: {error}", path.display()),
            }
        }
        if results.heads.is_empty() {
            bail!("{} holds no results of bench", path.display());
        }
        Ok(results)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A row of engine `mamba-lab` on `flex`.
    pub fn row(problem: &str, length: usize, ms: &[f64]) -> Row {
        let key = Key {
            problem: problem.into(),
            engine: "mamba-lab".into(),
            device: "flex".into(),
            precision: "f32".into(),
            batch: 2,
            length,
        };
        let measurement = Measurement {
            ms: Samples::new(ms.to_vec()),
            other_cores: Some(0.5),
        };
        Row::timed(key, measurement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "flex")]
    #[test]
    fn what_was_written_before_a_crash_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let head = Entry::Head(Box::new(Head::collect(
            "scaling",
            "flex",
            &burn::tensor::Device::flex(),
            vec![],
            "f32",
            true,
        )));
        let row = Entry::Row(Box::new(
            testing::row("mamba1", 64, &[1.0, 3.0, 2.0]).with("tokens_per_second", 5.0),
        ));
        let line = |entry| serde_json::to_string(entry).unwrap();
        let text = format!("{}\n{}\n{}", line(&head), line(&row), &line(&row)[..30]);
        fs::write(&path, text).unwrap();
        for path in [path.as_path(), folder.path()] {
            let results = Results::read(path).unwrap();
            assert_eq!(results.rows.len(), 1);
            assert_eq!(results.rows[0].median_ms(), Some(2.0));
            assert_eq!(results.rows[0].figures["tokens_per_second"], 5.0);
            assert_eq!(results.heads[0].suite, "scaling");
        }
        fs::write(&path, "{}").unwrap();
        let error = Results::read(&path).unwrap_err().to_string();
        assert!(error.contains("no results of bench"), "{error}");
    }
}
