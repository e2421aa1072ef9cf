//! `mamba-lab generate`

mod jsonl;
pub mod sampling;
pub mod state;
pub mod statistics;
mod text;

use std::io::{IsTerminal, Read, Write, stdin};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Args;
use mamba_core::{Request, Snapshot};
use mamba_train::compiling;
use mamba_train::load::LoadedRun;
use mamba_train::tokenizer::Tokenizer;

use super::{open, start_device};
use crate::failure::guard;
use crate::output::stdout;
use jsonl::Common;
use sampling::SamplingArguments;
use statistics::Statistics;
pub use text::Finish;
use text::Text;

/// Continue a text with a trained model.
///
/// The text goes to standard output as it comes, everything else to standard error.
#[derive(Args)]
pub struct Arguments {
    /// A run, by its folder or its name below artifacts/runs, or a pretrained model, by its folder or its name on the Hugging
    /// Face hub, such as state-spaces/mamba-130m.
    run: String,
    /// The text to continue. Left out or `-`, it is read from standard input, whose last line break does not count.
    prompt: Option<String>,
    /// Tokens to generate at most; 0 only reads the text.
    #[arg(
        long,
        short = 'n',
        default_value_t = 128,
        allow_negative_numbers = true
    )]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Stop before this text is generated; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// So many texts at once, the first with the seed given, the next with the one after it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    sequences: usize,
    /// Continue each line of FILE (`-` for standard input), a JSON object such as {"prompt": "The river"}, with a line of
    /// JSON. A line may also have `id`, which comes back, and its own `tokens`, `temperature`, `top_k`, `top_p`, `seed` and
    /// `stop`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "sequences", "state_out"])]
    jsonl: Option<PathBuf>,
    /// With --jsonl: tell the log-probability of each token, and those of the N most likely ones in its place.
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
    /// With --jsonl: prompts that are continued at once; by default 8.
    #[arg(long, value_name = "N")]
    at_once: Option<usize>,
    /// Continue what was read and generated before this state was saved; then the text may be empty.
    #[arg(long, value_name = "FILE")]
    state_in: Option<PathBuf>,
    /// Save what the model remembers at the end: for Mamba a file of one size, however long the text was.
    #[arg(long, value_name = "FILE", conflicts_with = "sequences")]
    state_out: Option<PathBuf>,
    /// The tokenizer of a pretrained model, where that in its folder is missing or another model's: gpt2, bytes, or the path of a
    /// tokenizer.json.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<String>,
    /// Device to run on, such as flex, wgpu or cuda:1.
    #[arg(long)]
    device: Option<String>,
}

/// Prompts that are continued at once where nothing is said.
const AT_ONCE: usize = 8;

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let advice =
        "give fewer --sequences or prompts --at-once, or choose another device with --device";
    guard(advice, || write(arguments))
}

fn write(arguments: Arguments) -> Result<ExitCode> {
    let mut statistics = Statistics::since(Instant::now());
    let config = arguments.sampling.config()?;
    check_stop(&arguments.stop)?;
    ensure!(arguments.sequences > 0, "--sequences: give at least 1");
    ensure!(arguments.at_once != Some(0), "--at-once: give at least 1");
    // Clap leaves out what an option requires where that conflicts with another one.
    for (name, given) in [
        ("--logprobs", arguments.logprobs.is_some()),
        ("--at-once", arguments.at_once.is_some()),
    ] {
        ensure!(
            !given || arguments.jsonl.is_some(),
            "{name} is for many prompts in JSON: give them by --jsonl"
        );
    }
    ensure!(
        arguments.sequences == 1 || config.temperature > 0.0,
        "--sequences: with a temperature of 0 all texts are the same; give a higher one"
    );
    if let Some(path) = &arguments.state_out {
        state::check_writable(path)?;
    }
    let goes_on = arguments.state_in.is_some();
    let prompt = match (&arguments.jsonl, arguments.prompt.as_deref()) {
        (Some(_), _) => String::new(),
        (None, Some("-") | None) => read_prompt(goes_on)?,
        (None, Some(prompt)) => prompt.to_string(),
    };
    if arguments.jsonl.is_none() {
        check_prompt(&prompt, goes_on)?;
    }

    let device = start_device(arguments.device.as_deref())?;
    let run = open(&arguments.run, arguments.tokenizer.as_deref(), &device)?;
    let after = match &arguments.state_in {
        Some(path) => Some(state::load(path, &run.model, &device)?),
        None => None,
    };
    let mut out = stdout();
    if let Some(source) = &arguments.jsonl {
        let common = Common {
            sampling: config,
            tokens: arguments.tokens,
            stop: arguments.stop,
            logprobs: arguments.logprobs,
            after,
            at_once: arguments.at_once.unwrap_or(AT_ONCE),
        };
        jsonl::run(&run, source, &common, &device, &mut statistics, &mut out)?;
        eprintln!("{statistics}");
        return Ok(ExitCode::SUCCESS);
    }

    let tokens = encode(&run.tokenizer, &prompt, goes_on)?;
    let before = after.as_ref().map_or(0, |it| it.state.position) + tokens.len();
    let most = room(&run, before, arguments.state_out.is_some());
    if let Some(most) = most.filter(|most| *most < arguments.tokens) {
        eprintln!("At most {most} tokens can follow: the model has no positions for more");
    }
    let limit = most.map_or(arguments.tokens, |most| most.min(arguments.tokens));
    let request = |number| -> Result<Request> {
        let request = Request::new(&tokens, arguments.sampling.sampler(number)?)
            .with_max_tokens(limit)
            .with_stop_tokens(run.tokenizer.ends().iter().copied());
        Ok(match &after {
            Some(after) => request.after(after.clone()),
            None => request,
        })
    };
    if arguments.sequences == 1 {
        let ending = Ending {
            stop: &arguments.stop,
            keep: arguments.state_out.is_some(),
        };
        let (_, snapshot) = stream(
            &run,
            &prompt,
            (request(0)?, tokens.len()),
            ending,
            &device,
            &mut statistics,
            &mut out,
        )?;
        writeln!(out)?;
        if let (Some(path), Some(snapshot)) = (&arguments.state_out, snapshot) {
            snapshot.save(&run.model, path)?;
        }
    } else {
        let requests = (0..arguments.sequences).map(request);
        let requests = requests.collect::<Result<Vec<_>>>()?;
        let read = tokens.len() * requests.len();
        let stops = vec![&arguments.stop[..]; requests.len()];
        let prepared = run.model.prepare(&device);
        let texts = jsonl::generate(&run, requests, &stops, read, &prepared, &mut statistics)?;
        for (number, told) in texts.into_iter().enumerate() {
            writeln!(out, "=== {} of {} ===", number + 1, arguments.sequences)?;
            writeln!(out, "{prompt}{}", told.text)?;
        }
    }
    eprintln!("{statistics}");
    Ok(ExitCode::SUCCESS)
}

/// So many tokens can follow that many, where the model has learned positions. The last one needs none, unless it is to be read.
pub fn room(run: &LoadedRun, before: usize, reads_last: bool) -> Option<usize> {
    let positions = run.model.max_positions()?;
    Some((positions + usize::from(!reads_last)).saturating_sub(before))
}

/// The prompt on standard input; with something to go on from, nothing where that is a terminal.
fn read_prompt(goes_on: bool) -> Result<String> {
    if goes_on && stdin().is_terminal() {
        return Ok(String::new());
    }
    ensure!(
        !stdin().is_terminal(),
        "give the text to continue as an argument or on standard input"
    );
    let mut bytes = Vec::new();
    stdin()
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    let mut prompt = String::from_utf8(bytes).context("standard input is not UTF-8")?;
    if prompt.ends_with('\n') {
        prompt.pop();
        if prompt.ends_with('\r') {
            prompt.pop();
        }
    }
    Ok(prompt)
}

fn check_prompt(prompt: &str, goes_on: bool) -> Result<()> {
    ensure!(
        goes_on || !prompt.is_empty(),
        "the text to continue is empty: give at least one character"
    );
    Ok(())
}

/// Refuses stop texts that would stop before anything comes.
pub fn check_stop(stop: &[String]) -> Result<()> {
    ensure!(
        stop.iter().all(|text| !text.is_empty()),
        "--stop: an empty text would stop at once; leave the option out instead"
    );
    Ok(())
}

/// The tokens of a text to continue, which may be empty only where something else is gone on from.
pub fn encode(tokenizer: &Tokenizer, prompt: &str, goes_on: bool) -> Result<Vec<u32>> {
    check_prompt(prompt, goes_on)?;
    let tokens = tokenizer.encode(prompt)?;
    ensure!(
        prompt.is_empty() || !tokens.is_empty(),
        "the tokenizer {} knows nothing of this text: give another one, or the model that it is meant for",
        tokenizer.name()
    );
    Ok(tokens)
}

/// How a text ends, and what is wanted of its end.
#[derive(Clone, Copy)]
pub struct Ending<'a> {
    /// Texts that end generation and are not shown.
    pub stop: &'a [String],
    /// Whether the model behind the last token is wanted.
    pub keep: bool,
}

/// Writes `intro` once the first token is there, then each piece of text as soon as it is certain. The request has that
/// many tokens to read.
pub fn stream(
    run: &LoadedRun,
    intro: &str,
    (request, prompt_tokens): (Request, usize),
    ending: Ending<'_>,
    device: &Device,
    statistics: &mut Statistics,
    out: &mut impl Write,
) -> Result<(Finish, Option<Snapshot>)> {
    let mut pass = statistics.read(prompt_tokens);
    compiling::show();
    let mut generator = run.model.generate_from(request, device)?;
    let mut text = Text::new(&run.tokenizer, ending.stop);
    let mut intro = Some(intro);
    for token in generator.by_ref() {
        compiling::hide();
        let token = token?;
        pass.tokens(1);
        let piece = text.push(token)?;
        write!(out, "{}{piece}", intro.take().unwrap_or_default())?;
        out.flush()?;
        if text.ended() {
            break;
        }
    }
    compiling::hide();
    drop(pass);
    let (rest, finish) = text.finish()?;
    write!(out, "{}{rest}", intro.unwrap_or_default())?;
    out.flush()?;
    let snapshot = match ending.keep {
        true => Some(generator.snapshot()?),
        false => None,
    };
    Ok((finish, snapshot))
}
