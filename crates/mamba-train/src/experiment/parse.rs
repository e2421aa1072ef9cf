//! TOML over defaults, with errors that name the key.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use toml::{Table, Value};

use super::Experiment;
use crate::files::toml_problem;

/// Names closer than this to an unknown key are offered instead of the list of known ones.
const NEAR: f64 = 0.8;

pub(super) fn load(path: &Path, overrides: &[String]) -> Result<Experiment> {
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the experiment {}; give a TOML file",
            path.display()
        )
    })?;
    let stem = path.file_stem().map(|it| it.to_string_lossy().into_owned());
    parse_named(&text, &path.display().to_string(), overrides, stem)
}

pub(super) fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Experiment> {
    parse_named(text, origin, overrides, None)
}

/// Parses an experiment that is called `name` where it does not say.
fn parse_named(
    text: &str,
    origin: &str,
    overrides: &[String],
    name: Option<String>,
) -> Result<Experiment> {
    let mut given: Table = text
        .parse()
        .map_err(|error| anyhow!("{origin} {}; correct the file", toml_problem(text, &error)))?;
    let mut set = Vec::new();
    for assignment in overrides {
        set.push(apply_override(&mut given, assignment)?);
    }
    if let Some(name) = name {
        given.entry("name").or_insert(Value::String(name));
    }
    resolve(&given, &set).map_err(|error| {
        let problem = error.to_string();
        match set.iter().find(|key| is_about(&problem, key)) {
            Some(key) if problem.starts_with(key.as_str()) => anyhow!("--set {problem}"),
            Some(_) => anyhow!("--set: {problem}"),
            None => anyhow!("{origin}: {problem}"),
        }
    })
}

/// Whether a problem lies with `key` or with something in that section.
fn is_about(problem: &str, key: &str) -> bool {
    let rest = problem.strip_prefix(key);
    rest.is_some_and(|rest| rest.starts_with([':', '.', ' ', '[']))
        || problem.contains(&format!("`{key}`"))
}

/// The experiment of what is `given` over the defaults, of which the keys in `set` come from the command line.
fn resolve(given: &Table, set: &[String]) -> Result<Experiment> {
    let mut resolved = Table::try_from(Experiment::default())?;
    merge(&mut resolved, given);
    let experiment: Experiment =
        serde_path_to_error::deserialize(Value::Table(resolved)).map_err(|error| {
            let key = error.path().to_string();
            anyhow!("{key}: {}", plain(error.into_inner().message()))
        })?;

    // Whatever serde ignored is absent when the experiment is written out again. Comparing with
    // that needs no list of keys, and works for sections whose types live in other crates.
    let known = Table::try_from(&experiment)?;
    reject_unknown(given, &known, "")?;
    experiment.validate()?;
    ensure!(
        set.iter().all(|key| key != "model.vocab_size"),
        "model.vocab_size: it follows the tokenizer; set data.tokenizer instead"
    );
    Ok(experiment)
}

/// What serde says, in one line and without the names of Rust's types.
fn plain(message: &str) -> String {
    let mut text = message.trim().replace('\n', ", ");
    for (rust, words) in [
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected f64", "expected a number"),
    ] {
        text = text.replace(rust, words);
    }
    text
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

/// Applies `section.key=value`, and returns the key with its section.
fn apply_override(table: &mut Table, assignment: &str) -> Result<String> {
    let (path, value) = assignment
        .split_once('=')
        .with_context(|| format!("--set {assignment}: expected section.key=value"))?;
    let path = path.trim();
    let value = parse_value(value.trim())
        .map_err(|error| anyhow!("--set {path}: the value is not valid TOML: {error}"))?;

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
    Ok(path.to_string())
}

/// A TOML value; a bare word stands for itself, because shells take the quotes away.
fn parse_value(text: &str) -> Result<Value, String> {
    match format!("value = {text}").parse::<Table>() {
        Ok(mut table) => Ok(table.remove("value").expect("the key was just written")),
        Err(_) if !text.is_empty() && !text.starts_with(['"', '\'', '[', '{']) => {
            Ok(Value::String(text.to_string()))
        }
        Err(error) => Err(plain(error.message())),
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
    fn a_bad_override_is_blamed_on_itself_in_one_line() {
        for (assignment, message) in [
            (
                "training.max_steps=-3",
                "--set training.max_steps: invalid value: integer `-3`, expected a whole number, 0 or more",
            ),
            (
                "training.precision=f16",
                "--set training.precision: unknown variant `f16`",
            ),
            (
                "training.grad_accum=0",
                "--set training.grad_accum: must be at least 1",
            ),
            (
                "model.mamba1.d_state=0",
                "--set model.mamba1.d_state must be between",
            ),
            (
                "model.pattern=[]",
                "--set model.pattern: must name at least one mixer",
            ),
            (
                "model.d_modell=3",
                "--set: unknown key `model.d_modell`; did you mean `d_model`?",
            ),
            (
                "model.vocab_size=100",
                "--set model.vocab_size: it follows the tokenizer",
            ),
        ] {
            let told = error("[data]\nseq_len = 8\n", &[assignment]);
            assert!(told.starts_with(message) && !told.contains('\n'), "{told}");
        }
        let told = error("[training]\ngrad_accum = 0\n", &["data.seq_len=8"]);
        assert!(
            told.starts_with("test.toml: training.grad_accum: "),
            "{told}"
        );
    }

    #[test]
    fn a_file_that_is_no_toml_is_told_by_its_line() {
        let told = error("[data]\nseq_len = \n", &[]);
        assert!(
            told.starts_with("test.toml line 2: ") && !told.contains('\n'),
            "{told}"
        );
    }

    #[test]
    fn an_experiment_is_called_as_its_file_unless_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my small one.toml");
        fs::write(&path, "[data]\nseq_len = 8\n").unwrap();
        assert_eq!(load(&path, &[]).unwrap().name, "my small one");
        assert_eq!(load(&path, &["name=a".into()]).unwrap().name, "a");
        fs::write(&path, "name = \"b\"\n").unwrap();
        assert_eq!(load(&path, &[]).unwrap().name, "b");
    }

    #[test]
    fn override_without_value_is_an_error() {
        assert!(error("", &["data.seq_len"]).contains("section.key=value"));
        assert!(error("", &["sample.prompt=\"open"]).contains("--set sample.prompt"));
    }
}
