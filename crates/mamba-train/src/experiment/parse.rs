//! TOML over defaults, with errors that name the key.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use toml::{Table, Value};

use super::Experiment;

/// Names closer than this to an unknown key are offered instead of the list of known ones.
const NEAR: f64 = 0.8;

pub(super) fn load(path: &Path, overrides: &[String]) -> Result<Experiment> {
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the experiment {}; give a TOML file",
            path.display()
        )
    })?;
    parse(&text, &path.display().to_string(), overrides)
}

pub(super) fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Experiment> {
    let mut given: Table = text
        .parse()
        .with_context(|| format!("{origin} is not valid TOML; correct the file"))?;
    for assignment in overrides {
        apply_override(&mut given, assignment)?;
    }

    let mut resolved = Table::try_from(Experiment::default())?;
    merge(&mut resolved, &given);
    let experiment: Experiment =
        serde_path_to_error::deserialize(Value::Table(resolved)).map_err(|error| {
            let key = error.path().to_string();
            anyhow!("{origin}: {key}: {}", error.into_inner().to_string().trim())
        })?;

    // Whatever serde ignored is absent when the experiment is written out again. Comparing with
    // that needs no list of keys, and works for sections whose types live in other crates.
    let known = Table::try_from(&experiment)?;
    reject_unknown(&given, &known, "").with_context(|| origin.to_string())?;
    experiment.validate().with_context(|| origin.to_string())?;
    Ok(experiment)
}

fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

fn apply_override(table: &mut Table, assignment: &str) -> Result<()> {
    let (path, value) = assignment
        .split_once('=')
        .with_context(|| format!("--set {assignment}: expected section.key=value"))?;
    let path = path.trim();
    let value = parse_value(value.trim())
        .with_context(|| format!("--set {path}: the value is not valid TOML"))?;

    let mut keys: Vec<&str> = path.split('.').collect();
    ensure!(
        keys.iter().all(|key| !key.is_empty()),
        "--set {path}: expected section.key=value"
    );
    let last = keys.pop().expect("split yields at least one key");
    let mut table = table;
    for key in keys {
        let entry = table
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()));
        table = match entry {
            Value::Table(table) => table,
            _ => bail!("--set {path}: `{key}` is a value, not a section"),
        };
    }
    table.insert(last.to_string(), value);
    Ok(())
}

/// A TOML value; a bare word stands for itself, because shells take the quotes away.
fn parse_value(text: &str) -> Result<Value> {
    match format!("value = {text}").parse::<Table>() {
        Ok(mut table) => Ok(table.remove("value").expect("the key was just written")),
        Err(_) if !text.is_empty() && !text.starts_with(['"', '\'', '[', '{']) => {
            Ok(Value::String(text.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

fn reject_unknown(given: &Table, known: &Table, path: &str) -> Result<()> {
    for (key, value) in given {
        let full = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        match known.get(key) {
            Some(known) => reject_unknown_value(value, known, &full)?,
            None => bail!("unknown key `{full}`; {}", suggestion(key, known)),
        }
    }
    Ok(())
}

fn reject_unknown_value(given: &Value, known: &Value, path: &str) -> Result<()> {
    match (given, known) {
        (Value::Table(given), Value::Table(known)) => reject_unknown(given, known, path),
        (Value::Array(given), Value::Array(known)) => given
            .iter()
            .zip(known)
            .enumerate()
            .try_for_each(|(i, (given, known))| {
                reject_unknown_value(given, known, &format!("{path}[{i}]"))
            }),
        _ => Ok(()),
    }
}

fn suggestion(key: &str, known: &Table) -> String {
    let nearest = known
        .keys()
        .map(|name| (strsim::jaro_winkler(key, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((similarity, name)) if similarity >= NEAR => format!("did you mean `{name}`?"),
        _ => {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            format!("known keys here: {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::OptimizerKind;

    fn error(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        format!("{:#}", parse(text, "test.toml", &overrides).unwrap_err())
    }

    #[test]
    fn short_file_is_completed_with_defaults() {
        let experiment = parse(
            "name = \"a\"\n[training]\nlearning_rate = 1\n",
            "test.toml",
            &[],
        )
        .unwrap();
        assert_eq!(experiment.name, "a");
        assert_eq!(experiment.training.learning_rate, 1.0);
        assert_eq!(experiment.training.beta_1, 0.9);
        assert_eq!(experiment.data.seq_len, 128);
    }

    #[test]
    fn resolved_experiment_reads_back_unchanged() {
        let text = Experiment::default().to_toml().unwrap();
        let again = parse(&text, "config.toml", &[]).unwrap();
        assert_eq!(again.to_toml().unwrap(), text);
    }

    #[test]
    fn overrides_win_over_the_file() {
        let overrides = [
            "training.optimizer=adam".to_string(),
            "data.seq_len = 16".to_string(),
            "sample.prompt=\"Once upon\"".to_string(),
        ];
        let experiment = parse("[data]\nseq_len = 8\n", "test.toml", &overrides).unwrap();
        assert_eq!(experiment.training.optimizer, OptimizerKind::Adam);
        assert_eq!(experiment.data.seq_len, 16);
        assert_eq!(experiment.sample.prompt, "Once upon");
    }

    #[test]
    fn unknown_key_is_named_with_the_nearest_one() {
        let message = error("[training]\nlearning_rat = 1\n", &[]);
        assert!(
            message.contains("unknown key `training.learning_rat`"),
            "{message}"
        );
        assert!(
            message.contains("did you mean `learning_rate`?"),
            "{message}"
        );
    }

    #[test]
    fn far_key_lists_the_known_ones() {
        let message = error("", &["data.zzz=1"]);
        assert!(message.contains("unknown key `data.zzz`"), "{message}");
        assert!(message.contains("seq_len"), "{message}");
    }

    #[test]
    fn unknown_model_key_is_named() {
        let message = error("", &["model.d_modell=3"]);
        assert!(
            message.contains("unknown key `model.d_modell`"),
            "{message}"
        );
        let message = error("", &["model.mamba1.d_stat=3"]);
        assert!(
            message.contains("unknown key `model.mamba1.d_stat`"),
            "{message}"
        );
        assert!(message.contains("did you mean `d_state`?"), "{message}");
    }

    #[test]
    fn wrong_type_names_the_key() {
        let message = error("[training]\nepochs = \"two\"\n", &[]);
        assert!(
            message.contains("test.toml: training.epochs: invalid type"),
            "{message}"
        );
        let message = error("", &["model.vocab_size=many"]);
        assert!(
            message.contains("model.vocab_size: invalid type"),
            "{message}"
        );
    }

    #[test]
    fn value_in_place_of_a_section_names_the_key() {
        let message = error("data = 3\n", &["data.seq_len=2"]);
        assert!(message.contains("`data` is a value"), "{message}");
    }

    #[test]
    fn values_out_of_range_name_the_key() {
        for (assignment, key) in [
            ("training.beta_1=1.0", "training.beta_1"),
            ("training.learning_rate=-1", "training.learning_rate"),
            ("training.learning_rate=nan", "training.learning_rate"),
            ("training.grad_accum=0", "training.grad_accum"),
            ("data.seq_len=0", "data.seq_len"),
            ("model.max_positions=64", "data.seq_len"),
            // In 32 bits these are 0, 0, 1, 1 and infinite.
            ("training.epsilon=1e-50", "training.epsilon"),
            ("training.clip_norm=1e-50", "training.clip_norm"),
            ("training.beta_1=0.99999999", "training.beta_1"),
            ("training.beta_2=0.99999999", "training.beta_2"),
            ("training.weight_decay=1e39", "training.weight_decay"),
            ("sample.temperature=1e39", "sample.temperature"),
            ("model.mamba1.d_state=0", "model.mamba1.d_state"),
            ("name=../escape", "name"),
        ] {
            let message = error("", &[assignment]);
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn override_without_value_is_an_error() {
        assert!(error("", &["data.seq_len"]).contains("section.key=value"));
        assert!(error("", &["sample.prompt=\"open"]).contains("--set sample.prompt"));
    }
}
