//! The experiments that come with the program, and those in files.

use std::path::Path;

use anyhow::{Result, bail};
use mamba_train::experiment::Experiment;

/// Name and text of every experiment that comes with the program.
const BUILT_IN: [(&str, &str); 8] = [
    (
        "quickstart",
        include_str!("../../../experiments/quickstart.toml"),
    ),
    (
        "tutorial-mamba",
        include_str!("../../../experiments/tutorial-mamba.toml"),
    ),
    (
        "tutorial-transformer",
        include_str!("../../../experiments/tutorial-transformer.toml"),
    ),
    (
        "mamba-wikitext2",
        include_str!("../../../experiments/mamba-wikitext2.toml"),
    ),
    (
        "mamba2-wikitext2",
        include_str!("../../../experiments/mamba2-wikitext2.toml"),
    ),
    (
        "transformer-wikitext2",
        include_str!("../../../experiments/transformer-wikitext2.toml"),
    ),
    (
        "hybrid-wikitext2",
        include_str!("../../../experiments/hybrid-wikitext2.toml"),
    ),
    (
        "finetune",
        include_str!("../../../experiments/finetune.toml"),
    ),
];

/// The experiment in the file `which`, or the built-in one of that name, with `key=value`
/// overrides.
pub fn load(which: &str, overrides: &[String]) -> Result<Experiment> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == which) {
        return Experiment::parse(text, &format!("experiment {name}"), overrides);
    }
    let path = Path::new(which);
    if !path.is_file() {
        bail!(
            "there is no experiment {which}: give the path of a TOML file or one of {}",
            BUILT_IN.map(|(name, _)| name).join(", ")
        );
    }
    Experiment::load(path, overrides)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_experiment_is_valid_and_carries_its_name() {
        for (name, _) in BUILT_IN {
            let experiment = load(name, &[]).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(experiment.name, name);
        }
    }
}
