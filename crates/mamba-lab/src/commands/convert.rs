//! `mamba-lab convert`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use mamba_core::checkpoint;
use mamba_core::files::Part;

use super::{open, start_device};

/// Write a trained model in Hugging Face's layout, which `transformers` loads.
///
/// The folder gets config.json, model.safetensors in f32 and, where the tokenizer has that form,
/// tokenizer.json. Nothing in it is overwritten.
#[derive(Args)]
pub struct Arguments {
    /// A run, by its folder or its name below artifacts/runs, or a pretrained model, by its folder or its name on the Hugging
    /// Face hub, such as state-spaces/mamba-130m.
    run: String,
    /// Where the files go; made if it is not there.
    folder: PathBuf,
    /// The tokenizer of a pretrained model, where that in its folder is missing or another model's: gpt2, bytes, or the path of a
    /// tokenizer.json.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<String>,
    /// Device whose memory holds the model meanwhile, such as flex, wgpu or cuda:1.
    #[arg(long)]
    device: Option<String>,
}

const TOKENIZER: &str = "tokenizer.json";

/// What is written.
const WRITTEN: [&str; 3] = [TOKENIZER, "model.safetensors", "config.json"];

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let folder = &arguments.folder;
    ensure!(
        folder.is_dir() || !folder.exists(),
        "{} is no folder: give one for the files",
        folder.display()
    );
    for file in WRITTEN.map(|name| folder.join(name)) {
        ensure!(
            !file.exists(),
            "{} is there already: give another folder",
            file.display()
        );
    }
    let device = start_device(arguments.device.as_deref())?;
    let run = open(&arguments.run, arguments.tokenizer.as_deref(), &device)?;
    let json = run.tokenizer.to_json()?;
    checkpoint::save_ending_with(
        run.tokenizer.ends(),
        &run.model,
        &run.experiment.model,
        folder,
    )?;
    let without = match json {
        Some(json) => {
            let tokenizer = folder.join(TOKENIZER);
            let part = Part::of(&tokenizer);
            fs::write(part.path(), json)
                .and_then(|()| part.finish())
                .with_context(|| format!("cannot write {}", tokenizer.display()))?;
            String::new()
        }
        None => {
            let name = run.tokenizer.name();
            format!(
                ", without {TOKENIZER}: the tokenizer {name} has no such form; here, use --tokenizer {name}"
            )
        }
    };
    eprintln!(
        "{} holds the model in Hugging Face's layout{without}",
        folder.display()
    );
    Ok(ExitCode::SUCCESS)
}
