//! Models that Hugging Face transformers computed with, as folders of its layout.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use mamba_core::{LanguageModel, LanguageModelConfig, checkpoint};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::devices::drawing;
use crate::fixtures::{self, Fixture};

/// The language models of the fixtures, and what their `config.json` calls them.
pub const MODELS: [(&str, &str); 4] = [
    ("mamba1_lm", "mamba"),
    ("mamba2_lm", "mamba2"),
    ("gpt2_lm", "gpt2"),
    ("llama_lm", "llama"),
];

/// What a fixture holds besides parameters.
const RESULTS: [&str; 5] = ["input_ids", "greedy_ids", "logits", "hidden", "loss"];

/// A fixture's parameters: name, shape, values.
pub type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// The parameters of a fixture.
pub fn tensors(fixture: &Fixture) -> Tensors {
    let names = fixture.float_names().into_iter();
    let parameters = names.filter(|name| !RESULTS.contains(name) && !name.starts_with("grad."));
    parameters
        .map(|name| {
            let array = fixture.floats(name);
            (name.to_owned(), array.shape.clone(), array.values.clone())
        })
        .collect()
}

/// The `config.json` of a fixture.
pub fn config(fixture: &Fixture, model_type: &str) -> Value {
    let mut fields: Map<String, Value> = fixture
        .settings()
        .map(|(key, value)| {
            let text = || Value::String(value.to_owned());
            (
                key.to_owned(),
                serde_json::from_str(value).unwrap_or_else(|_| text()),
            )
        })
        .collect();
    fields.insert("model_type".into(), json!(model_type));
    Value::Object(fields)
}

/// Writes tensors as a file of safetensors.
pub fn write(path: &Path, tensors: &Tensors) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|it| it.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes");
        (name.clone(), view)
    });
    let metadata: Option<HashMap<String, String>> = None;
    safetensors::serialize_to_file(views, metadata, path).expect("a writable folder");
}

/// A folder with the fixture's configuration and weights.
pub fn folder(fixture: &Fixture, model_type: &str) -> TempDir {
    let folder = TempDir::new().expect("a place for temporary files");
    let config = config(fixture, model_type).to_string();
    fs::write(folder.path().join("config.json"), config).expect("a writable folder");
    write(&folder.path().join("model.safetensors"), &tensors(fixture));
    folder
}

/// The fixtures of `parity.py`: their names.
pub fn parities() -> Vec<String> {
    fixtures::names("parity_")
}

/// A folder with the weights of a fixture of `parity.py`, and the `config.json` that its model was made of.
pub fn parity_folder(fixture: &Fixture) -> TempDir {
    let folder = TempDir::new().expect("a place for temporary files");
    let config = fixture.setting::<String>("config");
    fs::write(folder.path().join("config.json"), config).expect("a writable folder");
    write(&folder.path().join("model.safetensors"), &tensors(fixture));
    folder
}

/// The model of a fixture of `parity.py`, through its folder.
pub fn parity_model(name: &str, device: &Device) -> (LanguageModel, LanguageModelConfig, Fixture) {
    let fixture = Fixture::load(name);
    let folder = parity_folder(&fixture);
    let (model, config) = drawing(|| checkpoint::load(folder.path(), device))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    (model, config, fixture)
}

/// The model of a fixture, through its folder.
pub fn model(name: &str, device: &Device) -> (LanguageModel, LanguageModelConfig, Fixture) {
    let fixture = Fixture::load(name);
    let (_, model_type) = MODELS
        .into_iter()
        .find(|(fixture, _)| *fixture == name)
        .expect("one of the fixtures");
    let folder = folder(&fixture, model_type);
    let (model, config) = drawing(|| checkpoint::load(folder.path(), device))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    (model, config, fixture)
}
