//! `mamba-lab info`

use std::io::{Write, stdout};
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use clap::Args;
use mamba_core::{LanguageModelConfig, device};
use mamba_train::hardware::Hardware;

use super::open;

/// Show the devices of this build and the size of a model.
#[derive(Args)]
pub struct Arguments {
    /// A model to describe: a run, by its folder or its name below artifacts/runs, the folder of a pretrained model, or its
    /// name on the Hugging Face hub.
    run: Option<String>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut out = stdout().lock();
    let hardware = Hardware::detect(&Device::default());
    writeln!(
        out,
        "mamba-lab {} on Burn {}",
        env!("CARGO_PKG_VERSION"),
        burn_version()
    )?;
    let memory = hardware
        .memory
        .map_or(String::new(), |bytes| format!(", {} GiB", bytes >> 30));
    writeln!(
        out,
        "{} ({} threads{memory}, {})",
        hardware.cpu, hardware.cores, hardware.os
    )?;

    writeln!(out, "\nDevices of this build, the default first:")?;
    let mut ready = None;
    for name in device::device_names() {
        match device::start(name) {
            Ok(device) => {
                writeln!(out, "  {name:<8} ready")?;
                ready = Some(device); // the last one: CPUs come after GPUs, and suffice for counting
            }
            Err(error) => writeln!(out, "  {name:<8} {error}")?,
        }
    }
    let device = ready.context("no device of this build works on this machine")?;

    match arguments.run {
        Some(run) => {
            let run = open(&run, None, &device)?;
            writeln!(out, "\n{}", run.model)?;
        }
        None => {
            writeln!(out, "\nSizes of the official models (tied head, f32):")?;
            for (name, family, d_model, n_layer) in OFFICIAL {
                let config = family().with_d_model(d_model).with_n_layer(n_layer);
                let parameters = num_parameters(&config, &device);
                let (millions, mebibytes) = (parameters as f64 / 1e6, (parameters * 4) >> 20);
                writeln!(
                    out,
                    "  {name:<12} {n_layer} layers of {d_model:<5} {millions:>7.1} M parameters {mebibytes:>6} MiB"
                )?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

type Family = fn() -> LanguageModelConfig;
const MAMBA1: Family = LanguageModelConfig::mamba_130m;
const MAMBA2: Family = LanguageModelConfig::mamba2_130m;

/// Name, family, `d_model` and `n_layer` of the official checkpoints.
const OFFICIAL: [(&str, Family, usize, usize); 10] = [
    ("mamba-130m", MAMBA1, 768, 24),
    ("mamba-370m", MAMBA1, 1024, 48),
    ("mamba-790m", MAMBA1, 1536, 48),
    ("mamba-1.4b", MAMBA1, 2048, 48),
    ("mamba-2.8b", MAMBA1, 2560, 64),
    ("mamba2-130m", MAMBA2, 768, 24),
    ("mamba2-370m", MAMBA2, 1024, 48),
    ("mamba2-780m", MAMBA2, 1536, 48),
    ("mamba2-1.3b", MAMBA2, 2048, 48),
    ("mamba2-2.7b", MAMBA2, 2560, 64),
];

/// Counts without allocating the whole model: all layers are alike.
fn num_parameters(config: &LanguageModelConfig, device: &Device) -> usize {
    let count = |n_layer, vocab_size| {
        let config = config
            .clone()
            .with_n_layer(n_layer)
            .with_vocab_size(vocab_size);
        config.init_to_load(device).num_params()
    };
    let (one, two) = (count(1, 8), count(2, 8));
    let embedding = (config.padded_vocab_size() - 8) * config.d_model;
    one + (config.n_layer - 1) * (two - one) + embedding
}

fn burn_version() -> &'static str {
    mamba_train::summary::BURN_VERSION
}
