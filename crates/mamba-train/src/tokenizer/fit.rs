//! Whether a tokenizer is a model's own, as far as their files tell.
//!
//! Two things tell. A vocabulary is as large as the tokenizer's, or padded to a multiple of a power of two so that its matrices
//! have handy sizes: GPT-NeoX's 50,277 entries are 50,280 in Mamba, 50,304 in Pythia-160M and 50,688 in Pythia-12B. And the token
//! that `config.json` says ends a text is one that stands for no text. GPT-2's tokenizer, of 50,257 entries, is too small for
//! Mamba by the first; by the second it is none of Pythia's, where its token 0 is an exclamation mark.

use super::Tokenizer;

/// The largest power of two that vocabularies are padded to, as DeepSeek's 100,015 entries are to 102,400.
const LARGEST_PADDING: usize = 1 << 12;
/// Fewer entries than this are always passed over: files leave out a few that were added later.
const LEAST_PADDING: usize = 8;
/// A padding is at most this share of the vocabulary, so that one of 256 bytes is none of 512 words.
const PADDED_SHARE: usize = 16;

/// What the files tell of a tokenizer and a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Nothing speaks against the two.
    Own,
    /// The tokenizer has entries that the model has not.
    TooLarge,
    /// The model has more entries than any padding leaves over.
    TooSmall,
    /// The token that ends the model's texts is another one in the tokenizer: what is odd about it.
    OtherEnd(String),
}

impl Fit {
    /// Compares a tokenizer with a model whose vocabulary is so large, with or without a padding, and whose texts are said to
    /// end by one of `ends`.
    pub fn of(tokenizer: &Tokenizer, vocab_size: usize, ends: &[u32]) -> Self {
        let Some(spare) = vocab_size.checked_sub(tokenizer.vocab_size()) else {
            return Self::TooLarge;
        };
        if spare >= padding(vocab_size) {
            return Self::TooSmall;
        }
        let Some(&end) = ends.first() else {
            return Self::Own;
        };
        let fits =
            |token: u32| tokenizer.end_of_text() == Some(token) || tokenizer.is_special(token);
        match (tokenizer.entry(end), tokenizer.end_of_text()) {
            _ if ends.iter().any(|token| fits(*token)) => Self::Own,
            (None, _) => Self::OtherEnd(format!("token {end}, which the tokenizer does not have")),
            (Some(entry), Some(own)) => Self::OtherEnd(format!(
                "token {end}, which is {entry:?} in the tokenizer, where token {own} ends one"
            )),
            // It has no end, and nothing to compare.
            (Some(_), None) => Self::Own,
        }
    }
}

/// So many entries or more are never there for a padding alone.
fn padding(vocab_size: usize) -> usize {
    let power = 1 << vocab_size.trailing_zeros().min(LARGEST_PADDING.ilog2());
    power.min(vocab_size / PADDED_SHARE).max(LEAST_PADDING)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn is_padded(entries: usize, vocab_size: usize) -> bool {
        vocab_size - entries < padding(vocab_size)
    }

    #[test]
    fn published_vocabularies_fit_their_tokenizers() {
        for (entries, vocab_size) in [
            (50_277, 50_280),   // Mamba
            (50_277, 50_288),   // Mamba-2
            (50_277, 50_304),   // Pythia-160M
            (50_277, 50_432),   // GPT-NeoX-20B, Pythia-6.9B
            (50_277, 50_688),   // Pythia-12B
            (50_257, 50_257),   // GPT-2
            (50_257, 50_264),   // padded to 8
            (50_257, 50_304),   // padded to 64
            (65_024, 65_024),   // FalconMamba
            (32_768, 32_768),   // Codestral
            (32_000, 32_001),   // a token that was added later
            (100_015, 102_400), // DeepSeek
            (16, 16),
        ] {
            assert!(is_padded(entries, vocab_size), "{entries} for {vocab_size}");
        }
        for (entries, vocab_size) in [
            (50_257, 50_280), // GPT-2's for Mamba
            (50_257, 50_288), // and for Mamba-2
            (50_257, 65_024),
            (50_277, 65_536),
            (32_000, 50_280),
            (256, 512),
            (256, 50_257),
            (8, 29),
        ] {
            assert!(
                !is_padded(entries, vocab_size),
                "{entries} for {vocab_size}"
            );
        }
    }

    #[test]
    fn sizes_and_ends_tell_tokenizers_of_other_models() {
        let gpt2 = Tokenizer::gpt2().unwrap();
        assert_eq!(Fit::of(&gpt2, 50_257, &[50_256]), Fit::Own);
        assert_eq!(Fit::of(&gpt2, 50_257, &[]), Fit::Own);
        assert_eq!(Fit::of(&gpt2, 50_256, &[]), Fit::TooLarge);
        assert_eq!(Fit::of(&gpt2, 50_280, &[0]), Fit::TooSmall);
        assert_eq!(Fit::of(&gpt2, 50_304, &[1, 50_256]), Fit::Own);
        let Fit::OtherEnd(told) = Fit::of(&gpt2, 50_304, &[0]) else {
            panic!("GPT-2's token 0 ends no text");
        };
        assert!(told.contains("\"!\"") && told.contains("50256"), "{told}");
        let Fit::OtherEnd(told) = Fit::of(&gpt2, 50_304, &[50_300]) else {
            panic!("GPT-2 has no token 50300");
        };
        assert!(told.contains("does not have"), "{told}");
        // Bytes name no end; that a model's is no byte is odd all the same.
        assert_eq!(Fit::of(&Tokenizer::bytes(), 256, &[0]), Fit::Own);
        assert_ne!(Fit::of(&Tokenizer::bytes(), 260, &[256]), Fit::Own);
    }

    #[test]
    fn a_special_token_may_end_a_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":2,"content":"<|over|>",
            "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,
            "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,"model":{"type":"WordLevel",
            "vocab":{"[UNK]":0,"sea":1,"<|over|>":2},"unk_token":"[UNK]"}}"#;
        fs::write(file.path(), json).unwrap();
        let tokenizer = Tokenizer::from_file(file.path()).unwrap();
        assert_eq!(tokenizer.end_of_text(), None);
        assert_eq!(Fit::of(&tokenizer, 8, &[2]), Fit::Own);
        let ended = tokenizer.ending_with(&[1, 2]);
        assert_eq!(ended.ends(), [2]);
        assert_eq!(ended.ending_with(&[1]).ends(), [2]);
        let gpt2 = Tokenizer::gpt2().unwrap().ending_with(&[3]);
        assert_eq!(gpt2.end_of_text(), Some(50_256));
        assert!(Tokenizer::bytes().ending_with(&[999]).ends().is_empty());
    }

    /// As in models that were tuned to answer, whose vocabulary names the end of a document, too.
    #[test]
    fn a_model_may_end_its_texts_otherwise_than_its_vocabulary() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let special = |id: u32, content: &str| {
            format!(
                r#"{{"id":{id},"content":"{content}","single_word":false,"lstrip":false,"rstrip":false,
                    "normalized":false,"special":true}}"#
            )
        };
        let [text, answer] = [special(1, "<|endoftext|>"), special(2, "<|im_end|>")];
        let json = format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{text},{answer}],"normalizer":null,
            "pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,"decoder":null,"model":{{"type":"WordLevel",
            "vocab":{{"[UNK]":0,"<|endoftext|>":1,"<|im_end|>":2}},"unk_token":"[UNK]"}}}}"#
        );
        fs::write(file.path(), json).unwrap();
        let tokenizer = Tokenizer::from_file(file.path()).unwrap();
        assert_eq!(tokenizer.ends(), [1]);
        let run = tempfile::tempdir().unwrap();
        tokenizer.save(run.path()).unwrap();
        assert_eq!(Tokenizer::load(run.path()).unwrap().ends(), [1]);
        let ended = tokenizer.ending_with(&[2, 1]);
        assert_eq!(ended.ends(), [2, 1]);
        // A run that goes on from the model ends its texts alike.
        ended.save(run.path()).unwrap();
        assert_eq!(Tokenizer::load(run.path()).unwrap().ends(), [2, 1]);
    }
}
