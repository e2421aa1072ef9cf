//! Encoding a whole corpus: each distinct word once, on every core.

use std::collections::HashMap;
use std::fmt;
use std::iter;
use std::str::FromStr;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::Tokenizer;

/// Distinct text below this many bytes is encoded too fast for a progress bar to be read.
const SHOW_PROGRESS_FROM: usize = 1024 * 1024;

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
    /// The ids of a whole split, the same as encoding it in one piece, with a progress bar where it
    /// takes long. Words that a text repeats are encoded once.
    ///
    /// # Errors
    ///
    /// Where the vocabulary cannot express the text.
    pub fn encode_corpus(&self, text: &str, convention: Convention) -> Result<Vec<u32>> {
        let rows: Vec<&str> = match convention {
            Convention::WholeFile => vec![text],
            Convention::Rows => text
                .split_inclusive('\n')
                .filter(|row| !row.trim().is_empty())
                .collect(),
        };
        let pieces: Vec<&str> = match self.cuts_at_spaces {
            true => rows.into_iter().flat_map(words).collect(),
            false => rows,
        };
        let mut distinct = Vec::new();
        let mut numbers = HashMap::new();
        let sequence: Vec<usize> = pieces
            .into_iter()
            .map(|piece| {
                *numbers.entry(piece).or_insert_with(|| {
                    distinct.push(piece);
                    distinct.len() - 1
                })
            })
            .collect();
        let bar = progress(distinct.iter().map(|piece| piece.len()).sum());
        let encoded: Vec<Vec<u32>> = distinct
            .into_par_iter()
            .map(|piece| {
                let ids = self.encode(piece);
                bar.inc(piece.len() as u64);
                ids
            })
            .collect::<Result<_>>()?;
        bar.finish_and_clear();
        Ok(sequence
            .into_iter()
            .flat_map(|number| &encoded[number])
            .copied()
            .collect())
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

/// Cuts `text` before every space that stands between two other characters.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    text.match_indices(' ')
        .map(|(at, _)| at)
        .filter(|&at| {
            let solid = |c: char| !c.is_whitespace();
            text[..at].chars().next_back().is_some_and(solid)
                && text[at + 1..].chars().next().is_some_and(solid)
        })
        .chain(iter::once(text.len()))
        .map(move |at| &text[std::mem::replace(&mut start, at)..at])
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

    /// Text with everything that could make a cut visible.
    const AWKWARD: &str = " it's  two   spaces\tand 12 345 \u{a0}nbsp é戦 場 \u{301}x\n\n \nLine\
        <|endoftext|> end <|endoftext|>. ' s 's \n = A = \n \n b  ";

    #[test]
    fn ids_are_those_of_one_piece() {
        for tokenizer in [Tokenizer::gpt2().unwrap(), Tokenizer::bytes()] {
            assert!(tokenizer.cuts_at_spaces);
            let text = AWKWARD.repeat(3);
            let whole = tokenizer.encode(&text).unwrap();
            assert_eq!(
                tokenizer
                    .encode_corpus(&text, Convention::WholeFile)
                    .unwrap(),
                whole
            );
            assert!(
                tokenizer
                    .encode_corpus("", Convention::WholeFile)
                    .unwrap()
                    .is_empty()
            );
        }
    }

    #[test]
    fn words_begin_at_single_spaces() {
        let pieces: Vec<&str> = words(" a bc  d\n e , \n").collect();
        assert_eq!(pieces, [" a", " bc  d\n e", " , \n"]);
        assert_eq!(words(AWKWARD).collect::<String>(), AWKWARD);
    }

    #[test]
    fn rows_drop_blank_lines_and_keep_newlines() {
        let tokenizer = Tokenizer::bytes();
        let ids = tokenizer
            .encode_corpus(" a \n \n\t\nb\n\nc", Convention::Rows)
            .unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), " a \nb\nc");
        let tokenizer = Tokenizer::gpt2().unwrap();
        let one_by_one: Vec<u32> = AWKWARD
            .split_inclusive('\n')
            .filter(|row| !row.trim().is_empty())
            .flat_map(|row| tokenizer.encode(row).unwrap())
            .collect();
        assert_eq!(
            tokenizer.encode_corpus(AWKWARD, Convention::Rows).unwrap(),
            one_by_one
        );
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
