//! Decoding while tokens arrive.

use anyhow::{Context, Result, anyhow};
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use super::{Kind, Tokenizer};

type HubStream<'a> = tokenizers::DecodeStream<
    'a,
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Turns tokens into text as they come. A character spread over several tokens appears with its
/// last one, and the pieces together are what [`Tokenizer::decode`] gives for all tokens at once.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    hub: Option<HubStream<'a>>,
    /// Tokens that no returned piece tells yet.
    pending: Vec<u32>,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        let hub = match &tokenizer.kind {
            Kind::Bytes => None,
            Kind::Hub(hub) => Some(hub.inner.decode_stream(false)),
        };
        Self {
            tokenizer,
            hub,
            pending: Vec::new(),
        }
    }

    /// The text that `id` completes; empty where it completes none.
    ///
    /// # Errors
    ///
    /// Where the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.pending.push(id);
        let piece = match &mut self.hub {
            Some(stream) => stream
                .step(id)
                .map_err(|error| anyhow!(error))
                .with_context(|| format!("the tokenizer cannot decode token {id}"))?,
            None => complete_utf8(&self.pending),
        };
        Ok(match piece {
            Some(text) => {
                self.pending.clear();
                text
            }
            None => String::new(),
        })
    }

    /// What is still held back: an incomplete character, as U+FFFD.
    ///
    /// # Errors
    ///
    /// Where the tokenizer's decoder fails.
    pub fn finish(self) -> Result<String> {
        self.tokenizer.decode(&self.pending)
    }
}

/// The text of byte tokens, unless their last character may still be completed.
fn complete_utf8(ids: &[u32]) -> Option<String> {
    let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
    match bytes.utf8_chunks().last() {
        Some(chunk) if is_prefix(chunk.invalid()) => None,
        _ => Some(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// Whether these bytes begin a character that needs more of them.
fn is_prefix(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.decode_stream();
        let mut pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    #[test]
    fn characters_are_never_cut() {
        let text = "a né 戦場 \u{1f600}!";
        for tokenizer in [Tokenizer::gpt2().unwrap(), Tokenizer::bytes()] {
            let ids = tokenizer.encode(text).unwrap();
            assert!(ids.len() > 10);
            let pieces = pieces(&tokenizer, &ids);
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().any(String::is_empty));
        }
    }

    #[test]
    fn bad_bytes_do_not_stop_the_stream() {
        for tokenizer in [Tokenizer::gpt2().unwrap(), Tokenizer::bytes()] {
            let id = |byte: u8| match tokenizer.name() {
                "bytes" => u32::from(byte),
                // GPT-2's ids of the bytes 0xa1.. follow those of the 94 printable ASCII ones.
                _ => match byte {
                    b'!'..=b'~' => u32::from(byte - b'!'),
                    0xa1..=0xac => u32::from(byte) - 0xa1 + 94,
                    _ => u32::from(byte) - 0xae + 106,
                },
            };
            let ids = [0xe2, b'o', b'k', 0xff, b'!', 0xe2, 0xa1].map(id);
            let whole = tokenizer.decode(&ids).unwrap();
            assert_eq!(whole, "\u{fffd}ok\u{fffd}!\u{fffd}");
            assert_eq!(pieces(&tokenizer, &ids).concat(), whole);
        }
    }
}
