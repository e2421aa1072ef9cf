//! What a user chooses.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use mamba_core::Precision;

use crate::beside::Beside;
use crate::limit::LeftOut;

/// What a user chooses.
#[derive(Debug)]
pub struct Options {
    /// The device, by name; the default one of the build if none is given.
    pub device: Option<String>,
    /// Small sizes and few rounds.
    pub quick: bool,
    /// The type of activations.
    pub precision: Precision,
    /// Problems whose name contains one of these; all if there are none.
    pub filter: Vec<String>,
    /// Lengths instead of the suites' own; none for those. What is asked of a suite by itself comes first.
    pub lengths: Vec<usize>,
    /// Batches instead of the suites' own, of those that have a choice; none for those.
    pub batches: Vec<usize>,
    /// Rounds instead of nine, or of five if it is `quick`.
    pub rounds: Option<usize>,
    /// No measurement begins so long after the start.
    pub time_limit: Option<Duration>,
    /// Where results go, or those of several suites, a folder each; `artifacts/bench` with a folder each if none is given.
    pub out: Option<PathBuf>,
    /// Who is to run beside ours.
    pub beside: Beside,
    /// Starts this program again to measure memory: it is given a [`Probe`](crate::probe::Probe) in JSON and prints a
    /// [`Reading`](crate::probe::Reading).
    pub probe: fn(&str) -> Result<Command>,
}

impl Options {
    /// Those of `names` that the filter lets through.
    ///
    /// # Errors
    ///
    /// If there are none, as a [`LeftOut`].
    pub fn filtered<T: AsRef<str>>(&self, names: Vec<T>) -> Result<Vec<T>, LeftOut> {
        let wanted = |name: &str| {
            let filter = &self.filter;
            filter.is_empty() || filter.iter().any(|part| name.contains(part.as_str()))
        };
        if !names.iter().any(|name| wanted(name.as_ref())) {
            let names: Vec<_> = names.iter().map(AsRef::as_ref).collect();
            return Err(LeftOut::Filter {
                filter: self.filter.join(","),
                problems: names.join(", "),
            });
        }
        let left = names.into_iter().filter(|name| wanted(name.as_ref()));
        Ok(left.collect())
    }
}
