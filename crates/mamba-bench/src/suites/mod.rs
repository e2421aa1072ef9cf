//! What is measured: problems brought together with engines.

mod asked;
mod backends;
#[cfg(feature = "flex")]
pub mod cpu_tutorial;
mod decode;
mod kernels;
mod memory;
mod op_peers;
mod peers;
mod prefill;
mod proving;
mod scaling;
mod sizes;
mod train;

use anyhow::{Context, Result};

pub use asked::Asked;

use crate::beside::Kind;
use crate::run::Run;

/// A suite of the catalogue.
#[derive(Debug)]
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// What peers do in it.
    pub peers: Kind,
    /// Whether it takes a user's batches.
    pub batches: bool,
    /// The names of its problems, which a filter chooses from; others if it is quick.
    pub problems: fn(quick: bool) -> Vec<&'static str>,
    /// Proves and measures.
    pub(crate) run: fn(&mut Run) -> Result<()>,
}

/// All suites.
pub const SUITES: [Suite; 7] = [
    Suite {
        name: "scaling",
        about: "forward time of the tutorial's models from 64 to 65,536 positions, with the fitted exponents",
        peers: Kind::Models,
        batches: false,
        problems: sizes::tutorial,
        run: scaling::run,
    },
    Suite {
        name: "prefill",
        about: "time to the first token of Mamba-130M, Mamba-2-130M, Pythia and GPT-2",
        peers: Kind::Models,
        batches: true,
        problems: sizes::names,
        run: prefill::run,
    },
    Suite {
        name: "decode",
        about: "tokens a second behind a prompt of the same models",
        peers: Kind::Models,
        batches: true,
        problems: sizes::names,
        run: decode::run,
    },
    Suite {
        name: "kernels",
        about: "scan, SSD, convolution, attention and steps against the device's measured peaks",
        peers: Kind::Operations,
        batches: false,
        problems: kernels::names,
        run: kernels::run,
    },
    Suite {
        name: "memory",
        about: "what the same models take for a prompt and remember of it: state against key-value cache",
        peers: Kind::None,
        batches: false,
        problems: sizes::names,
        run: memory::run,
    },
    Suite {
        name: "train",
        about: "training steps of the same models: tokens a second, peak memory, share of the device's peak",
        peers: Kind::Models,
        batches: true,
        problems: sizes::names,
        run: train::run,
    },
    Suite {
        name: "backends",
        about: "the tutorial's models, forward and training, on every backend of the build",
        peers: Kind::None,
        batches: false,
        problems: sizes::tutorial,
        run: backends::run,
    },
];

impl Suite {
    /// The suite of that name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn find(name: &str) -> Result<&'static Self> {
        let names = || {
            SUITES
                .iter()
                .map(|suite| suite.name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let found = SUITES.iter().find(|suite| suite.name == name);
        found.with_context(|| format!("unknown suite `{name}`: there are {}, and all", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_suite_is_answered_with_the_known_ones() {
        let error = Suite::find("speed").err().unwrap().to_string();
        assert!(error.contains("`speed`"), "{error}");
        for suite in &SUITES {
            assert!(error.contains(suite.name), "{error}");
            assert!(Suite::find(suite.name).is_ok() && !suite.about.is_empty());
        }
    }
}
