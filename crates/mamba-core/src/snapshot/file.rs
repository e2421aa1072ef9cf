//! Snapshots as safetensors files.
//!
//! The file holds `logits` and, of each layer `i` that remembers something, `layers.i.conv` and `layers.i.ssm` or
//! `layers.i.keys` and `layers.i.values`, in f32, each of a batch of one. Its metadata names the format, the model's
//! fingerprint, the number of tokens read, and a hash of that and the values.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, View};

use super::Snapshot;
use super::fingerprint::{Hash, fingerprint};
use crate::files::Part;
use crate::language_model::LanguageModel;
use crate::state::{LanguageModelState, LayerState, Mamba1State, Mamba2State};
use crate::transformer::KvCache;

/// The value of `format` in the metadata.
const FORMAT: &str = "mamba-lab state 1";

/// A header longer than this belongs to no snapshot.
const MAX_HEADER: u64 = 1 << 20;

/// No sequence is as long.
const MAX_TOKENS: usize = 1 << 48;

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file could not be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// The file is no snapshot, or not a whole one.
    #[error("{} is no saved state, or a damaged one ({problem}): begin anew without it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The file is a snapshot of another model.
    #[error("{} is the saved state of another model: give the model that it was made with, or begin anew", path.display())]
    AnotherModel {
        /// The file.
        path: PathBuf,
    },
    /// There are several sequences.
    #[error("a saved state holds one sequence, got {0}")]
    Batch(usize),
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
}

impl Snapshot {
    /// Writes the snapshot of a single sequence, made with `model`, to `path`. A file that is there is replaced once the
    /// new one is whole.
    ///
    /// # Errors
    ///
    /// If there are several sequences, the device fails, or the file cannot be written.
    pub fn save(&self, model: &LanguageModel, path: &Path) -> Result<(), SnapshotError> {
        let [batch, _] = self.logits.dims();
        if batch != 1 {
            return Err(SnapshotError::Batch(batch));
        }
        let mut tensors = vec![("logits".to_string(), Values::read(&self.logits)?)];
        for (index, layer) in self.state.layers.iter().enumerate() {
            let parts = match layer {
                LayerState::Mamba1(it) => [Values::read(&it.conv)?, Values::read(&it.ssm)?],
                LayerState::Mamba2(it) => [Values::read(&it.conv)?, Values::read(&it.ssm)?],
                LayerState::Attention(it) => {
                    [Values::read(&it.keys())?, Values::read(&it.values())?]
                }
                LayerState::Stateless => continue,
            };
            tensors.extend(names(index, layer).into_iter().zip(parts));
        }
        let metadata = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("model".to_string(), fingerprint(model)),
            ("tokens".to_string(), self.state.position.to_string()),
            (
                "hash".to_string(),
                hash(
                    self.state.position,
                    tensors.iter().map(|it| &it.1.bytes[..]),
                ),
            ),
        ]);
        let failed = |reason| SnapshotError::File {
            path: path.to_path_buf(),
            reason,
        };
        let part = Part::of(path);
        safetensors::serialize_to_file(tensors, Some(metadata), part.path())
            .map_err(io::Error::other)
            .and_then(|()| part.finish())
            .map_err(failed)
    }

    /// Reads a snapshot of `model` to `device`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is damaged or of another format, or belongs to another model. Nothing is allocated
    /// that the model and the file's own size do not vouch for.
    pub fn load(
        path: &Path,
        model: &LanguageModel,
        device: &Device,
    ) -> Result<Self, SnapshotError> {
        let failed = |reason| SnapshotError::File {
            path: path.to_path_buf(),
            reason,
        };
        let damaged = |problem: String| SnapshotError::Damaged {
            path: path.to_path_buf(),
            problem,
        };
        let mut file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let header = read_header(&mut file, size).map_err(damaged)?;
        let entry = |key: &str| header["__metadata__"][key].as_str().unwrap_or_default();
        if entry("format") != FORMAT {
            return Err(damaged(format!("its format is not {FORMAT:?}")));
        }
        if entry("model") != fingerprint(model) {
            return Err(SnapshotError::AnotherModel {
                path: path.to_path_buf(),
            });
        }
        let position = entry("tokens").parse::<usize>();
        let position = position.ok().filter(|position| *position <= MAX_TOKENS);
        let position = position.ok_or_else(|| damaged("it does not count its tokens".into()))?;

        let template = model.initial_state(1, device);
        let expected = expected(&template, position, model.vocab_size());
        let values: u128 = expected.iter().map(|(_, shape)| volume(shape)).sum();
        if values * size_of::<f32>() as u128 > u128::from(size) {
            return Err(damaged("it is cut short".into()));
        }
        let mut bytes = Vec::new();
        file.rewind().map_err(failed)?;
        let most = size.min(8 + MAX_HEADER + (values as u64) * size_of::<f32>() as u64);
        file.take(most).read_to_end(&mut bytes).map_err(failed)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|it| damaged(it.to_string()))?;
        if tensors.len() != expected.len() {
            return Err(damaged(
                "it has other tensors than the model's state".into(),
            ));
        }
        let mut parts = HashMap::new();
        for (name, shape) in &expected {
            let tensor = tensors.tensor(name).map_err(|it| damaged(it.to_string()))?;
            if tensor.shape() != shape || tensor.dtype() != Dtype::F32 {
                return Err(damaged(format!("{name} is not of shape {shape:?} in f32")));
            }
            parts.insert(name.as_str(), tensor);
        }
        let data = expected.iter().map(|(name, _)| parts[name.as_str()].data());
        if hash(position, data) != entry("hash") {
            return Err(damaged("its values are not those that were saved".into()));
        }
        let take = |name: &str| {
            let data = parts[name].data().chunks_exact(size_of::<f32>());
            let values = data.map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]]));
            TensorData::new(values.collect::<Vec<_>>(), parts[name].shape().to_vec())
        };
        let layers = template.layers.iter().enumerate().map(|(index, layer)| {
            let [first, second] = names(index, layer);
            match layer {
                LayerState::Mamba1(_) => LayerState::Mamba1(Mamba1State {
                    conv: Tensor::from_data(take(&first), device),
                    ssm: Tensor::from_data(take(&second), device),
                }),
                LayerState::Mamba2(_) => LayerState::Mamba2(Mamba2State {
                    conv: Tensor::from_data(take(&first), device),
                    ssm: Tensor::from_data(take(&second), device),
                }),
                LayerState::Attention(_) => LayerState::Attention(KvCache::from_tokens(
                    Tensor::from_data(take(&first), device),
                    Tensor::from_data(take(&second), device),
                )),
                LayerState::Stateless => LayerState::Stateless,
            }
        });
        let layers = layers.collect();
        Ok(Self {
            state: LanguageModelState { layers, position },
            logits: Tensor::from_data(take("logits"), device),
        })
    }
}

/// What the two tensors of a layer are called.
fn names(index: usize, layer: &LayerState) -> [String; 2] {
    let parts = match layer {
        LayerState::Attention(_) => ["keys", "values"],
        _ => ["conv", "ssm"],
    };
    parts.map(|part| format!("layers.{index}.{part}"))
}

/// Names and shapes of the tensors of a model's snapshot, in the order of its hash.
fn expected(
    template: &LanguageModelState,
    position: usize,
    vocab_size: usize,
) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("logits".to_string(), vec![1, vocab_size])];
    for (index, layer) in template.layers.iter().enumerate() {
        let shapes = match layer {
            LayerState::Mamba1(it) => [it.conv.dims().to_vec(), it.ssm.dims().to_vec()],
            LayerState::Mamba2(it) => [it.conv.dims().to_vec(), it.ssm.dims().to_vec()],
            LayerState::Attention(it) => {
                let [num_kv_heads, head_dim] = it.heads();
                let shape = vec![1, num_kv_heads, position, head_dim];
                [shape.clone(), shape]
            }
            LayerState::Stateless => continue,
        };
        all.extend(names(index, layer).into_iter().zip(shapes));
    }
    all
}

fn volume(shape: &[usize]) -> u128 {
    let sizes = shape.iter().map(|size| *size as u128);
    sizes.fold(1, |all, size| all.saturating_mul(size))
}

/// The header of a safetensors file of that size.
fn read_header(file: &mut File, size: u64) -> Result<serde_json::Value, String> {
    let mut len = [0; 8];
    let told = |error: io::Error| error.to_string();
    file.read_exact(&mut len).map_err(told)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER || len > size.saturating_sub(8) {
        return Err("it has no header of safetensors".into());
    }
    let mut header = vec![0; len as usize];
    file.read_exact(&mut header).map_err(told)?;
    serde_json::from_slice(&header).map_err(|error| error.to_string())
}

fn hash<'a>(position: usize, parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hash = Hash::new();
    hash.update(&(position as u64).to_le_bytes());
    parts.for_each(|part| hash.update(part));
    hash.finish()
}

/// A tensor of f32 as it goes into a file.
struct Values {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Values {
    fn read<const D: usize>(tensor: &Tensor<D>) -> Result<Self, SnapshotError> {
        let data = tensor.clone().cast(DType::F32).try_into_data();
        let data = data.map_err(|error| SnapshotError::Device(error.to_string()))?;
        Ok(Self {
            shape: tensor.dims().to_vec(),
            bytes: data.iter::<f32>().flat_map(f32::to_le_bytes).collect(),
        })
    }
}

impl View for Values {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
