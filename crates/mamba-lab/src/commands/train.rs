//! `mamba-lab train`

mod reporter;

use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use burn::train::Interrupter;
use clap::{Args, ValueEnum};
use mamba_core::{Request, Sampler, SamplingConfig, device};
use mamba_train::corpus::DatasetKind;
use mamba_train::evaluate::show_perplexity;
use mamba_train::hub::resolve;
use mamba_train::interrupt::stop_on_ctrl_c;
use mamba_train::load::load_run;
use mamba_train::run::{DEFAULT_RUNS, RunFolder, ensure_name};
use mamba_train::summary::{Scores, Summary};
use mamba_train::train::{Display, Outcome, Start, TrainOptions, train};

use super::generate::statistics::Statistics;
use super::{generate, quoted, run_path, start_named};
use crate::experiments;
use crate::failure::guard;
use crate::output::stdout;
use reporter::Reporter;

/// Train a model and leave everything about it in a run folder.
///
/// Without an experiment, `quickstart` trains a small Mamba on WikiText-2 in minutes. In the
/// dashboard, q stops the run; elsewhere Ctrl-C does. Both save a checkpoint to resume from.
#[derive(Args)]
pub struct Arguments {
    /// A TOML file, or one of quickstart, tutorial-mamba, tutorial-transformer, mamba-wikitext2,
    /// mamba2-wikitext2, transformer-wikitext2, hybrid-wikitext2, finetune; by default quickstart, with --from finetune.
    experiment: Option<String>,
    /// Begin with a trained model and its tokenizer: a run, by its folder or its name below artifacts/runs, or a pretrained
    /// model, by its folder or its name on the Hugging Face hub. It is only read.
    #[arg(long, value_name = "MODEL")]
    from: Option<String>,
    /// The tokenizer of the pretrained model given by --from, where that in its folder is missing or another model's: gpt2, bytes,
    /// or the path of a tokenizer.json.
    #[arg(long, value_name = "FILE", requires = "from")]
    tokenizer: Option<String>,
    /// Change a setting, as in `--set model.mamba1.d_state=32`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Name of the run folder below --runs; by default the experiment's, counted up.
    #[arg(long)]
    name: Option<String>,
    /// Continue the run given by --name from its last checkpoint, with its own settings, on its text and, unless --device says
    /// otherwise, on the device it was trained on last.
    #[arg(long, requires = "name", conflicts_with_all = ["experiment", "from", "overrides", "dataset"])]
    resume: bool,
    /// Folder with the text: train.txt, valid.txt and test.txt, or the names of WikiText-2. With --resume: where the run's own
    /// text lies, if no longer where it was.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// auto, wikitext-2, wikitext-2-raw or stories.
    #[arg(long)]
    dataset: Option<DatasetKind>,
    /// Device to train on, such as flex, wgpu or cuda:1; `mamba-lab info` lists them.
    #[arg(long)]
    device: Option<String>,
    /// Folder of all runs.
    #[arg(long, value_name = "FOLDER", default_value = DEFAULT_RUNS)]
    runs: PathBuf,
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t = DisplayArgument::Auto)]
    display: DisplayArgument,
}

/// The experiment for a model that is trained further.
const FINETUNE: &str = "finetune";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DisplayArgument {
    /// The dashboard on a terminal, plain lines elsewhere.
    Auto,
    /// The dashboard.
    Dashboard,
    /// One line every few steps.
    Plain,
    /// Nothing until the end.
    Quiet,
}

impl From<DisplayArgument> for Display {
    fn from(argument: DisplayArgument) -> Self {
        match argument {
            DisplayArgument::Auto => Self::Auto,
            DisplayArgument::Dashboard => Self::Dashboard,
            DisplayArgument::Plain => Self::Plain,
            DisplayArgument::Quiet => Self::Quiet,
        }
    }
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    ensure!(
        arguments.display != DisplayArgument::Dashboard || Display::has_terminal(),
        "--display dashboard needs a terminal: use plain"
    );
    let start = start(&arguments)?;
    let (device_name, device) = device_for(&arguments, &start)?;
    let interrupter = Interrupter::new();
    stop_on_ctrl_c(&interrupter)?;
    let options = TrainOptions {
        device: device.clone(),
        device_name: Some(device_name.clone()),
        data_dir: match start {
            Start::Resume(_) => arguments.data_dir.as_deref().map(whole_path).transpose()?,
            Start::New { .. } => None,
        },
        display: arguments.display.into(),
        interrupter,
    };
    let mut reporter = Reporter::new(match device::adapter(&device) {
        Some(adapter) => format!("{device_name} ({adapter})"),
        None => device_name,
    });
    let outcome = guard(
        "lower data.batch_size or data.seq_len, by --set or, to resume, in the run's config.toml; training.grad_accum \
         makes up for a smaller batch",
        || train(start, options, |event| reporter.report(event)),
    );
    reporter.finish();
    let outcome = outcome.map_err(|error| name_checkpoint(error, reporter.folder()))?;
    match outcome {
        Outcome::Finished { folder, summary } => {
            finished(&folder, &summary, &device)?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted {
            folder,
            step,
            total_steps,
            evaluating,
        } => {
            let when = match evaluating {
                true => "Stopped while evaluating, after",
                false => "Stopped after",
            };
            // Not by `eprintln!`: the terminal may be the reason for the stop, and gone.
            let _ = writeln!(
                stderr(),
                "{when} step {step} of {total_steps}; a checkpoint is saved. Continue with\n  {}",
                continuing(&arguments, &folder)
            );
            // The convention for a program ended by Ctrl-C.
            Ok(ExitCode::from(130))
        }
    }
}

/// The command that continues a run as it was started. The folder knows everything else.
fn continuing(arguments: &Arguments, folder: &RunFolder) -> String {
    let mut command = format!("mamba-lab train --name {} --resume", quoted(&folder.name()));
    if arguments.runs.as_os_str() != DEFAULT_RUNS {
        command += &format!(" --runs {}", quoted(&arguments.runs.to_string_lossy()));
    }
    if let (true, Some(display)) = (
        arguments.display != DisplayArgument::Auto,
        arguments.display.to_possible_value(),
    ) {
        command += &format!(" --display {}", display.get_name());
    }
    command
}

/// The device that is asked for, or that a run was trained on before, and its name.
fn device_for(arguments: &Arguments, start: &Start) -> Result<(String, Device)> {
    let before = match start {
        Start::Resume(folder) if arguments.device.is_none() => folder.device(),
        _ => None,
    };
    match before {
        Some(name) => start_named(Some(&name)).with_context(|| {
            format!("the run was trained on {name}; give a device to go on with by --device")
        }),
        None => start_named(arguments.device.as_deref()),
    }
}

/// A path that can be found from anywhere.
fn whole_path(folder: &Path) -> Result<PathBuf> {
    folder
        .canonicalize()
        .with_context(|| format!("cannot read the data folder {}", folder.display()))
}

/// Adds to `error` where the run's last checkpoint is, if there is one.
fn name_checkpoint(error: anyhow::Error, folder: Option<&RunFolder>) -> anyhow::Error {
    let last = folder.and_then(|folder| {
        let checkpoints = folder.checkpoints();
        let step = *checkpoints.steps().ok()?.last()?;
        Some((step, checkpoints.step_folder(step)))
    });
    match last {
        Some((step, path)) => error.context(format!(
            "training stopped, the checkpoint of step {step} is kept in {}",
            path.display()
        )),
        None => error,
    }
}

fn start(arguments: &Arguments) -> Result<Start> {
    if let (true, Some(name)) = (arguments.resume, &arguments.name) {
        ensure_name(name)?;
        let path = arguments.runs.join(name);
        ensure!(
            path.exists(),
            "there is no run {}: leave out --resume to start it",
            path.display()
        );
        return Ok(Start::Resume(RunFolder::open(&path)?));
    }
    // Here already, for it is no use to open a device and read a corpus first.
    if let Some(name) = &arguments.name {
        RunFolder::ensure_free(&arguments.runs, name)?;
    }
    let mut overrides = arguments.overrides.clone();
    if let Some(dataset) = &arguments.dataset {
        overrides.push(format!("data.dataset={:?}", dataset.name()));
    }
    let usual = match arguments.from {
        Some(_) => FINETUNE,
        None => "quickstart",
    };
    let which = arguments.experiment.as_deref().unwrap_or(usual);
    let mut experiment = experiments::load(which, &overrides)?;
    if let Some(model) = &arguments.from {
        let path = run_path(model);
        let folder = resolve(&path)?.canonicalize().ok();
        let folder = folder.with_context(|| {
            format!("--from: there is no run and no model {model}; give the folder of one")
        })?;
        experiment.from = Some(folder);
        experiment.from_tokenizer = arguments.tokenizer.as_deref().map(lasting);
    }
    ensure!(
        which != FINETUNE || experiment.from.is_some(),
        "the experiment {FINETUNE} begins with a trained model: give one by --from"
    );
    if let Some(folder) = &arguments.data_dir {
        // The run folder must be usable from anywhere.
        experiment.data.data_dir = Some(whole_path(folder)?);
    }
    Ok(Start::New {
        experiment: Box::new(experiment),
        runs: arguments.runs.clone(),
        name: arguments.name.clone(),
    })
}

/// A tokenizer's name or file, such that it can be found from anywhere.
fn lasting(tokenizer: &str) -> String {
    let file = Path::new(tokenizer).canonicalize();
    match (tokenizer, file) {
        ("gpt2" | "bytes", _) | (_, Err(_)) => tokenizer.into(),
        (_, Ok(file)) => file.display().to_string(),
    }
}

/// What the run has learnt: losses before and after, and a sample.
fn finished(folder: &RunFolder, summary: &Summary, device: &Device) -> Result<()> {
    let mut out = stdout();
    writeln!(
        out,
        "\n{} finished after {} steps",
        folder.name(),
        summary.steps
    )?;
    writeln!(out, "{:<16}{:>9}{:>14}", "", "loss", "perplexity")?;
    let rows = [
        ("valid, before", &summary.before),
        ("train, last", &summary.train),
        ("valid", &summary.valid),
        ("test", &summary.test),
    ];
    for (name, scores) in rows {
        if let Some(Scores {
            loss, perplexity, ..
        }) = scores
        {
            let perplexity = show_perplexity(*perplexity, 2);
            writeln!(out, "{name:<16}{loss:>9.4}{perplexity:>14}")?;
        }
    }
    let memory = summary.peak_memory.map_or(String::new(), |bytes| {
        format!(", peak memory {} MiB", bytes >> 20)
    });
    let (speed, wall) = (summary.tokens_per_second, summary.wall_seconds);
    writeln!(out, "{speed:.0} tokens/s, {wall:.0} s in all{memory}")?;
    sample(folder, device, &mut out)?;
    writeln!(
        out,
        "\nEverything is in {}; continue it with",
        folder.path().display()
    )?;
    writeln!(
        out,
        "  mamba-lab generate {} \"Your text\"",
        folder.path().display()
    )?;
    Ok(())
}

fn sample(folder: &RunFolder, device: &Device, out: &mut impl Write) -> Result<()> {
    let run = load_run(folder.path(), device)?;
    let settings = &run.experiment.sample;
    if settings.tokens == 0 {
        return Ok(());
    }
    let sampler = Sampler::new(SamplingConfig {
        temperature: settings.temperature as f32,
        top_k: (settings.top_k > 0).then_some(settings.top_k),
        seed: run.experiment.training.seed,
        ..Default::default()
    })?;
    let prompt = generate::encode(&run.tokenizer, &settings.prompt, false)?;
    let intro = format!("\nA sample: {}", settings.prompt);
    let most = generate::room(&run, prompt.len(), false);
    let request = Request::new(&prompt, sampler)
        .with_max_tokens(most.map_or(settings.tokens, |most| most.min(settings.tokens)))
        .with_stop_tokens(run.tokenizer.ends().iter().copied());
    let ending = generate::Ending {
        stop: &[],
        keep: false,
    };
    let (request, mut statistics) = ((request, prompt.len()), Statistics::since(Instant::now()));
    generate::stream(&run, &intro, request, ending, device, &mut statistics, out)?;
    writeln!(out)?;
    stderr().flush()?;
    Ok(())
}
