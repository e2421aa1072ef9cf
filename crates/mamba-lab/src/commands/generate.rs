//! `mamba-lab generate`

use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Args;
use mamba_core::{Sampler, SamplingConfig};
use mamba_train::compiling;
use mamba_train::load::{LoadedRun, Weights, load_model};

use super::{run_path, start_device};

/// Continue a text with a trained model.
///
/// The text goes to standard output as it comes, everything else to standard error.
#[derive(Args)]
pub struct Arguments {
    /// A run, by its folder or its name below artifacts/runs, or the folder of a pretrained model.
    run: String,
    /// The text to continue; read from standard input if left out.
    prompt: Option<String>,
    /// Tokens to generate at most.
    #[arg(long, short = 'n', default_value_t = 128)]
    tokens: usize,
    /// Divides the logits; 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// Sample among this many most likely tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample among the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Sample among tokens at least this likely relative to the most likely one.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Sample among the tokens whose surprise is nearest to the expected one, that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    typical_p: f32,
    /// Taken off a token's logit for each time it has occurred.
    #[arg(
        long,
        value_name = "PENALTY",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    frequency_penalty: f32,
    /// Taken off a token's logit once it has occurred.
    #[arg(
        long,
        value_name = "PENALTY",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    presence_penalty: f32,
    /// Above 1, makes tokens that have occurred less likely.
    #[arg(long, value_name = "PENALTY", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop before this text is generated; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Device to run on, such as flex, wgpu or cuda:1.
    #[arg(long)]
    device: Option<String>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let sampler = Sampler::new(SamplingConfig {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        typical_p: arguments.typical_p,
        frequency_penalty: arguments.frequency_penalty,
        presence_penalty: arguments.presence_penalty,
        repetition_penalty: arguments.repetition_penalty,
        seed: arguments.seed,
    })?;
    ensure!(
        arguments.stop.iter().all(|text| !text.is_empty()),
        "--stop: an empty text would stop at once; leave the option out instead"
    );
    let prompt = match arguments.prompt {
        Some(prompt) => prompt,
        None => {
            ensure!(
                !stdin().is_terminal(),
                "give the text to continue as an argument or on standard input"
            );
            let mut prompt = String::new();
            stdin()
                .read_to_string(&mut prompt)
                .context("cannot read standard input")?;
            prompt
        }
    };
    ensure!(
        !prompt.is_empty(),
        "the text to continue is empty: give at least one character"
    );

    let device = start_device(arguments.device.as_deref())?;
    let run = load_model(&run_path(&arguments.run), &device)?;
    if let Weights::Checkpoint(step) = run.weights {
        eprintln!("The run is not finished: using its checkpoint after step {step}");
    }
    let tokens = run.tokenizer.encode(&prompt)?;
    let mut out = stdout().lock();
    let limit = Limit {
        tokens: arguments.tokens,
        stop: &arguments.stop,
    };
    let statistics = stream(&run, &prompt, &tokens, sampler, limit, &device, &mut out)?;
    writeln!(out)?;
    eprintln!("{statistics}");
    Ok(ExitCode::SUCCESS)
}

/// When to end.
#[derive(Clone, Copy)]
pub struct Limit<'a> {
    /// Tokens at most.
    pub tokens: usize,
    /// Texts that end generation and are not shown.
    pub stop: &'a [String],
}

/// Writes `intro` once the first token is there, then each piece of text as soon as it is certain: its
/// characters are complete and it cannot be the beginning of a stop text.
pub fn stream(
    run: &LoadedRun,
    intro: &str,
    prompt: &[u32],
    sampler: Sampler,
    limit: Limit<'_>,
    device: &Device,
    out: &mut impl Write,
) -> Result<String> {
    let start = Instant::now();
    compiling::show();
    let mut generator = run.model.generate(prompt, sampler, device)?.peekable();
    if limit.tokens > 0 {
        generator.peek();
    }
    compiling::hide();
    write!(out, "{intro}")?;
    out.flush()?;
    let mut decoder = run.tokenizer.decode_stream();
    let mut text = StopFilter::new(limit.stop);
    let mut first = None;
    let mut count = 0;
    for token in generator.take(limit.tokens) {
        let token = token?;
        first.get_or_insert_with(|| start.elapsed());
        count += 1;
        if run.tokenizer.end_of_text() == Some(token) {
            break;
        }
        write!(out, "{}", text.push(&decoder.push(token)?))?;
        out.flush()?;
        if text.stopped {
            break;
        }
    }
    if !text.stopped {
        let rest = text.push(&decoder.finish()?);
        write!(out, "{rest}{}", text.rest())?;
    }
    let first = first.unwrap_or_default();
    let rest = (start.elapsed() - first).as_secs_f64();
    let speed = match count {
        0 | 1 => String::new(),
        count => format!(", then {:.1} tokens/s", f64::from(count - 1) / rest),
    };
    let prompt = prompt.len();
    Ok(format!(
        "{prompt} prompt tokens; first token after {:.3} s{speed}",
        first.as_secs_f64()
    ))
}

/// Holds back text that may turn out to be the beginning of a stop text.
struct StopFilter<'a> {
    stop: &'a [String],
    pending: String,
    stopped: bool,
}

impl<'a> StopFilter<'a> {
    fn new(stop: &'a [String]) -> Self {
        Self {
            stop,
            pending: String::new(),
            stopped: false,
        }
    }

    /// The text that is certain once `piece` has come.
    fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.pending.push_str(piece);
        let found = self
            .stop
            .iter()
            .filter_map(|stop| self.pending.find(stop.as_str()))
            .min();
        if let Some(at) = found {
            self.stopped = true;
            self.pending.truncate(at);
            return std::mem::take(&mut self.pending);
        }
        let held = self
            .pending
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| {
                self.stop
                    .iter()
                    .any(|stop| stop.starts_with(&self.pending[*at..]))
            })
            .unwrap_or(self.pending.len());
        let rest = self.pending.split_off(held);
        std::mem::replace(&mut self.pending, rest)
    }

    /// What was held back, once no more will come.
    fn rest(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(stop: &[&str], pieces: &[&str]) -> String {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut filter = StopFilter::new(&stop);
        let mut text: String = pieces.iter().map(|piece| filter.push(piece)).collect();
        text.push_str(&filter.rest());
        text
    }

    #[test]
    fn a_stop_text_is_found_across_pieces_and_not_shown() {
        assert_eq!(filtered(&["END"], &["one E", "N", "D two"]), "one ");
        assert_eq!(filtered(&["\n", "END"], &["oneEND\ntwo"]), "one");
    }

    #[test]
    fn what_only_begins_like_a_stop_text_is_shown() {
        assert_eq!(filtered(&["END"], &["an E", "N", " of E"]), "an EN of E");
        assert_eq!(filtered(&["aab"], &["aa", "ab"]), "a");
        assert_eq!(filtered(&[], &["é", "à"]), "éà");
    }
}
