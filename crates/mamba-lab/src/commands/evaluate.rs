//! `mamba-lab evaluate`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use mamba_train::compiling;
use mamba_train::corpus::{DatasetKind, Split};
use mamba_train::data::{SplitText, load_split};
use mamba_train::evaluate::{
    Evaluation, Sliding, evaluate, evaluate_carried, evaluate_lambada, evaluate_sliding,
    perplexity, read_passages, show_perplexity,
};
use mamba_train::experiment::DataConfig;
use mamba_train::learner::TokenLoader;
use mamba_train::load::LoadedRun;
use mamba_train::tokenizer::Convention;
use mamba_train::windows::{Tail, Windows};

use super::{open, start_device};
use crate::failure::guard;
use crate::output::stdout;
use crate::progress;

/// Measure the loss and perplexity of a trained model on one split of a corpus, or its score on LAMBADA.
///
/// Figures compare only where text, tokens, convention and past are alike; all are printed. A model is never measured on
/// another form of WikiText-2 (raw, or with `<unk>`) than it was trained on.
#[derive(Args)]
pub struct Arguments {
    /// A run, by its folder or its name below artifacts/runs, or a pretrained model, by its folder or its name on the Hugging
    /// Face hub, such as state-spaces/mamba-130m.
    run: String,
    /// train, valid or test.
    #[arg(long, default_value = "test", value_parser = parse_split)]
    split: Split,
    /// Folder with the text, if it is not where it was at training.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// What comes before a token that is predicted.
    #[arg(long, value_enum, default_value_t = Past::Windows)]
    past: Past,
    /// Tokens of a window; by default those of training and, of a pretrained model, 1024 or its positions.
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// With --past sliding: tokens between two windows; by default half of one.
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// How the text becomes tokens, whole-file or rows (each line of WikiText-2 alone, blank lines left out, all joined); by
    /// default as at training.
    #[arg(long, value_name = "NAME")]
    convention: Option<Convention>,
    /// Instead: predict the last words of FILE, a JSON object with "text" a line, the form that OpenAI published.
    #[arg(long, value_name = "FILE",
        conflicts_with_all = ["data_dir", "past", "context", "stride", "convention", "split"])]
    lambada: Option<PathBuf>,
    /// With --lambada: only so many passages, the first ones.
    #[arg(long, value_name = "N", requires = "lambada")]
    limit: Option<usize>,
    /// Windows or passages are computed so many at once; by default as at training.
    #[arg(long, value_name = "N", conflicts_with = "lambada")]
    batch_size: Option<usize>,
    /// The tokenizer of a pretrained model, where that in its folder is missing or another model's: gpt2, bytes, or the path of a
    /// tokenizer.json.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<String>,
    /// Device to run on, such as flex, wgpu or cuda:1.
    #[arg(long)]
    device: Option<String>,
}

/// What comes before a token that is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Past {
    /// Windows side by side, each without a past, as the losses of training.
    Windows,
    /// Windows that overlap; of each the tokens count that the one before has not reached.
    Sliding,
    /// The whole split, by a state that is carried through it; not with attention.
    Carried,
}

fn parse_split(name: &str) -> Result<Split, String> {
    let splits = [Split::Train, Split::Valid, Split::Test];
    let found = splits.into_iter().find(|split| split.name() == name);
    found.ok_or_else(|| "expected train, valid or test".into())
}

/// Tokens of a pretrained model's window where nothing is said.
const CONTEXT: usize = 1024;

/// Tokens of a pretrained model's batch where nothing is said.
const AT_ONCE: usize = 4096;

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let advice = "give a smaller --batch-size or --context, or choose another device with --device";
    guard(advice, || measure(arguments))
}

fn measure(arguments: Arguments) -> Result<ExitCode> {
    ensure!(
        arguments.stride.is_none() || arguments.past == Past::Sliding,
        "--stride: only windows that overlap have one; give --past sliding"
    );
    ensure!(
        arguments.context.is_none() || arguments.past != Past::Carried,
        "--context: a state that is carried has no windows; leave it out"
    );
    for (name, given) in [
        ("--batch-size", arguments.batch_size),
        ("--limit", arguments.limit),
    ] {
        ensure!(given != Some(0), "{name}: give at least 1");
    }
    let passages = match &arguments.lambada {
        Some(path) => Some(read_passages(path)?),
        None => None,
    };
    let device = start_device(arguments.device.as_deref())?;
    let run = open(&arguments.run, arguments.tokenizer.as_deref(), &device)?;
    if let Some(mut passages) = passages {
        passages.truncate(arguments.limit.unwrap_or(usize::MAX));
        let mut progress = Progress::begin();
        let told = evaluate_lambada(
            &run.model,
            &run.tokenizer,
            &passages,
            &device,
            |done, all| progress.show(done, all),
        )?;
        progress.end();
        let told = told.context("there is no passage")?;
        let mut out = stdout();
        writeln!(
            out,
            "LAMBADA: accuracy {:.4}, perplexity {}",
            told.accuracy,
            show_perplexity(told.perplexity, 2)
        )?;
        let (passages, tokens) = (told.passages, run.tokenizer.name());
        writeln!(
            out,
            "over the last words of {passages} passages ({tokens} tokens): right where every token of the word is the \
             most likely one, perplexity a word"
        )?;
        return Ok(ExitCode::SUCCESS);
    }

    let mut data = run.experiment.data.clone();
    if let Some(folder) = &arguments.data_dir {
        data.data_dir = Some(folder.clone());
    }
    data.convention = arguments.convention.unwrap_or(data.convention);
    if run.experiment.data.corpus.is_none() {
        let context = arguments.context.unwrap_or(CONTEXT);
        data.batch_size = (AT_ONCE / context.max(1)).max(1);
    }
    data.batch_size = arguments.batch_size.unwrap_or(data.batch_size);
    let text = load_text(&data, &run, arguments.split)?;
    if let Some(notice) = &text.notice {
        eprintln!("{notice}");
    }
    let mut progress = Progress::begin();
    let (evaluation, past) = loss(&arguments, &run, &data, &text, &device, &mut progress)?;
    progress.end();
    let evaluation = evaluation.context("the split holds no batch")?;

    let mut out = stdout();
    let (split, tokens) = (arguments.split.name(), evaluation.tokens);
    writeln!(
        out,
        "{split}: loss {:.4}, perplexity {}",
        evaluation.loss,
        show_perplexity(evaluation.perplexity(), 2)
    )?;
    writeln!(
        out,
        "over {tokens} tokens of {} ({} tokens, {}), {past}",
        text.description,
        run.tokenizer.name(),
        data.convention,
    )?;
    let nats = evaluation.loss * evaluation.tokens as f64 / text.words as f64;
    writeln!(
        out,
        "perplexity a word {}, over {} words between white space, whatever the tokens",
        show_perplexity(perplexity(nats), 2),
        text.words
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The split. A model that was trained on other text is never measured on the generated stories instead of real text.
fn load_text(data: &DataConfig, run: &LoadedRun, split: Split) -> Result<SplitText> {
    if data.corpus.is_some() || data.data_dir.is_some() {
        return load_split(data, &run.tokenizer, split);
    }
    let data = DataConfig {
        dataset: DatasetKind::Wikitext2,
        ..data.clone()
    };
    load_split(&data, &run.tokenizer, split).map_err(|error| {
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        anyhow!(
            "there is no text to evaluate on: WikiText-2 could not be downloaded ({}); give a folder with text by --data-dir",
            causes.join(": ").replace('\n', " ")
        )
    })
}

/// The loss, and in words what came before each token.
fn loss(
    arguments: &Arguments,
    run: &LoadedRun,
    data: &DataConfig,
    text: &SplitText,
    device: &Device,
    progress: &mut Progress,
) -> Result<(Option<Evaluation>, String)> {
    let pretrained = run.model.max_positions().unwrap_or(CONTEXT).min(CONTEXT);
    let usual = match run.experiment.data.corpus {
        Some(_) => data.seq_len,
        None => pretrained,
    };
    let context = arguments.context.unwrap_or(usual);
    let on_batch = |done, all| progress.show(done, all);
    match arguments.past {
        Past::Windows => {
            if let Some(positions) = run.model.max_positions() {
                ensure!(
                    context <= positions,
                    "--context: the model has {positions} positions, got {context}"
                );
            }
            let windows = Windows::new(text.tokens.clone(), context, Tail::Keep)?;
            let batches = TokenLoader::sequential(windows.into(), data.batch_size, device);
            let told = evaluate(&run.model, &batches, on_batch)?;
            let past = format!("in windows of {context} that each begin without a past");
            Ok((told, past))
        }
        Past::Sliding => {
            let stride = arguments.stride.unwrap_or((context / 2).max(1));
            let sliding = Sliding { context, stride };
            let (model, text) = (&run.model, &text.tokens);
            let told = evaluate_sliding(model, text, sliding, data.batch_size, device, on_batch)?;
            let past = format!(
                "in windows of {context} at a stride of {stride}, each token once, behind {} to {} others",
                context - stride,
                context - 1
            );
            Ok((told, past))
        }
        Past::Carried => {
            let told = evaluate_carried(&run.model, &text.tokens, device, on_batch)?;
            Ok((
                told,
                "each behind all that come before it, by a carried state".into(),
            ))
        }
    }
}

/// A bar, once kernels are compiled.
struct Progress(Option<indicatif::ProgressBar>);

impl Progress {
    fn begin() -> Self {
        compiling::show();
        Self(None)
    }

    fn show(&mut self, done: usize, total: usize) -> bool {
        compiling::hide();
        let bar = self
            .0
            .get_or_insert_with(|| progress::bar("evaluating", total));
        bar.set_position(done as u64);
        true
    }

    fn end(self) {
        compiling::hide();
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
