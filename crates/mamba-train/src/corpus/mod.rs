//! Text to train on: WikiText-2 from a folder or the hub, any folder of text, or generated
//! stories.
//!
//! ```
//! use mamba_train::corpus::{CorpusConfig, DatasetKind, Split};
//!
//! let config = CorpusConfig { dataset: DatasetKind::Stories, ..Default::default() };
//! let corpus = config.load(&[Split::Valid], &[])?;
//! println!("{corpus}: {} bytes", corpus.text(Split::Valid)?.len());
//! # anyhow::Ok(())
//! ```

mod download;
mod folder;
mod stories;
mod wikitext2;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use crate::hub::Hub;
pub use stories::StoriesConfig;
pub use wikitext2::Form;

use crate::cache::sha256_hex;

/// The value of the config key `dataset`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatasetKind {
    /// WikiText-2 where it can be had, the generated stories otherwise.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// WikiText-2 in either form (a download is the raw one), or an error.
    #[serde(rename = "wikitext-2")]
    Wikitext2,
    /// WikiText-2 under its raw names only, or an error.
    #[serde(rename = "wikitext-2-raw")]
    Wikitext2Raw,
    /// The generated stories.
    #[serde(rename = "stories")]
    Stories,
}

impl DatasetKind {
    const ALL: [Self; 4] = [
        Self::Auto,
        Self::Wikitext2,
        Self::Wikitext2Raw,
        Self::Stories,
    ];

    /// The name a config file and the command line use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Wikitext2 => "wikitext-2",
            Self::Wikitext2Raw => "wikitext-2-raw",
            Self::Stories => "stories",
        }
    }
}

impl fmt::Display for DatasetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DatasetKind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .with_context(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("unknown dataset {name:?}; choose one of {names}")
            })
    }
}

/// A part of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What the model learns from.
    Train,
    /// What decides when to stop and which checkpoint to keep.
    Valid,
    /// What the final figure is measured on.
    Test,
}

impl Split {
    /// Every split.
    pub const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// The name, as in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which corpus to load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorpusConfig {
    /// Which text. Default: `auto`.
    pub dataset: DatasetKind,
    /// A folder to read instead of downloading. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// The size and seed of the generated stories.
    pub stories: StoriesConfig,
}

/// What a corpus turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Published WikiText-2, every split checked by hash.
    Wikitext2(Form),
    /// Text of the user's own: its hashes are none of the published ones.
    Own,
    /// Generated stories.
    Stories,
}

/// The text of the loaded splits.
#[derive(Clone, Debug)]
pub struct Corpus {
    identity: Identity,
    origin: String,
    notice: Option<String>,
    splits: Vec<(Split, String)>,
}

impl CorpusConfig {
    /// Loads every split of `required`, and those of `optional` that exist.
    ///
    /// # Errors
    ///
    /// Where a required split is missing, empty or not UTF-8, where splits belong to different
    /// forms of WikiText-2, and, for an explicit dataset without a folder, where the download
    /// fails.
    pub fn load(&self, required: &[Split], optional: &[Split]) -> Result<Corpus> {
        self.load_from(&Hub::from_env(), required, optional)
    }

    /// [`load`](Self::load) with an explicit hub.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_from(&self, hub: &Hub, required: &[Split], optional: &[Split]) -> Result<Corpus> {
        match (self.dataset, &self.data_dir) {
            (DatasetKind::Stories, Some(dir)) => bail!(
                "dataset \"stories\" is generated and does not read {}; drop --data-dir, or \
                 choose another dataset",
                dir.display()
            ),
            (DatasetKind::Stories, None) => self.stories(required, optional, None),
            (kind, Some(dir)) => {
                let files = folder::find(dir, kind, required, optional)?;
                let corpus = Corpus::read(files, dir.display().to_string())?;
                if kind != DatasetKind::Auto && corpus.identity == Identity::Own {
                    bail!(
                        "dataset {:?}: {} holds other text than the published one; choose dataset \"auto\" to use it",
                        kind.name(),
                        dir.display()
                    );
                }
                Ok(corpus)
            }
            (kind, None) => {
                let archive = wikitext2::archive();
                match archive.obtain(hub) {
                    Ok(dir) => {
                        let raw = DatasetKind::Wikitext2Raw;
                        let files = folder::find(&dir, raw, required, optional)?;
                        let corpus = Corpus::read(files, format!("the hub's {}", archive.repo))?;
                        if corpus.identity != Identity::Wikitext2(Form::Raw) {
                            bail!("the cached copy {} is damaged; delete it", dir.display());
                        }
                        Ok(corpus)
                    }
                    Err(error) if kind == DatasetKind::Auto => {
                        let notice = format!(
                            "WikiText-2 could not be downloaded ({error:#}); the text is the \
                             built-in generated stories instead. Give --data-dir FOLDER to use \
                             real text."
                        );
                        self.stories(required, optional, Some(notice.replace('\n', " ")))
                    }
                    Err(error) => Err(error.context(format!(
                        "dataset {:?} could not be downloaded; give --data-dir FOLDER with its \
                         text, or choose dataset \"stories\"",
                        kind.name()
                    ))),
                }
            }
        }
    }

    fn stories(
        &self,
        required: &[Split],
        optional: &[Split],
        notice: Option<String>,
    ) -> Result<Corpus> {
        let splits = Split::ALL
            .into_iter()
            .filter(|split| required.contains(split) || optional.contains(split))
            .map(|split| (split, self.stories.generate(split)))
            .collect();
        let origin = format!("seed {}", self.stories.seed);
        Ok(Corpus {
            identity: Identity::Stories,
            origin,
            notice,
            splits,
        })
    }
}

impl Corpus {
    fn read(files: Vec<(Split, PathBuf)>, origin: String) -> Result<Self> {
        let mut splits = Vec::with_capacity(files.len());
        let mut pins = Vec::with_capacity(files.len());
        for (split, path) in files {
            let text = folder::read(&path)?;
            let pin = wikitext2::identify(&sha256_hex(text.as_bytes()));
            if let Some(pin) = pin.filter(|pin| pin.split != split) {
                bail!(
                    "{} holds the {} split of {}, not the {split} split; put the files back \
                     under their own names",
                    path.display(),
                    pin.split,
                    pin.form.name()
                );
            }
            pins.push(pin.map(|pin| pin.form));
            splits.push((split, text));
        }
        if pins.contains(&Some(Form::Tokens)) && pins.contains(&Some(Form::Raw)) {
            bail!(
                "{origin} mixes {} and {}; a model trained on one must not be scored on the \
                 other, so take all splits from the same form",
                Form::Tokens.name(),
                Form::Raw.name()
            );
        }
        let identity = match pins.first() {
            Some(&Some(form)) if pins.iter().all(|&pin| pin == Some(form)) => {
                Identity::Wikitext2(form)
            }
            _ => Identity::Own,
        };
        Ok(Self {
            identity,
            origin,
            notice: None,
            splits,
        })
    }

    /// The text of a split.
    ///
    /// # Errors
    ///
    /// Where the split was not loaded.
    pub fn text(&self, split: Split) -> Result<&str> {
        self.get(split)
            .with_context(|| format!("{self} has no {split} split loaded"))
    }

    /// The text of a split, if it was loaded.
    pub fn get(&self, split: Split) -> Option<&str> {
        self.splits
            .iter()
            .find(|(other, _)| *other == split)
            .map(|(_, text)| text.as_str())
    }

    /// What the text turned out to be.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// A short name for records: `wikitext-2-v1`, `wikitext-2-raw-v1`, `stories` or `own-text`.
    pub fn name(&self) -> &'static str {
        match self.identity {
            Identity::Wikitext2(form) => form.name(),
            Identity::Own => "own-text",
            Identity::Stories => "stories",
        }
    }

    /// One line for the user, where the corpus is not the one asked for.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }
}

impl fmt::Display for Corpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, .. } = self;
        match self.identity {
            Identity::Wikitext2(form) => {
                write!(
                    f,
                    "WikiText-2 ({}, verified by hash) from {origin}",
                    form.name()
                )
            }
            Identity::Own => {
                write!(
                    f,
                    "text of your own (not the published WikiText-2) from {origin}"
                )
            }
            Identity::Stories => write!(f, "generated stories ({origin})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn unreachable_hub(dir: &std::path::Path) -> Hub {
        Hub {
            // Port 9 is "discard": nothing listens there, so the connection is refused at once.
            endpoint: "http://127.0.0.1:9".into(),
            hub_cache: dir.join("hub"),
            extracted: dir.join("extracted"),
            patience: Duration::from_secs(2),
            offline: false,
        }
    }

    #[test]
    fn dataset_names_round_trip() {
        for kind in DatasetKind::ALL {
            assert_eq!(kind.name().parse::<DatasetKind>().unwrap(), kind);
            assert_eq!(
                serde_json::to_string(&kind).unwrap(),
                format!("{:?}", kind.name())
            );
        }
        let error = "wikitext".parse::<DatasetKind>().unwrap_err().to_string();
        assert!(
            error.contains("auto, wikitext-2, wikitext-2-raw, stories"),
            "{error}"
        );
    }

    #[test]
    fn auto_without_a_network_falls_back_with_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let config = CorpusConfig {
            stories: StoriesConfig {
                train_bytes: 10_000,
                ..Default::default()
            },
            ..Default::default()
        };
        let corpus = config
            .load_from(&unreachable_hub(dir.path()), &[Split::Train], &[])
            .unwrap();
        assert_eq!(corpus.identity(), Identity::Stories);
        let notice = corpus.notice().unwrap();
        assert!(
            notice.starts_with("WikiText-2 could not be downloaded ("),
            "{notice}"
        );
        assert!(
            notice.contains("--data-dir") && !notice.contains('\n'),
            "{notice}"
        );
        assert!(
            corpus
                .text(Split::Test)
                .unwrap_err()
                .to_string()
                .contains("no test split")
        );
    }

    #[test]
    fn an_explicit_dataset_without_a_network_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let config = CorpusConfig {
            dataset: DatasetKind::Wikitext2,
            ..Default::default()
        };
        let error = config
            .load_from(&unreachable_hub(dir.path()), &[Split::Train], &[])
            .unwrap_err();
        let message = format!("{error:#}");
        assert!(
            message.starts_with("dataset \"wikitext-2\" could not be downloaded"),
            "{message}"
        );
        assert!(message.contains("127.0.0.1:9"), "{message}");
    }

    #[test]
    fn own_text_is_accepted_and_called_so() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("train.txt"), "my own words\n").unwrap();
        let config = CorpusConfig {
            data_dir: Some(dir.path().to_path_buf()),
            ..Default::default()
        };
        let corpus = config.load(&[Split::Train], &[Split::Valid]).unwrap();
        assert_eq!(
            (corpus.identity(), corpus.name()),
            (Identity::Own, "own-text")
        );
        assert_eq!(corpus.text(Split::Train).unwrap(), "my own words\n");
        assert!(corpus.get(Split::Valid).is_none() && corpus.notice().is_none());

        for dataset in [DatasetKind::Wikitext2, DatasetKind::Wikitext2Raw] {
            fs::write(dir.path().join("wiki.train.raw"), "my own words\n").unwrap();
            let named = CorpusConfig {
                dataset,
                ..config.clone()
            };
            let error = named.load(&[Split::Train], &[]).unwrap_err().to_string();
            assert!(error.contains("holds other text"), "{error}");
        }

        let stories = CorpusConfig {
            dataset: DatasetKind::Stories,
            ..config
        };
        let error = stories.load(&[Split::Train], &[]).unwrap_err().to_string();
        assert!(error.contains("drop --data-dir"), "{error}");
    }
}
