//! `mamba-lab chat`

use std::io::{BufRead, IsTerminal, Write, stderr, stdin};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Args;
use mamba_core::{Request, Sampler, SamplingConfig, Snapshot};
use mamba_train::load::LoadedRun;

use super::generate::sampling::SamplingArguments;
use super::generate::statistics::Statistics;
use super::generate::{self, Ending, Finish, state};
use super::{open, start_device};
use crate::output::stdout;

/// Talk with a trained model, a line in and an answer out, each behind all that came before.
///
/// The models are trained to continue text, not to follow instructions: the line goes into --template, and what the model
/// continues it with, up to --stop, is its answer. Nothing is read twice: a Mamba keeps the conversation in a state of one
/// size, which --state saves after every answer and continues from the next time. Where a model has learned
/// positions, as GPT-2 has, the conversation ends with them.
#[derive(Args)]
pub struct Arguments {
    /// A run, by its folder or its name below artifacts/runs, or a pretrained model, by its folder or its name on the Hugging
    /// Face hub, such as state-spaces/mamba-130m.
    run: String,
    /// Continue the conversation saved in FILE, if it is there, and save it there after every answer.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// What the model reads of a line, which stands at `{}`; `\n` is a line break.
    #[arg(long, value_name = "TEXT", default_value = "{}\\n")]
    template: String,
    /// Text that ends an answer and is not shown; may be repeated. `\n` is a line break.
    #[arg(long, value_name = "TEXT", default_value = "\\n")]
    stop: Vec<String>,
    /// Tokens of an answer at most.
    #[arg(
        long,
        short = 'n',
        default_value_t = 128,
        allow_negative_numbers = true
    )]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// The tokenizer of a pretrained model, where that in its folder is missing or another model's: gpt2, bytes, or the path of a
    /// tokenizer.json.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<String>,
    /// Device to run on, such as flex, wgpu or cuda:1.
    #[arg(long)]
    device: Option<String>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut statistics = Statistics::since(Instant::now());
    let sampling = arguments.sampling.config()?;
    let broken = |text: &String| text.replace("\\n", "\n");
    let (template, stop) = (
        broken(&arguments.template),
        arguments.stop.iter().map(broken).collect::<Vec<_>>(),
    );
    generate::check_stop(&stop)?;
    ensure!(
        template.matches("{}").count() == 1,
        "--template: give one {{}}, where the line is to stand"
    );
    if let Some(path) = &arguments.state {
        state::check_writable(path)?;
    }
    let device = start_device(arguments.device.as_deref())?;
    let run = open(&arguments.run, arguments.tokenizer.as_deref(), &device)?;
    let mut after = None;
    if let Some(path) = arguments.state.as_ref().filter(|path| path.exists()) {
        let snapshot = state::load(path, &run.model, &device)?;
        eprintln!(
            "Continuing {} behind {} tokens",
            path.display(),
            snapshot.state.position
        );
        after = Some(snapshot);
    }
    let terminal = stdin().is_terminal();
    let room = Room::of(&run, &template, &stop[0])?;
    let mut out = stdout();
    let mut lines = stdin().lock().lines().enumerate();
    loop {
        let left = room.left(&run, after.as_ref());
        if left.is_some_and(|left| left < room.least) {
            let positions = run.model.max_positions().unwrap_or_default();
            eprintln!(
                "The conversation ends here: it has used up the model's {positions} positions"
            );
            break;
        }
        if terminal {
            eprint!("> ");
        }
        stderr().flush()?;
        let Some((number, line)) = lines.next() else {
            if terminal {
                eprintln!();
            }
            break;
        };
        let line = line.context("cannot read standard input")?;
        let line = template.replacen("{}", &line, 1);
        let tokens = match generate::encode(&run.tokenizer, &line, false) {
            Ok(tokens) => tokens,
            Err(error) => {
                eprintln!("{error:#}");
                continue;
            }
        };
        if let Some(left) = left.filter(|left| tokens.len() >= *left) {
            eprintln!(
                "The line is passed over: it has {} tokens, and the model has positions for {} and an answer",
                tokens.len(),
                left - 1
            );
            continue;
        }
        let most = left.map_or(arguments.tokens, |left| {
            arguments.tokens.min(left - tokens.len())
        });
        let mut config = sampling.clone();
        // Each answer has random numbers of its own, and a conversation is the same each time.
        config.seed = config.seed.wrapping_add(number as u64);
        let mut request = Request::new(&tokens, Sampler::new(config)?)
            .with_max_tokens(most)
            .with_stop_tokens(run.tokenizer.ends().iter().copied());
        if let Some(after) = after.take() {
            request = request.after(after);
        }
        let ending = Ending {
            stop: &stop,
            keep: true,
        };
        let answer = (request, tokens.len());
        let (finish, snapshot) =
            generate::stream(&run, "", answer, ending, &device, &mut statistics, &mut out)?;
        writeln!(out)?;
        let mut snapshot = snapshot.expect("the end was wanted");
        if finish != Finish::Stop {
            snapshot = close(&run, snapshot, &stop[0], &device)?;
        }
        if let Some(path) = &arguments.state {
            snapshot.save(&run.model, path)?;
        }
        after = Some(snapshot);
    }
    eprintln!("{statistics}");
    Ok(ExitCode::SUCCESS)
}

/// What a line and its answer need of the positions that a model has learned, if it has.
struct Room {
    /// Tokens that close an answer that did not come to its end.
    closing: usize,
    /// The fewest tokens of a line and its answer.
    least: usize,
}

impl Room {
    fn of(run: &LoadedRun, template: &str, stop: &str) -> Result<Self> {
        let tokens = |text: &str| Ok::<_, anyhow::Error>(run.tokenizer.encode(text)?.len());
        Ok(Self {
            closing: tokens(stop)?,
            least: tokens(&template.replacen("{}", "", 1))?.max(1) + 1,
        })
    }

    /// Tokens that the next line and its answer can have together.
    fn left(&self, run: &LoadedRun, after: Option<&Snapshot>) -> Option<usize> {
        let before = after.map_or(0, |it| it.state.position);
        generate::room(run, before + self.closing, true)
    }
}

/// Lets the model read the text that ends an answer, where it did not come to it.
fn close(run: &LoadedRun, after: Snapshot, stop: &str, device: &Device) -> Result<Snapshot> {
    let tokens = run.tokenizer.encode(stop)?;
    let sampler = Sampler::new(SamplingConfig::default())?;
    let request = Request::new(&tokens, sampler).after(after);
    Ok(run.model.generate_from(request, device)?.snapshot()?)
}
