//! The splits of an experiment, ready to be batched.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::cache::{cache_dir, hex};
use crate::corpus::{Corpus, Split};
use crate::encoded::EncodedCorpus;
use crate::experiment::DataConfig;
use crate::tokenizer::Tokenizer;
use crate::windows::{Tail, Windows};

/// The data of an experiment.
#[derive(Clone, Debug)]
pub struct Splits {
    /// What turns text into tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// The training split.
    pub train: Arc<Windows>,
    /// The valid split.
    pub valid: Arc<Windows>,
    /// The test split, where the corpus has one.
    pub test: Option<Arc<Windows>>,
    /// The corpus, as in [`Corpus::name`].
    pub corpus: String,
    /// What the text turned out to be, in one line.
    pub description: String,
    /// One line for the user, where the corpus is not the one asked for.
    pub notice: Option<String>,
}

impl Splits {
    /// Loads and encodes the text of `data`.
    ///
    /// # Errors
    ///
    /// When text or tokenizer cannot be had, or a split is shorter than one sequence.
    pub fn load(data: &DataConfig) -> Result<Self> {
        let tokenizer = Tokenizer::from_spec(&data.tokenizer)?;
        Self::with_tokenizer(data, tokenizer)
    }

    /// Like [`load`](Self::load), with a tokenizer that is at hand.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn with_tokenizer(data: &DataConfig, tokenizer: Tokenizer) -> Result<Self> {
        let corpus = load(data, &[Split::Train, Split::Valid], &[Split::Test])?;
        let windows = |split, tail| windows(data, &corpus, &tokenizer, split, tail);
        Ok(Self {
            train: windows(Split::Train, Tail::Drop)?,
            valid: windows(Split::Valid, Tail::Keep)?,
            test: match corpus.get(Split::Test) {
                Some(_) => Some(windows(Split::Test, Tail::Keep)?),
                None => None,
            },
            tokenizer: Arc::new(tokenizer),
            corpus: corpus.name().into(),
            description: corpus.to_string(),
            notice: corpus.notice().map(str::to_string),
        })
    }
}

impl Splits {
    /// A hash of the tokens of all splits, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        for windows in [Some(&self.train), Some(&self.valid), self.test.as_ref()] {
            // Of one length each, so that a missing split is not taken for another one.
            digest.update(windows.map_or([0; 32], |it| it.corpus().sha256()));
        }
        hex(&digest.finalize())
    }
}

/// One split, for an evaluation that needs no other.
#[derive(Clone, Debug)]
pub struct SplitText {
    /// Its tokens.
    pub tokens: Arc<EncodedCorpus>,
    /// Its words, between white space: the same for every tokenizer.
    pub words: usize,
    /// What the text turned out to be, in one line.
    pub description: String,
    /// One line for the user, where the text is not the one asked for.
    pub notice: Option<String>,
}

/// One split of `data`, for an evaluation that needs no other.
///
/// # Errors
///
/// When its text cannot be had or has fewer than two tokens.
pub fn load_split(data: &DataConfig, tokenizer: &Tokenizer, split: Split) -> Result<SplitText> {
    let corpus = load(data, &[split], &[])?;
    let text = corpus.text(split)?;
    let tokens = encode(data, text, tokenizer)?;
    ensure!(
        tokens.len() > 1,
        "the {split} split is too short: it has a single token"
    );
    Ok(SplitText {
        tokens: Arc::new(tokens),
        words: text.split_whitespace().count(),
        description: corpus.to_string(),
        notice: corpus.notice().map(str::to_string),
    })
}

/// The text of `data`, which must be the corpus it names, if it names one: losses on different
/// texts cannot be compared.
fn load(data: &DataConfig, required: &[Split], optional: &[Split]) -> Result<Corpus> {
    let corpus = data.corpus_config().load(required, optional)?;
    if let Some(expected) = data.corpus.as_deref().filter(|name| *name != corpus.name()) {
        bail!(
            "the model was trained on {expected}, but this text is {}: losses on both cannot be compared; give the \
             folder of the same text with --data-dir",
            corpus.name()
        );
    }
    Ok(corpus)
}

fn windows(
    data: &DataConfig,
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    split: Split,
    tail: Tail,
) -> Result<Arc<Windows>> {
    let encoded = encode(data, corpus.text(split)?, tokenizer)?;
    let windows = Windows::new(Arc::new(encoded), data.seq_len, tail)
        .with_context(|| format!("the {split} split is too short"))?;
    Ok(Arc::new(windows))
}

fn encode(data: &DataConfig, text: &str, tokenizer: &Tokenizer) -> Result<EncodedCorpus> {
    let cache = cache_dir().ok().map(|dir| dir.join("tokens"));
    let cache = cache.as_deref().map(Path::new);
    EncodedCorpus::load_or_encode(text, tokenizer, data.convention, cache)
}
