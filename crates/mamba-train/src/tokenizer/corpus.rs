//! Encoding a whole corpus on every core.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::Tokenizer;

/// The text a thread encodes at a time, in bytes.
const CHUNK: usize = 64 * 1024;
/// Texts below this many bytes are encoded too fast for a progress bar to be read.
const SHOW_PROGRESS_FROM: usize = 2 * 1024 * 1024;

/// How the text of a split becomes one sequence of tokens. Perplexities under different
/// conventions do not compare: state it with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convention {
    /// The whole file at once, every character of it.
    #[default]
    WholeFile,
    /// As rows of the Hugging Face data set: each line with its newline is encoded alone, a line of
    /// nothing but white space is the empty string, and the ids are concatenated.
    Rows,
}

impl Convention {
    /// The name in config files and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::WholeFile => "whole-file",
            Self::Rows => "rows",
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Convention {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::WholeFile, Self::Rows]
            .into_iter()
            .find(|convention| convention.name() == name)
            .with_context(|| format!("unknown convention {name:?}; choose whole-file or rows"))
    }
}

impl Tokenizer {
    /// The ids of a whole split, encoded on all cores with a progress bar where it takes long. The
    /// same ids as encoding in one piece.
    ///
    /// # Errors
    ///
    /// Where the vocabulary cannot express the text.
    pub fn encode_corpus(&self, text: &str, convention: Convention) -> Result<Vec<u32>> {
        let chunks = match convention {
            Convention::WholeFile if self.cuts_at_spaces => chunks(text, word_start),
            Convention::WholeFile => vec![text],
            Convention::Rows => chunks(text, line_start),
        };
        let bar = progress(text.len());
        let parts: Vec<Vec<u32>> = chunks
            .into_par_iter()
            .map(|chunk| {
                let ids = match convention {
                    Convention::WholeFile => self.encode(chunk)?,
                    Convention::Rows => self.encode_rows(chunk)?,
                };
                bar.inc(chunk.len() as u64);
                Ok(ids)
            })
            .collect::<Result<_>>()?;
        bar.finish_and_clear();
        Ok(parts.concat())
    }

    fn encode_rows(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for row in text
            .split_inclusive('\n')
            .filter(|row| !row.trim().is_empty())
        {
            ids.extend(self.encode(row)?);
        }
        Ok(ids)
    }
}

/// Whether a text may be cut before a space that stands between two other characters.
///
/// Under GPT-2's pattern such a space always opens a piece of its own, and nothing before it
/// depends on what follows. That holds where no normalizer but NFC comes first, and where no added
/// token reaches over such a space.
pub(super) fn cuts_at_spaces(tokenizer: &tokenizers::Tokenizer) -> bool {
    let pattern = match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::ByteLevel(byte_level)) => {
            byte_level.use_regex && !byte_level.add_prefix_space
        }
        _ => false,
    };
    let normalizer = matches!(
        tokenizer.get_normalizer(),
        None | Some(NormalizerWrapper::NFC(_))
    );
    let added = tokenizer.get_added_tokens_decoder().values().all(|token| {
        let content = token.content.as_str();
        let one_word = !content.contains(char::is_whitespace) || content.trim().is_empty();
        one_word && !token.lstrip && !token.rstrip && !token.single_word
    });
    pattern && normalizer && added
}

/// Cuts `text` into pieces of about [`CHUNK`] bytes, each beginning where `starts(before, after)`
/// holds of the text on its two sides.
fn chunks(text: &str, starts: fn(&str, &str) -> bool) -> Vec<&str> {
    let mut chunks = Vec::with_capacity(text.len() / CHUNK + 1);
    let mut rest = text;
    while rest.len() > CHUNK {
        let cut = (CHUNK..rest.len()).find(|&at| {
            rest.is_char_boundary(at) && {
                let (before, after) = rest.split_at(at);
                starts(before, after)
            }
        });
        let Some(at) = cut else { break };
        let (chunk, after) = rest.split_at(at);
        chunks.push(chunk);
        rest = after;
    }
    if !rest.is_empty() {
        chunks.push(rest);
    }
    chunks
}

fn word_start(before: &str, after: &str) -> bool {
    let mut after = after.chars();
    after.next() == Some(' ')
        && after.next().is_some_and(|c| !c.is_whitespace())
        && before
            .chars()
            .next_back()
            .is_some_and(|c| !c.is_whitespace())
}

fn line_start(before: &str, _after: &str) -> bool {
    before.ends_with('\n')
}

fn progress(bytes: usize) -> ProgressBar {
    if bytes < SHOW_PROGRESS_FROM {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes as u64).with_message("encoding");
    match ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} ({eta})") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text with everything that could make a cut visible, longer than several chunks.
    fn awkward() -> String {
        let line =
            " it's  two   spaces\tand 12 345 \u{a0}nbsp é戦 場\n\n \nLine<|endoftext|> end . \n";
        line.repeat(4 * CHUNK / line.len())
    }

    #[test]
    fn parallel_ids_are_those_of_one_piece() {
        let text = awkward();
        for tokenizer in [Tokenizer::gpt2().unwrap(), Tokenizer::bytes()] {
            assert!(tokenizer.cuts_at_spaces);
            assert!(chunks(&text, word_start).len() > 3);
            let whole = tokenizer.encode(&text).unwrap();
            assert_eq!(
                tokenizer
                    .encode_corpus(&text, Convention::WholeFile)
                    .unwrap(),
                whole
            );
        }
    }

    #[test]
    fn rows_drop_blank_lines_and_keep_newlines() {
        let tokenizer = Tokenizer::bytes();
        let ids = tokenizer
            .encode_corpus(" a \n \n\t\nb\n\nc", Convention::Rows)
            .unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), " a \nb\nc");
        let text = awkward();
        let one_by_one = tokenizer.encode_rows(&text).unwrap();
        assert_eq!(
            tokenizer.encode_corpus(&text, Convention::Rows).unwrap(),
            one_by_one
        );
    }

    #[test]
    fn chunks_lose_nothing_and_need_no_place_to_cut() {
        for text in [awkward(), "x".repeat(3 * CHUNK), String::new()] {
            assert_eq!(chunks(&text, word_start).concat(), text);
            assert_eq!(chunks(&text, line_start).concat(), text);
        }
    }

    #[test]
    fn conventions_round_trip() {
        for convention in [Convention::WholeFile, Convention::Rows] {
            assert_eq!(convention.name().parse::<Convention>().unwrap(), convention);
            let json = serde_json::to_string(&convention).unwrap();
            assert_eq!(json, format!("{:?}", convention.name()));
        }
        assert!("lines".parse::<Convention>().is_err());
    }
}
