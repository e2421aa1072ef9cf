//! `mamba-lab evaluate`

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use mamba_train::compiling;
use mamba_train::corpus::Split;
use mamba_train::data::load_split;
use mamba_train::evaluate::evaluate;
use mamba_train::learner::TokenLoader;
use mamba_train::load::load_model;

use super::{run_path, start_device};
use crate::progress;

/// Measure the loss and perplexity of a trained model on one split of its corpus.
#[derive(Args)]
pub struct Arguments {
    /// A run, by its folder or its name below artifacts/runs, or the folder of a pretrained model.
    run: String,
    /// train, valid or test.
    #[arg(long, default_value = "test", value_parser = parse_split)]
    split: Split,
    /// Folder with the text, if it is not where it was at training.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Device to run on, such as flex, wgpu or cuda:1.
    #[arg(long)]
    device: Option<String>,
}

fn parse_split(name: &str) -> Result<Split, String> {
    let splits = [Split::Train, Split::Valid, Split::Test];
    let found = splits.into_iter().find(|split| split.name() == name);
    found.ok_or_else(|| "expected train, valid or test".into())
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let device = start_device(arguments.device.as_deref())?;
    let run = load_model(&run_path(&arguments.run), &device)?;
    let mut data = run.experiment.data.clone();
    if let Some(folder) = arguments.data_dir {
        data.data_dir = Some(folder);
    }
    let windows = load_split(&data, &run.tokenizer, arguments.split)?;
    let batches = TokenLoader::sequential(windows, data.batch_size, &device);
    compiling::show();
    let mut bar = None;
    let evaluation = evaluate(&run.model, &batches, |done, total| {
        compiling::hide();
        let bar = bar.get_or_insert_with(|| progress::bar("evaluating", total));
        bar.set_position(done as u64);
        true
    })?
    .context("the split holds no batch")?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }

    let mut out = stdout().lock();
    let (split, tokens) = (arguments.split.name(), evaluation.tokens);
    writeln!(
        out,
        "{split}: loss {:.4}, perplexity {:.2}",
        evaluation.loss,
        evaluation.perplexity()
    )?;
    writeln!(
        out,
        "over {tokens} tokens of {} ({} tokens, {}), in windows of {} that each begin without a past",
        data.corpus.as_deref().unwrap_or("text"),
        run.tokenizer.name(),
        data.convention,
        data.seq_len
    )?;
    Ok(ExitCode::SUCCESS)
}
