//! The tensors of a folder, by name; values are read when they are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use burn::store::burn_pack::Tensor as Packed;
use burn::store::{ModuleStore, PytorchStore, SafetensorsStore};
use serde::Deserialize;

use super::CheckpointError;
use super::config::Family;
use super::layout::Rule;
use crate::language_model::LanguageModelConfig;

pub(super) const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const PYTORCH: &str = "pytorch_model.bin";

/// Tensors that no rule has taken yet.
pub(super) struct Tensors(BTreeMap<String, Packed>);

/// Which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Tensors {
    /// Of the first format that the folder has, safetensors before PyTorch.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let file = weights_file(|file| folder.join(file).is_file());
        if file == Some(WEIGHTS) {
            Ok(Self(safetensors(&folder.join(WEIGHTS))?))
        } else if file == Some(INDEX) {
            let mut tensors = BTreeMap::new();
            for shard in shards(folder)? {
                tensors.extend(safetensors(&folder.join(shard))?);
            }
            Ok(Self(tensors))
        } else if file == Some(PYTORCH) {
            let pytorch = folder.join(PYTORCH);
            let mut store = PytorchStore::from_file(&pytorch);
            Ok(Self(all(&mut store, &pytorch)?))
        } else {
            let folder = folder.to_path_buf();
            Err(CheckpointError::NoWeights { folder })
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The tensors that a rule names, unless one is missing.
    pub fn take(&mut self, rule: &Rule) -> Option<Vec<Packed>> {
        if !rule.theirs.iter().all(|name| self.has(name)) {
            return None;
        }
        Some(
            rule.theirs
                .iter()
                .flat_map(|name| self.0.remove(name))
                .collect(),
        )
    }

    /// What no rule took, but for copies and constants that some files hold.
    pub fn left_over(&self, config: &LanguageModelConfig, family: Family) -> Vec<String> {
        let names = self.0.keys().filter(|name| {
            let head = name.ends_with("lm_head.weight") || name.ends_with("embed_out.weight");
            let tied_head = config.tie_embeddings && head;
            let mask_ends: &[&str] = match family {
                Family::Gpt2 => &[".attn.bias", ".attn.masked_bias"],
                Family::GptNeox => &[".attention.bias", ".attention.masked_bias"],
                Family::Mamba | Family::Llama => &[],
            };
            let masks = mask_ends.iter().any(|end| name.ends_with(end));
            let rotations = name.ends_with("rotary_emb.inv_freq");
            !(tied_head || masks || rotations)
        });
        names.cloned().collect()
    }
}

/// The file of weights that is read first where `has` tells which files there are: safetensors before an index of shards
/// before PyTorch's.
pub fn weights_file(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    [WEIGHTS, INDEX, PYTORCH].into_iter().find(|file| has(file))
}

/// The files that the index of a folder lists, which lie beside it; none where the weights are in one file.
///
/// # Errors
///
/// If the index is damaged, or names something else than files beside it.
pub fn shards(folder: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let has = |file: &str| folder.join(file).is_file();
    if weights_file(has) != Some(INDEX) {
        return Ok(BTreeSet::new());
    }
    let index = folder.join(INDEX);
    let text = fs::read_to_string(&index).map_err(|reason| CheckpointError::File {
        path: index.clone(),
        reason,
    })?;
    let wrong = |problem: String| CheckpointError::Config {
        path: index.clone(),
        problem,
    };
    let Index { weight_map } = serde_json::from_str(&text).map_err(|it| wrong(it.to_string()))?;
    let files: BTreeSet<String> = weight_map.into_values().collect();
    let files = files.into_iter().map(|name| {
        let mut components = Path::new(&name).components();
        let plain = matches!(components.next(), Some(Component::Normal(_)));
        match plain && components.next().is_none() {
            true => Ok(name),
            false => Err(wrong(format!("{name} is no name of a file beside it"))),
        }
    });
    files.collect()
}

fn safetensors(path: &Path) -> Result<BTreeMap<String, Packed>, CheckpointError> {
    // The store would say it less clearly.
    fs::metadata(path).map_err(|reason| CheckpointError::File {
        path: path.to_path_buf(),
        reason,
    })?;
    all(&mut SafetensorsStore::from_file(path), path)
}

fn all<S: ModuleStore>(
    store: &mut S,
    path: &Path,
) -> Result<BTreeMap<String, Packed>, CheckpointError> {
    let tensors = store.get_all_tensors();
    tensors.cloned().map_err(|error| CheckpointError::Damaged {
        path: path.to_path_buf(),
        problem: error.to_string(),
    })
}
