//! Tokens as text, as they come.

use anyhow::Result;
use mamba_core::StopFilter;
use mamba_train::tokenizer::{DecodeStream, Tokenizer};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    EndOfText,
    /// A stop text came.
    Stop,
    /// As many tokens as were asked for.
    Length,
}

impl Finish {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Turns tokens into text, each piece as soon as it is certain: its characters are complete and it cannot be the
/// beginning of a stop text.
pub struct Text<'a> {
    ends: &'a [u32],
    decoder: DecodeStream<'a>,
    filter: StopFilter,
    finish: Option<Finish>,
}

impl<'a> Text<'a> {
    pub fn new(tokenizer: &'a Tokenizer, stop: &[String]) -> Self {
        Self {
            ends: tokenizer.ends(),
            decoder: tokenizer.decode_stream(),
            filter: StopFilter::new(stop.iter().cloned()),
            finish: None,
        }
    }

    /// The text that is certain once `token` has come.
    pub fn push(&mut self, token: u32) -> Result<String> {
        if self.ends.contains(&token) {
            self.finish = Some(Finish::EndOfText);
            return Ok(String::new());
        }
        let piece = self.filter.push(&self.decoder.push(token)?);
        if self.filter.stopped() {
            self.finish = Some(Finish::Stop);
        }
        Ok(piece)
    }

    /// Whether no more is to come.
    pub fn ended(&self) -> bool {
        self.finish.is_some()
    }

    /// What was held back, once no more will come, and why not.
    pub fn finish(mut self) -> Result<(String, Finish)> {
        let rest = match self.filter.stopped() {
            true => String::new(),
            false => {
                let last = self.filter.push(&self.decoder.finish()?);
                last + &self.filter.finish()
            }
        };
        // The last characters can complete a stop text.
        let stopped = self.filter.stopped().then_some(Finish::Stop);
        Ok((rest, self.finish.or(stopped).unwrap_or(Finish::Length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(stop: &[&str], text: &str) -> (Vec<String>, Finish) {
        let tokenizer = Tokenizer::gpt2().unwrap();
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut stream = Text::new(&tokenizer, &stop);
        let mut pieces = Vec::new();
        for token in tokenizer.encode(text).unwrap() {
            pieces.push(stream.push(token).unwrap());
            if stream.ended() {
                break;
            }
        }
        let (rest, finish) = stream.finish().unwrap();
        pieces.push(rest);
        (pieces, finish)
    }

    /// A family of three people with skin tones: eight code points that are one picture, each of several tokens.
    const FAMILY: &str = "\u{1f468}\u{1f3fd}\u{200d}\u{1f469}\u{1f3fd}\u{200d}\u{1f467}\u{1f3fd}";

    #[test]
    fn emoji_of_many_tokens_come_whole() {
        let text = format!("a {FAMILY}, caf\u{e9} \u{1f600}!");
        let (pieces, finish) = told(&[], &text);
        assert_eq!((pieces.concat(), finish), (text.clone(), Finish::Length));
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
        // Most tokens complete no character.
        assert!(pieces.len() > text.chars().count(), "{pieces:?}");
    }

    #[test]
    fn an_emoji_can_stop_a_text() {
        let (pieces, finish) = told(&["\u{1f600}"], "one \u{1f601} two \u{1f600} three");
        assert_eq!(
            (&pieces.concat()[..], finish),
            ("one \u{1f601} two ", Finish::Stop)
        );
    }

    #[test]
    fn the_end_of_a_text_is_not_shown() {
        let (pieces, finish) = told(&[], "one<|endoftext|>two");
        assert_eq!((&pieces.concat()[..], finish), ("one", Finish::EndOfText));
    }
}
