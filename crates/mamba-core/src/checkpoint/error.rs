//! What can be wrong with a pretrained model's folder.

use std::path::PathBuf;

/// Names listed of each kind: a wrong architecture has hundreds.
const LISTED: usize = 8;

/// Why a pretrained model could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// There are no weights.
    #[error(
        "{}: there is no model.safetensors, model.safetensors.index.json or pytorch_model.bin: give the folder of a model in Hugging Face's layout",
        folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// The configuration is damaged or incomplete.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The configuration describes a model that this crate does not have.
    #[error("{}: {feature} is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is asked for.
        feature: String,
    },
    /// The file of weights is damaged.
    #[error("{}: the file is damaged or of another format ({problem}); fetch it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What its reader says.
        problem: String,
    },
    /// The weights are not those of the configuration.
    #[error(
        "{}: the weights are not those of config.json{}{}{}",
        folder.display(),
        list("missing", missing),
        list("not used", unused),
        list("of another shape", misshapen)
    )]
    Tensors {
        /// The folder.
        folder: PathBuf,
        /// Tensors that the configuration asks for and no file has.
        missing: Vec<String>,
        /// Tensors that the configuration has no place for.
        unused: Vec<String>,
        /// Tensors whose shape or type is not what the configuration says.
        misshapen: Vec<String>,
    },
    /// Weights are no numbers to compute with.
    #[error(
        "{}: the model diverged or its files are damaged{}",
        folder.display(),
        list("NaN or infinite values are in", broken)
    )]
    NotFinite {
        /// The folder.
        folder: PathBuf,
        /// The tensors that hold such values.
        broken: Vec<String>,
    },
    /// The model has no counterpart in the format.
    #[error("the model cannot be written in Hugging Face's layout: {0}")]
    NoCounterpart(String),
}

fn list(what: &str, names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let shown = names.iter().take(LISTED).cloned().collect::<Vec<_>>();
    let more = match names.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("; {what}: {}{more}", shown.join(", "))
}
