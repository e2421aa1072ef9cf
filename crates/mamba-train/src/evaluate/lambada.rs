//! LAMBADA: the last word of a passage, which needs the whole of it (Paperno et al. 2016).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use mamba_core::LanguageModel;
use serde::Deserialize;

use crate::tokenizer::Tokenizer;

/// Tokens of a batch, padding included.
const AT_ONCE: usize = 4096;

/// A passage, cut before the space in front of its last word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// All but the last word.
    pub context: String,
    /// A space and the last word.
    pub word: String,
}

/// A line of the file.
#[derive(Deserialize)]
struct Line {
    text: String,
}

/// What a model makes of the last words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lambada {
    /// Passages.
    pub passages: usize,
    /// The part of them whose last word greedy generation gives, every token of it.
    pub accuracy: f64,
    /// `exp(-mean(ln p(last word)))`, where a word's probability is that of all its tokens.
    pub perplexity: f64,
}

/// Reads passages in the form that OpenAI published: a JSON object with `text` a line.
///
/// # Errors
///
/// When the file cannot be read, a line has another form or fewer than two words, or there is none.
pub fn read_passages(path: &Path) -> Result<Vec<Passage>> {
    let file =
        File::open(path).with_context(|| format!("cannot read LAMBADA from {}", path.display()))?;
    let mut passages = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("line {} of {}", number + 1, path.display());
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&line)
            .context("expected a JSON object with \"text\"")
            .with_context(place)?;
        let last = line.text.rfind(' ').filter(|at| *at > 0);
        let last = last
            .context("the text has no last word")
            .with_context(place)?;
        let (context, word) = line.text.split_at(last);
        passages.push(Passage {
            context: context.into(),
            word: word.into(),
        });
    }
    ensure!(!passages.is_empty(), "{} holds no passages", path.display());
    Ok(passages)
}

/// The tokens of a passage's context, and those that its last word adds to them.
fn encode(passage: &Passage, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    // A context never ends in spaces: they belong to what follows.
    let context = passage.context.trim_end();
    let whole = tokenizer.encode(&format!("{}{}", passage.context, passage.word))?;
    let context = tokenizer.encode(context)?.len().min(whole.len());
    let (context, word) = whole.split_at(context);
    Ok((context.to_vec(), word.to_vec()))
}

/// Evaluates `model` on `passages`. A context that is longer than the model's positions loses its beginning. `on_batch` as
/// for [`evaluate`](super::evaluate).
///
/// # Errors
///
/// When the tokenizer knows nothing of a passage, the device fails, or the model diverged.
pub fn evaluate_lambada(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    passages: &[Passage],
    device: &Device,
    mut on_batch: impl FnMut(usize, usize) -> bool,
) -> Result<Option<Lambada>> {
    let mut items = Vec::with_capacity(passages.len());
    for passage in passages {
        let (mut context, word) = encode(passage, tokenizer)?;
        if let Some(positions) = model.max_positions() {
            let most = (positions + 1).saturating_sub(word.len());
            context.drain(..context.len().saturating_sub(most));
        }
        ensure!(
            !context.is_empty() && !word.is_empty(),
            "the tokenizer makes no tokens of a passage or its last word: {:?}",
            passage.word
        );
        items.push((context, word));
    }
    // The longest first: what does not fit fails at once.
    items.sort_by_key(|(context, word)| std::cmp::Reverse(context.len() + word.len()));
    let (mut done, mut right, mut total) = (0, 0, 0.0);
    while done < items.len() {
        let longest = items[done].0.len() + items[done].1.len();
        let batch = &items[done..(done + (AT_ONCE / longest).max(1)).min(items.len())];
        let slices: Vec<(&[u32], &[u32])> = batch.iter().map(|(a, b)| (&a[..], &b[..])).collect();
        for judged in model.score_continuations(&slices, device)? {
            right += usize::from(judged.greedy);
            total += judged.score.sum();
        }
        done += batch.len();
        if !on_batch(done, items.len()) {
            return Ok(None);
        }
    }
    Ok((done > 0).then(|| Lambada {
        passages: done,
        accuracy: right as f64 / done as f64,
        perplexity: super::perplexity(-total / done as f64),
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use mamba_core::{LanguageModelConfig, Request, Sampler, SamplingConfig};

    /// A GPU beside it would compile kernels for minutes.
    fn cpu() -> Device {
        mamba_core::device::device("flex").unwrap_or_default()
    }

    #[test]
    fn a_last_word_keeps_its_space() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "{\"text\": \"a \\\"sea\\\" wide\"}\n\n").unwrap();
        let passages = read_passages(file.path()).unwrap();
        let want = Passage {
            context: "a \"sea\"".into(),
            word: " wide".into(),
        };
        assert_eq!(passages, [want]);
        let tokenizer = Tokenizer::gpt2().unwrap();
        let (context, word) = encode(&passages[0], &tokenizer).unwrap();
        assert_eq!(tokenizer.decode(&context).unwrap(), "a \"sea\"");
        assert_eq!(tokenizer.decode(&word).unwrap(), " wide");
    }

    #[test]
    fn lines_of_another_form_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, told) in [
            ("{\"text\": \"one two\"}\nnothing", "line 2"),
            ("{\"texts\": \"one two\"}", "line 1"),
            ("{\"text\": \"one\"}", "last word"),
            ("\n", "no passages"),
        ] {
            fs::write(file.path(), text).unwrap();
            let error = format!("{:#}", read_passages(file.path()).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
        assert!(read_passages(Path::new("nowhere")).is_err());
    }

    /// Words that the model itself generates are right, others are not; probabilities are those of the text alone.
    #[test]
    fn a_word_is_right_where_greedy_generation_gives_it() {
        let (device, tokenizer) = (cpu(), Tokenizer::bytes());
        device.seed(5);
        let mut config = LanguageModelConfig::new().with_vocab_size(256);
        config.d_model = 16;
        let mut model = config.init(&device);
        // It says what it has read last.
        model.embedding = model.embedding.map(|table| table * 50.0);
        let greedy = SamplingConfig {
            temperature: 0.0,
            ..Default::default()
        };
        let mut passages = Vec::new();
        for context in ["the cat sat on", "no"] {
            let ids = tokenizer.encode(&format!("{context} ")).unwrap();
            let request = Request::new(&ids, Sampler::new(greedy.clone()).unwrap());
            let next = model.generate_from(request, &device).unwrap().next();
            let next = next.unwrap().unwrap();
            for byte in [next, (next + 1) % 128] {
                let word = tokenizer.decode(&[byte]).unwrap();
                passages.push(Passage {
                    context: context.into(),
                    word: format!(" {word}"),
                });
            }
        }
        let mut right = 0;
        let mut total = 0.0;
        for passage in &passages {
            let (context, word) = encode(passage, &tokenizer).unwrap();
            let request = Request::new(&context, Sampler::new(greedy.clone()).unwrap());
            let said: Vec<u32> = model
                .generate_from(request, &device)
                .unwrap()
                .take(word.len())
                .map(Result::unwrap)
                .collect();
            right += usize::from(said == word);
            let all = [context, word.clone()].concat();
            let score = model.score_tokens(&all, None, &device).unwrap();
            let last = &score.logprobs[score.logprobs.len() - word.len()..];
            total += last.iter().map(|it| f64::from(*it)).sum::<f64>();
        }
        let got = evaluate_lambada(&model, &tokenizer, &passages, &device, |_, _| true);
        let got = got.unwrap().unwrap();
        assert_eq!(got.passages, 4);
        assert!(
            (got.accuracy - right as f64 / 4.0).abs() < 1e-9,
            "{got:?}, {right}"
        );
        let want = (-total / 4.0).exp();
        assert!(
            (got.perplexity / want - 1.0).abs() < 1e-3,
            "{got:?} for {want}"
        );
    }
}
