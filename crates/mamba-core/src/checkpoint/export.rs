//! Writing a model in Hugging Face's layout.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::store::ModuleSnapshot;
use burn::store::bridge;
use safetensors::{Dtype, View};
use serde_json::Value;

use super::CheckpointError;
use super::config::{self, Family, written};
use super::names::Names;
use super::tensors::WEIGHTS;
use crate::files::Part;
use crate::language_model::{LanguageModel, LanguageModelConfig};

/// Writes `config.json` and `model.safetensors` in f32 to `folder`, which is made if it is not there. Rows of the embedding past
/// the vocabulary are left out. The files have their names once they are whole.
///
/// # Errors
///
/// If the model has no counterpart among the published architectures, a file of these names is there already, or it cannot be
/// written.
pub fn save(
    model: &LanguageModel,
    config: &LanguageModelConfig,
    folder: &Path,
) -> Result<(), CheckpointError> {
    let (json, family) = written(config)?;
    write(model, config, json, family, folder)
}

/// [`save`], with the tokens of the model's tokenizer that end a text, of which the first begins one, too, or that it has none.
/// `transformers` takes one of its own choice where `config.json` says nothing.
///
/// # Errors
///
/// As [`save`].
pub fn save_ending_with(
    ends: &[u32],
    model: &LanguageModel,
    config: &LanguageModelConfig,
    folder: &Path,
) -> Result<(), CheckpointError> {
    let (mut json, family) = written(config)?;
    json[config::BEGIN] = ends.first().copied().into();
    json[config::END] = match ends {
        [] => Value::Null,
        [one] => (*one).into(),
        several => several.into(),
    };
    write(model, config, json, family, folder)
}

fn write(
    model: &LanguageModel,
    config: &LanguageModelConfig,
    json: Value,
    family: Family,
    folder: &Path,
) -> Result<(), CheckpointError> {
    let mut sized = config.clone();
    sized.mlp.d_model = config.d_model;
    sized.mlp.d_hidden = Some(sized.mlp.d_hidden());
    let mut rules: BTreeMap<_, _> = Names::WRITTEN
        .rules(&sized, family)
        .into_iter()
        .map(|rule| (rule.ours.clone(), rule))
        .collect();

    let mut tensors = Vec::new();
    for parameter in model.collect(None, None, true) {
        let name = parameter.name.clone();
        let rule = rules
            .remove(&name)
            .ok_or_else(|| CheckpointError::NoCounterpart(format!("its parameter {name}")))?;
        let data = bridge::into_data(parameter)
            .map_err(|error| CheckpointError::NoCounterpart(format!("{name}: {error}")))?;
        for (name, mut shape, mut values) in rule.export(data) {
            if matches!(rule.ours.as_str(), "embedding" | "head") {
                shape[0] = config.vocab_size;
                values.truncate(shape[0] * shape[1]);
            }
            tensors.push((name, Single { shape, values }));
        }
    }

    let failed = |path: &Path, reason| CheckpointError::File {
        path: path.to_path_buf(),
        reason,
    };
    fs::create_dir_all(folder).map_err(|reason| failed(folder, reason))?;
    let (weights, described) = (folder.join(WEIGHTS), folder.join(config::FILE));
    for path in [&weights, &described] {
        if path.exists() {
            return Err(failed(path, std::io::ErrorKind::AlreadyExists.into()));
        }
    }
    // Both are whole before either has its name: what is broken off is no model, and none in the way of the next try.
    let parts = [Part::of(&described), Part::of(&weights)];
    let mut text = serde_json::to_string_pretty(&json).expect("JSON of plain values");
    text.push('\n');
    fs::write(parts[0].path(), text).map_err(|reason| failed(&described, reason))?;
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize_to_file(tensors, Some(metadata), parts[1].path())
        .map_err(|error| failed(&weights, std::io::Error::other(error)))?;
    let [description, contents] = parts;
    description
        .finish()
        .map_err(|reason| failed(&described, reason))?;
    contents.finish().map_err(|reason| {
        let _ = fs::remove_file(&described);
        failed(&weights, reason)
    })
}

/// A tensor of f32.
struct Single {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl View for Single {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.values.iter().flat_map(|value| value.to_le_bytes());
        bytes.collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}
