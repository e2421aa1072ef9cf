//! Encoded corpora: one long sequence of tokens, cached on disk and memory-mapped.
//!
//! File layout, little-endian: magic (8 bytes), format version (`u32`), bytes a token (`u32`, 2 or
//! 4), token count (`u64`), key (32 bytes), sha256 of the tokens (32 bytes), tokens.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::cache::{hex, write_atomic};
use crate::tokenizer::{Convention, Tokenizer};

const MAGIC: [u8; 8] = *b"MLTOKENS";
const VERSION: u32 = 1;
const HEADER: usize = 88;

type Key = [u8; 32];

/// The tokens of one split.
#[derive(Debug)]
pub struct EncodedCorpus {
    storage: Storage,
    width: Width,
    len: usize,
}

#[derive(Debug)]
enum Storage {
    /// A whole cache file, header included.
    Mapped(Mmap),
    /// Only the tokens.
    Owned(Vec<u8>),
}

/// Bytes a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Two,
    Four,
}

impl EncodedCorpus {
    /// Encodes `text`, or reads what an earlier call with the same text, tokenizer and convention
    /// left in `cache`. A damaged or foreign cache file is encoded again; a folder that cannot be
    /// written only costs the cache.
    ///
    /// # Errors
    ///
    /// Where the tokenizer cannot express the text, or the text has no tokens.
    pub fn load_or_encode(
        text: &str,
        tokenizer: &Tokenizer,
        convention: Convention,
        cache: Option<&Path>,
    ) -> Result<Self> {
        let key = key(text, tokenizer, convention);
        let path = cache.map(|dir| dir.join(format!("{}.tokens", hex(&key[..16]))));
        if let Some(path) = path.as_ref().filter(|path| path.exists()) {
            match Self::open(path, &key) {
                Ok(corpus) => return Ok(corpus),
                Err(error) => log::debug!("encoding {} again: {error:#}", path.display()),
            }
        }
        let tokens = tokenizer.encode_corpus(text, convention)?;
        ensure!(
            !tokens.is_empty(),
            "the text has no tokens; it must hold more than blank lines"
        );
        let corpus = Self::from_tokens(&tokens);
        let Some(path) = path else { return Ok(corpus) };
        match corpus
            .write(&path, &key)
            .and_then(|()| Self::open(&path, &key))
        {
            Ok(mapped) => Ok(mapped),
            Err(error) => {
                log::warn!("the encoded corpus stays in memory, uncached: {error:#}");
                Ok(corpus)
            }
        }
    }

    /// Tokens held in memory.
    pub fn from_tokens(tokens: &[u32]) -> Self {
        let largest = tokens.iter().copied().max().unwrap_or(0);
        let width = if u16::try_from(largest).is_ok() {
            Width::Two
        } else {
            Width::Four
        };
        let bytes = match width {
            Width::Two => tokens
                .iter()
                .flat_map(|&token| (token as u16).to_le_bytes())
                .collect(),
            Width::Four => tokens
                .iter()
                .flat_map(|&token| token.to_le_bytes())
                .collect(),
        };
        Self {
            storage: Storage::Owned(bytes),
            width,
            len: tokens.len(),
        }
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The token at `index`.
    ///
    /// # Panics
    ///
    /// Where `index` is not below [`len`](Self::len).
    pub fn token(&self, index: usize) -> u32 {
        self.tokens(index..index + 1)[0]
    }

    /// The tokens of a range.
    ///
    /// # Panics
    ///
    /// Where the range reaches beyond [`len`](Self::len).
    pub fn tokens(&self, range: std::ops::Range<usize>) -> Vec<u32> {
        let width = self.width.bytes();
        let bytes = &self.payload()[range.start * width..range.end * width];
        match self.width {
            Width::Two => {
                let pairs = bytes.as_chunks::<2>().0;
                pairs
                    .iter()
                    .map(|&pair| u16::from_le_bytes(pair).into())
                    .collect()
            }
            Width::Four => {
                let quads = bytes.as_chunks::<4>().0;
                quads.iter().map(|&quad| u32::from_le_bytes(quad)).collect()
            }
        }
    }

    /// The SHA-256 of the tokens.
    pub fn sha256(&self) -> [u8; 32] {
        match &self.storage {
            // Compared with the tokens when the file was opened.
            Storage::Mapped(map) => map[HEADER - 32..HEADER].try_into().expect("32 bytes"),
            Storage::Owned(bytes) => Sha256::digest(bytes).into(),
        }
    }

    /// Whether the tokens are read from a cache file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped(_))
    }

    fn payload(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped(map) => &map[HEADER..],
            Storage::Owned(bytes) => bytes,
        }
    }

    fn write(&self, path: &Path, key: &Key) -> Result<()> {
        write_atomic(path, |out| {
            out.write_all(&MAGIC)?;
            out.write_all(&VERSION.to_le_bytes())?;
            out.write_all(&(self.width.bytes() as u32).to_le_bytes())?;
            out.write_all(&(self.len as u64).to_le_bytes())?;
            out.write_all(key)?;
            out.write_all(&Sha256::digest(self.payload()))?;
            Ok(out.write_all(self.payload())?)
        })
    }

    fn open(path: &Path, key: &Key) -> Result<Self> {
        let file = File::open(path).context("cannot open it")?;
        // SAFETY: cache files are only ever replaced by renaming a finished file over them, which
        // leaves this mapping on the old one; nothing writes into or shortens an existing file.
        let map = unsafe { Mmap::map(&file) }.context("cannot map it")?;
        let (header, payload) = map.split_at_checked(HEADER).context("it is too short")?;
        ensure!(header[..8] == MAGIC, "it is no token file");
        ensure!(
            header[8..12] == VERSION.to_le_bytes(),
            "it has another format version"
        );
        let width = match header[12..16] {
            [2, 0, 0, 0] => Width::Two,
            [4, 0, 0, 0] => Width::Four,
            _ => bail!("its token width is unknown"),
        };
        ensure!(header[24..56] == *key, "it belongs to another text");
        let len = payload.len() / width.bytes();
        ensure!(
            header[16..24] == (len as u64).to_le_bytes(),
            "it is cut short"
        );
        ensure!(
            header[56..] == Sha256::digest(payload)[..],
            "its tokens are damaged"
        );
        Ok(Self {
            storage: Storage::Mapped(map),
            width,
            len,
        })
    }
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

/// Changes with the text, the tokenizer, the convention and the file format.
fn key(text: &str, tokenizer: &Tokenizer, convention: Convention) -> Key {
    let mut digest = Sha256::new();
    digest.update(VERSION.to_le_bytes());
    digest.update(Sha256::digest(text.as_bytes()));
    digest.update(tokenizer.fingerprint());
    digest.update(convention.name());
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const TEXT: &str = "a line\n \nand another\n";

    fn load(text: &str, convention: Convention, dir: &Path) -> EncodedCorpus {
        EncodedCorpus::load_or_encode(text, &Tokenizer::bytes(), convention, Some(dir)).unwrap()
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    fn all(corpus: &EncodedCorpus) -> Vec<u32> {
        corpus.tokens(0..corpus.len())
    }

    #[test]
    fn the_cache_is_used_and_distinguishes_its_keys() {
        let dir = tempfile::tempdir().unwrap();
        let first = load(TEXT, Convention::WholeFile, dir.path());
        let written = fs::metadata(&files(dir.path())[0])
            .unwrap()
            .modified()
            .unwrap();
        let second = load(TEXT, Convention::WholeFile, dir.path());
        assert!(first.is_mapped() && second.is_mapped());
        assert_eq!(
            fs::metadata(&files(dir.path())[0])
                .unwrap()
                .modified()
                .unwrap(),
            written
        );
        assert_eq!(
            all(&second),
            TEXT.bytes().map(u32::from).collect::<Vec<_>>()
        );
        assert_eq!(second.token(2), u32::from(b'l'));

        let rows = load(TEXT, Convention::Rows, dir.path());
        assert_eq!(rows.len(), TEXT.len() - 2);
        load("other text", Convention::WholeFile, dir.path());
        assert_eq!(files(dir.path()).len(), 3);
    }

    #[test]
    fn a_damaged_file_is_encoded_again() {
        let dir = tempfile::tempdir().unwrap();
        let expected = all(&load(TEXT, Convention::WholeFile, dir.path()));
        let path = files(dir.path()).remove(0);
        let good = fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        let mut cases: Vec<Vec<u8>> = [0, 8, 12, 16, 24, 56, HEADER, good.len() - 1]
            .map(flipped)
            .to_vec();
        cases.extend([0, 5, HEADER, good.len() - 1].map(|len| good[..len].to_vec()));
        cases.push([good.clone(), vec![0; 2]].concat());
        cases.push(b"a foreign file that is long enough to hold a whole header".repeat(3));
        for bytes in cases {
            // A fresh inode, as whatever damaged the file must not touch a live mapping.
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
            assert_eq!(
                all(&load(TEXT, Convention::WholeFile, dir.path())),
                expected
            );
            assert_eq!(fs::read(&path).unwrap(), good);
        }
    }

    #[test]
    fn large_ids_take_four_bytes() {
        let tokens = [0, 65_535, 65_536, u32::MAX];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        EncodedCorpus::from_tokens(&tokens)
            .write(&path, &[7; 32])
            .unwrap();
        let read = EncodedCorpus::open(&path, &[7; 32]).unwrap();
        assert_eq!((all(&read), read.width), (tokens.to_vec(), Width::Four));
        assert_eq!(EncodedCorpus::from_tokens(&tokens[..2]).width, Width::Two);
    }

    #[test]
    fn an_unwritable_cache_only_costs_the_cache() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let below_a_file = file.path().join("cache");
        let corpus = load(TEXT, Convention::WholeFile, &below_a_file);
        assert!(!corpus.is_mapped());
        assert_eq!(corpus.len(), TEXT.len());
    }

    #[test]
    fn text_without_tokens_is_an_error() {
        let tokenizer = Tokenizer::bytes();
        let error = EncodedCorpus::load_or_encode(" \n\n", &tokenizer, Convention::Rows, None);
        assert!(error.unwrap_err().to_string().contains("no tokens"));
    }
}
