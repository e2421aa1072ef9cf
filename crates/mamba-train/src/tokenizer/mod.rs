//! Text to token ids and back: GPT-2's vocabulary from the build itself, any `tokenizer.json`, or
//! raw bytes.
//!
//! ```
//! use mamba_train::tokenizer::Tokenizer;
//!
//! let tokenizer = Tokenizer::gpt2()?;
//! assert_eq!(tokenizer.encode("Hello world")?, [15496, 995]);
//! assert_eq!(tokenizer.decode(&[15496, 995])?, "Hello world");
//! # anyhow::Ok(())
//! ```

mod corpus;
mod fit;
mod gpt2;
mod stream;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use mamba_core::checkpoint;
use serde_json::json;

pub use corpus::Convention;
pub use fit::Fit;
pub use stream::DecodeStream;

use crate::cache::{sha256_hex, write_atomic};

/// The file in a run folder that names a built-in tokenizer.
const NAME_FILE: &str = "tokenizer.txt";
/// The file in a run folder that is a whole tokenizer.
const JSON_FILE: &str = "tokenizer.json";
/// The file in a run folder that names what ends a text, where that is not what the vocabulary says.
const ENDS_FILE: &str = "generation_config.json";
/// What the end of a text is called, in the order tried.
const END_OF_TEXT: [&str; 3] = ["<|endoftext|>", "</s>", "<eos>"];

/// A tokenizer. Cheap to share between threads; encoding the same text always gives the same ids.
pub struct Tokenizer {
    kind: Kind,
    name: String,
    fingerprint: String,
    vocab_size: usize,
    /// What ends a text, the usual one first.
    ends: Vec<u32>,
    /// Whether a text may be cut before a space between two words without changing its ids.
    cuts_at_spaces: bool,
}

enum Kind {
    Bytes,
    Hub(Box<Hub>),
}

struct Hub {
    inner: tokenizers::Tokenizer,
    /// The file it was read from, word for word; none where the build carries it.
    json: Option<String>,
}

impl Tokenizer {
    /// GPT-2's byte-level BPE, 50,257 entries, from what the build carries.
    ///
    /// # Errors
    ///
    /// Where the carried vocabulary is not GPT-2's.
    pub fn gpt2() -> Result<Self> {
        let (inner, fingerprint) = gpt2::build().context("cannot rebuild the GPT-2 vocabulary")?;
        Ok(Self::from_hub(
            Hub { inner, json: None },
            "gpt2".into(),
            fingerprint,
        ))
    }

    /// One token a byte, 256 entries.
    pub fn bytes() -> Self {
        Self {
            kind: Kind::Bytes,
            name: "bytes".into(),
            fingerprint: sha256_hex(b"bytes"),
            vocab_size: 256,
            ends: Vec::new(),
            cuts_at_spaces: true,
        }
    }

    /// A tokenizer in the `tokenizer.json` format. Its truncation and padding are ignored: a
    /// corpus is one long text.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let json = fs::read_to_string(path)
            .with_context(|| format!("cannot read the tokenizer {}", path.display()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|error| anyhow!(error))
            .with_context(|| format!("{} is not a valid tokenizer.json", path.display()))?;
        inner
            .with_truncation(None)
            .map_err(|error| anyhow!(error))?;
        inner.with_padding(None);
        if inner.get_vocab_size(true) == 0 {
            bail!("the tokenizer {} has no entries", path.display());
        }
        let fingerprint = sha256_hex(json.as_bytes());
        let name = path.display().to_string();
        Ok(Self::from_hub(
            Hub {
                inner,
                json: Some(json),
            },
            name,
            fingerprint,
        ))
    }

    /// `gpt2`, `bytes`, or the path of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// Where `spec` is neither a known name nor a readable tokenizer.
    pub fn from_spec(spec: &str) -> Result<Self> {
        match spec {
            "gpt2" => Self::gpt2(),
            "bytes" => Ok(Self::bytes()),
            path if Path::new(path).exists() => Self::from_file(Path::new(path)),
            path if path.contains(['/', '.']) => bail!("there is no file {path}"),
            other => bail!(
                "unknown tokenizer {other:?}; give gpt2, bytes, or the path of a tokenizer.json"
            ),
        }
    }

    fn from_hub(hub: Hub, name: String, fingerprint: String) -> Self {
        let ids = hub.inner.get_vocab(true);
        // Ids may have holes: what an embedding needs is the largest one.
        let vocab_size = ids.values().max().map_or(0, |&id| id as usize + 1);
        let ends = named_ends(&hub.inner);
        let cuts_at_spaces = corpus::cuts_at_spaces(&hub.inner);
        let kind = Kind::Hub(Box::new(hub));
        Self {
            kind,
            name,
            fingerprint,
            vocab_size,
            ends,
            cuts_at_spaces,
        }
    }

    /// Writes what [`load`](Self::load) needs into a run folder.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let (file, content) = match &self.kind {
            Kind::Hub(hub) => match &hub.json {
                Some(json) => (JSON_FILE, json),
                None => (NAME_FILE, &self.name),
            },
            Kind::Bytes => (NAME_FILE, &self.name),
        };
        write_atomic(
            &dir.join(file),
            |out| Ok(out.write_all(content.as_bytes())?),
        )?;
        if !self.ends_as_named() {
            let ends = json!({ "eos_token_id": self.ends }).to_string();
            write_atomic(&dir.join(ENDS_FILE), |out| {
                Ok(out.write_all(ends.as_bytes())?)
            })?;
        }
        Ok(())
    }

    /// Whether a text ends by what the vocabulary names, and nothing else.
    fn ends_as_named(&self) -> bool {
        match &self.kind {
            Kind::Bytes => self.ends.is_empty(),
            Kind::Hub(hub) => self.ends == named_ends(&hub.inner),
        }
    }

    /// The tokenizer in the `tokenizer.json` format; none for bytes, which have no such form.
    ///
    /// # Errors
    ///
    /// Where the tokenizer cannot be written as JSON.
    pub fn to_json(&self) -> Result<Option<String>> {
        match &self.kind {
            Kind::Bytes => Ok(None),
            Kind::Hub(hub) => match &hub.json {
                Some(json) => Ok(Some(json.clone())),
                None => {
                    let json = hub.inner.to_string(false);
                    Ok(Some(json.map_err(|error| anyhow!(error))?))
                }
            },
        }
    }

    /// The tokenizer [saved](Self::save) in a run folder.
    ///
    /// # Errors
    ///
    /// Where the folder holds none, or a damaged one.
    pub fn load(dir: &Path) -> Result<Self> {
        let json = dir.join(JSON_FILE);
        if json.is_file() {
            let tokenizer = Self::from_file(&json)?;
            return Ok(match dir.join(ENDS_FILE).is_file() {
                true => tokenizer.ending_with(&checkpoint::read_end_tokens(dir)?),
                false => tokenizer,
            });
        }
        let path = dir.join(NAME_FILE);
        let name = fs::read_to_string(&path).with_context(|| {
            format!(
                "{} holds neither {JSON_FILE} nor {NAME_FILE}",
                dir.display()
            )
        })?;
        match name.trim() {
            "gpt2" => Self::gpt2(),
            "bytes" => Ok(Self::bytes()),
            other => bail!("{} names the unknown tokenizer {other:?}", path.display()),
        }
    }

    /// The ids of `text`, without added start or end tokens.
    ///
    /// # Errors
    ///
    /// Where the vocabulary cannot express the text; never for `gpt2` and `bytes`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::Hub(hub) => match hub.inner.encode_fast(text, false) {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(error) => Err(anyhow!(error)).context("the tokenizer cannot encode this text"),
            },
        }
    }

    /// The text of `ids`. Ids without an entry (a padded vocabulary has some) say nothing; bytes
    /// that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// Where the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.kind {
            Kind::Bytes => {
                let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::Hub(hub) => match hub.inner.decode(ids, false) {
                Ok(text) => Ok(text),
                Err(error) => Err(anyhow!(error)).context("the tokenizer cannot decode these ids"),
            },
        }
    }

    /// Decodes token by token, holding back characters that are not complete yet.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id that ends a text, where there is one.
    pub fn end_of_text(&self) -> Option<u32> {
        self.ends.first().copied()
    }

    /// All ids that end a text: several where a model [says so](Self::ending_with).
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Ends texts by those of a model's `tokens` that stand for no text, in place of the end that the vocabulary names: a model
    /// that was tuned to answer ends an answer by another token than the texts before. Where none of them does, nothing changes.
    #[must_use]
    pub fn ending_with(mut self, tokens: &[u32]) -> Self {
        let known = tokens.iter().filter(|token| self.is_special(**token));
        let known: Vec<_> = known.copied().collect();
        if !known.is_empty() {
            self.ends = known;
        }
        self
    }

    /// The entry of that id.
    fn entry(&self, token: u32) -> Option<String> {
        match &self.kind {
            Kind::Bytes => u8::try_from(token).ok().map(|byte| format!("{byte:#04x}")),
            Kind::Hub(hub) => hub.inner.id_to_token(token),
        }
    }

    /// Whether the entry of that id stands for no text.
    fn is_special(&self, token: u32) -> bool {
        let added = |hub: &Hub| hub.inner.get_added_tokens_decoder();
        match &self.kind {
            Kind::Bytes => false,
            Kind::Hub(hub) => added(hub).get(&token).is_some_and(|it| it.special),
        }
    }

    /// `gpt2`, `bytes`, or the path it was read from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A sha256 that is equal where the tokenizer is.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// What the vocabulary says ends a text, if anything.
fn named_ends(inner: &tokenizers::Tokenizer) -> Vec<u32> {
    let mut names = END_OF_TEXT.iter();
    let end = names.find_map(|name| inner.token_to_id(name));
    end.into_iter().collect()
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, vocab_size, ..
        } = self;
        f.debug_struct("Tokenizer")
            .field("name", name)
            .field("vocab_size", vocab_size)
            .finish()
    }
}

impl fmt::Display for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} entries)", self.name, self.vocab_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_knows_its_published_ids() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.end_of_text()),
            (50_257, Some(50_256))
        );
        assert_eq!(tokenizer.encode("Hello world").unwrap(), [15496, 995]);
        assert_eq!(
            tokenizer.encode("a<|endoftext|>b").unwrap(),
            [64, 50256, 65]
        );
        let text = " = Valkyria = \n \n戦場のヴァルキュリア 3 , it's 1@,@000 \u{1f600}\t ok ";
        assert_eq!(
            tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(),
            text
        );
        assert_eq!(tokenizer.decode(&[15496, 50_263]).unwrap(), "Hello");
    }

    #[test]
    fn bytes_are_their_own_ids() {
        let tokenizer = Tokenizer::bytes();
        assert_eq!(tokenizer.encode("né").unwrap(), [110, 195, 169]);
        assert_eq!(tokenizer.decode(&[110, 195, 169, 300]).unwrap(), "né");
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.end_of_text()),
            (256, None)
        );
    }

    #[test]
    fn a_run_folder_is_enough_to_load() {
        for spec in ["gpt2", "bytes"] {
            let dir = tempfile::tempdir().unwrap();
            let saved = Tokenizer::from_spec(spec).unwrap();
            saved.save(dir.path()).unwrap();
            let loaded = Tokenizer::load(dir.path()).unwrap();
            assert_eq!(
                (loaded.name(), loaded.fingerprint()),
                (spec, saved.fingerprint())
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("neither tokenizer.json nor tokenizer.txt"),
            "{error}"
        );
    }

    #[test]
    fn a_file_keeps_its_ids_and_fingerprint_through_a_run_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words.json");
        let json = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":1,
            "strategy":"LongestFirst","stride":0},"padding":null,"added_tokens":[],
            "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,
            "decoder":null,"model":{"type":"WordLevel","vocab":{"[UNK]":0,"sea":1,"</s>":7},
            "unk_token":"[UNK]"}}"#;
        fs::write(&path, json).unwrap();
        let tokenizer = Tokenizer::from_spec(path.to_str().unwrap()).unwrap();
        assert_eq!(tokenizer.encode("the sea").unwrap(), [0, 1]);
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.end_of_text()),
            (8, Some(7))
        );
        let run = dir.path().join("run");
        tokenizer.save(&run).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(
            Tokenizer::load(&run).unwrap().fingerprint(),
            tokenizer.fingerprint()
        );
    }

    #[test]
    fn bad_specs_say_what_to_give() {
        let error = Tokenizer::from_spec("gpt3").unwrap_err().to_string();
        assert!(error.contains("give gpt2, bytes, or the path"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Tokenizer::from_file(file.path()).unwrap_err().to_string();
        assert!(error.contains("not a valid tokenizer.json"), "{error}");
    }
}
