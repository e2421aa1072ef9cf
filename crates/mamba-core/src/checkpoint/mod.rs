//! Pretrained models in the formats that they are published in: reading and writing folders of Hugging Face's layout.
//!
//! A folder holds `config.json` and the weights: `model.safetensors`, shards that `model.safetensors.index.json` lists, or the
//! older `pytorch_model.bin`. What is read:
//!
//! | `model_type` | models | written, too |
//! |---|---|---|
//! | none, with `d_model` and `ssm_cfg` | `state-spaces/mamba-*`, `state-spaces/mamba2-*` as their authors publish them | |
//! | `mamba` | `state-spaces/mamba-*-hf` | yes |
//! | `falcon_mamba` | `tiiuae/falcon-mamba-7b*` | yes |
//! | `mamba2` | `mistralai/Mamba-Codestral-7B-v0.1` and other Mamba-2 | yes |
//! | `gpt2` | `openai-community/gpt2*` | yes |
//! | `gpt_neox` | `EleutherAI/pythia-*`, `EleutherAI/gpt-neox-20b` | yes |
//! | `llama` | Llama-style transformers without scaled positions | yes |
//!
//! Parameters are f32 in memory, whatever their type in the file. Every tensor is accounted for: what is missing, left over or
//! of another shape is an error that lists it.

mod config;
mod error;
mod export;
mod layout;
mod names;
mod shapes;
mod tensors;

use std::path::Path;

use burn::store::ModuleSnapshot;
use burn::tensor::Device;

use crate::language_model::{LanguageModel, LanguageModelConfig};
use config::Described;
use layout::{NotFinite, Rule};
use tensors::Tensors;

pub use error::CheckpointError;
pub use export::{save, save_ending_with};
pub use tensors::{shards, weights_file};

/// The configuration of the model in `folder`, whose weights need not be there.
///
/// # Errors
///
/// If `config.json` is missing or damaged, or describes a model that this crate does not have.
pub fn read_config(folder: &Path) -> Result<LanguageModelConfig, CheckpointError> {
    Ok(config::read(folder)?.config)
}

/// The tokens by which the model in `folder` ends a text, as its `generation_config.json` says, or else its `config.json`; none
/// where neither says anything.
///
/// # Errors
///
/// If `config.json` is missing, or one of the two is damaged.
pub fn read_end_tokens(folder: &Path) -> Result<Vec<u32>, CheckpointError> {
    config::end_tokens(folder)
}

/// Reads the model in `folder` to `device`, and its configuration.
///
/// # Errors
///
/// If a file is missing or damaged, the configuration describes a model that this crate does not have, the weights are not
/// exactly those of the configuration, or one of them is NaN or infinite. Nothing is allocated for sizes that the files do not
/// bear out.
pub fn load(
    folder: &Path,
    device: &Device,
) -> Result<(LanguageModel, LanguageModelConfig), CheckpointError> {
    let Described { config, family } = config::read(folder)?;
    let mut tensors = Tensors::open(folder)?;
    if config.n_layer > tensors.len() {
        return Err(CheckpointError::Config {
            path: folder.join(config::FILE),
            problem: format!(
                "it describes {} layers, and there are {} tensors in all: it is damaged or another model's",
                config.n_layer,
                tensors.len()
            ),
        });
    }
    let rules = names::rules(&config, family, &tensors);
    let mut found = Vec::with_capacity(rules.len());
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    let broken = NotFinite::default();
    for rule in rules {
        match tensors.take(&rule) {
            Some(parts) => {
                let tensor = rule.import(parts, &broken);
                misshapen.extend(misfit(&config, &rule, &tensor.shape.to_vec()));
                found.push(tensor);
            }
            None => missing.extend(rule.theirs.into_iter().filter(|it| !tensors.has(it))),
        }
    }
    let unused = tensors.left_over(&config, family);
    let folder = folder.to_path_buf();
    // Before there is a model: one of sizes that no file bears out may not fit in memory.
    if !(missing.is_empty() && unused.is_empty() && misshapen.is_empty()) {
        return Err(CheckpointError::Tensors {
            folder,
            missing,
            unused,
            misshapen,
        });
    }
    let mut model = config.init_to_load(device);
    let result = model.apply(found, None, None, true);
    let mut misshapen: Vec<String> = result.errors.iter().map(ToString::to_string).collect();
    // A parameter without a rule would keep its random beginning.
    misshapen.extend(
        result
            .unused
            .iter()
            .map(|it| format!("{it} is no parameter of the model")),
    );
    let missing: Vec<String> = result.missing.into_iter().map(|(path, _)| path).collect();
    if !(missing.is_empty() && misshapen.is_empty()) {
        return Err(CheckpointError::Tensors {
            folder,
            missing,
            unused,
            misshapen,
        });
    }
    match broken.names() {
        broken if broken.is_empty() => Ok((model, config)),
        broken => Err(CheckpointError::NotFinite { folder, broken }),
    }
}

/// What is wrong with a parameter of the shape `got`, if anything is.
fn misfit(config: &LanguageModelConfig, rule: &Rule, got: &[usize]) -> Option<String> {
    let (ours, theirs) = (&rule.ours, rule.theirs.join(", "));
    match shapes::shape(config, ours) {
        Some(want) if want == got => None,
        Some(want) => Some(format!(
            "{theirs} (of shape {got:?} as {ours}, instead of {want:?})"
        )),
        None => Some(format!("{theirs} (the model has no {ours})")),
    }
}
