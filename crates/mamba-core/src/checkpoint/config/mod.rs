//! `config.json` and the configuration of a language model.

mod mamba;
mod original;
mod python;
mod transformer;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::CheckpointError;
use crate::language_model::LanguageModelConfig;
use mamba::{Mamba, Mamba2};
use original::Original;
use transformer::{Gpt2, GptNeox, Llama};

pub(super) use write::written;

pub(super) const FILE: &str = "config.json";
/// Where a model that was tuned to answer often names other ends than [`FILE`] does.
const GENERATION_FILE: &str = "generation_config.json";
/// The field that names the tokens that end a text.
pub(super) const END: &str = "eos_token_id";
/// The field that names the token that begins a text.
pub(super) const BEGIN: &str = "bos_token_id";

/// Who names the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Mamba-1 and Mamba-2.
    Mamba,
    Gpt2,
    /// GPT-NeoX and Pythia.
    GptNeox,
    Llama,
}

/// A model and the family of its files.
pub(super) struct Described {
    pub config: LanguageModelConfig,
    pub family: Family,
}

/// Reads the folder's `config.json`.
pub(super) fn read(folder: &Path) -> Result<Described, CheckpointError> {
    let (file, fields) = open(folder, FILE)?;
    let described = match fields.get("model_type").and_then(Value::as_str) {
        Some("mamba") => file.parse::<Mamba>(fields)?.describe(&file)?,
        Some("falcon_mamba") => file.parse::<Mamba>(fields)?.describe_falcon(&file)?,
        Some("mamba2") => file.parse::<Mamba2>(fields)?.describe(&file)?,
        Some("gpt2") => file.parse::<Gpt2>(fields)?.describe(&file)?,
        Some("gpt_neox") => file.parse::<GptNeox>(fields)?.describe(&file)?,
        Some("llama") => file.parse::<Llama>(fields)?.describe(&file)?,
        Some(other) => return Err(file.unsupported(format!("model_type = {other}"))),
        None if fields.contains_key("ssm_cfg") => {
            file.parse::<Original>(fields)?.describe(&file)?
        }
        None => return Err(file.wrong("it has neither model_type nor ssm_cfg".into())),
    };
    let problem = described.config.validate().err();
    match problem {
        Some(problem) => Err(file.wrong(problem)),
        None => Ok(described),
    }
}

/// The tokens that end a text, as the folder's `generation_config.json` names them, or else its `config.json`: a number, a
/// list, or none.
pub(super) fn end_tokens(folder: &Path) -> Result<Vec<u32>, CheckpointError> {
    if folder.join(GENERATION_FILE).exists() {
        let tokens = ends_of(&open(folder, GENERATION_FILE)?.1);
        if !tokens.is_empty() {
            return Ok(tokens);
        }
    }
    Ok(ends_of(&open(folder, FILE)?.1))
}

fn ends_of(fields: &Map<String, Value>) -> Vec<u32> {
    let named = match fields.get(END) {
        Some(Value::Array(several)) => several.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    // Negative numbers stand for none in some files.
    let tokens = named.iter().filter_map(Value::as_u64);
    tokens.filter_map(|it| u32::try_from(it).ok()).collect()
}

fn open(folder: &Path, name: &str) -> Result<(File, Map<String, Value>), CheckpointError> {
    let path = folder.join(name);
    let text = fs::read_to_string(&path).map_err(|reason| CheckpointError::File {
        path: path.clone(),
        reason,
    })?;
    let file = File { path };
    let fields = serde_json::from_str(&python::without_constants(&text))
        .map_err(|error| file.wrong(error.to_string()))?;
    Ok((file, fields))
}

struct File {
    path: PathBuf,
}

impl File {
    fn parse<T: DeserializeOwned>(&self, fields: Map<String, Value>) -> Result<T, CheckpointError> {
        serde_json::from_value(Value::Object(fields)).map_err(|error| self.wrong(error.to_string()))
    }

    fn wrong(&self, problem: String) -> CheckpointError {
        CheckpointError::Config {
            path: self.path.clone(),
            problem,
        }
    }

    fn unsupported(&self, feature: String) -> CheckpointError {
        CheckpointError::Unsupported {
            path: self.path.clone(),
            feature,
        }
    }

    /// Refuses what is not computed here.
    fn expect(&self, field: &str, holds: bool) -> Result<(), CheckpointError> {
        match holds {
            true => Ok(()),
            false => Err(self.unsupported(format!("the value of {field}"))),
        }
    }
}
