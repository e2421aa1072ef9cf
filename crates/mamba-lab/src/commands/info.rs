//! `mamba-lab info`

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use clap::Args;
use mamba_core::device::DeviceError;
use mamba_core::{LanguageModel, LanguageModelConfig, MixerKind, checkpoint, device};
use mamba_train::hardware::Hardware;
use mamba_train::hub::resolve;
use mamba_train::load::is_pretrained;

use super::{open, run_path, start_device};
use crate::output::stdout;

/// Show the devices of this build, or the sizes of a model.
#[derive(Args)]
pub struct Arguments {
    /// A model to describe: a run, by its folder or its name below artifacts/runs, the folder of a pretrained model, or its
    /// name on the Hugging Face hub.
    run: Option<String>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(name) = &arguments.run {
        // A CPU suffices for counting.
        let described = describe(name, &start_device(device::cpu_name())?)?;
        stdout().write_all(described.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let devices = start_all();
    let mut out = stdout();
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

    writeln!(out, "\nDevices of this build:")?;
    let default = default_of(&devices);
    for (name, started) in &devices {
        match started {
            Ok(device) => {
                let adapter = device::adapter(device).map_or(String::new(), |it| {
                    let software = match device::is_software(&it) {
                        true => ", which imitates a GPU on the CPU",
                        false => "",
                    };
                    format!(": {it}{software}")
                });
                let mark = match default == Some(*name) {
                    true => ", the default",
                    false => "",
                };
                writeln!(out, "  {name:<8} ready{mark}{adapter}")?;
            }
            Err(error) => writeln!(out, "  {name:<8} {error}")?,
        }
    }
    // CPUs come after GPUs, and suffice for counting.
    let ready = devices
        .iter()
        .rev()
        .find_map(|(_, started)| started.as_ref().ok());
    let device = ready.context("no device of this build works on this machine")?;

    writeln!(out, "\nSizes of the official models (tied head, f32):")?;
    for (name, family, d_model, n_layer) in OFFICIAL {
        let config = family().with_d_model(d_model).with_n_layer(n_layer);
        let parameters = num_parameters(&config, device);
        let (millions, mebibytes) = (parameters as f64 / 1e6, (parameters * 4) >> 20);
        writeln!(
            out,
            "  {name:<12} {n_layer} layers of {d_model:<5} {millions:>7.1} M parameters {mebibytes:>6} MiB"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

type Started = (&'static str, Result<Device, DeviceError>);

fn start_all() -> Vec<Started> {
    let names = device::device_names().into_iter();
    names.map(|name| (name, device::start(name))).collect()
}

/// The device that is taken where none is named, as [`device::start_default`] chooses; none where it fails.
fn default_of(devices: &[Started]) -> Option<&'static str> {
    for (name, started) in devices {
        let device = started.as_ref().ok()?;
        let software = device::adapter(device).is_some_and(|it| device::is_software(&it));
        if !software || device::cpu_name().is_none() {
            return Some(name);
        }
    }
    None
}

/// The sizes of a model. No tokenizer is asked for.
fn describe(name: &str, device: &Device) -> Result<String> {
    let path = run_path(name);
    let path = resolve(&path)?;
    let (model, config, what) = if is_pretrained(&path) {
        let (model, config) = checkpoint::load(&path, device)?;
        (model, config, "a pretrained model".to_string())
    } else {
        let run = open(name, None, device)?;
        let data = &run.experiment.data;
        let what = format!(
            "a run on {} with the tokenizer {}, in windows of {} tokens",
            data.corpus.as_deref().unwrap_or("unknown text"),
            data.tokenizer,
            data.seq_len
        );
        (run.model, run.experiment.model, what)
    };
    let mut lines = vec![format!("{name}: {what}")];
    lines.extend(sizes(&model, &config));
    Ok(lines.join("\n") + "\n")
}

fn sizes(model: &LanguageModel, config: &LanguageModelConfig) -> Vec<String> {
    let parameters = model.num_params();
    let mut lines = vec![
        format!(
            "  parameters  {parameters}, {:.1} MiB in f32",
            (parameters * 4) as f64 / (1 << 20) as f64
        ),
        format!("  vocabulary  {} entries", config.vocab_size),
        format!(
            "  positions   {}",
            match config.max_positions {
                0 => "any number".into(),
                most => format!("{most} at most"),
            }
        ),
        format!("  width       {}", config.d_model),
    ];
    let names: Vec<&str> = config.pattern.iter().map(|kind| name_of(*kind)).collect();
    let times = match config.n_layer {
        1 => "once".into(),
        times => format!("{times} times"),
    };
    lines.push(format!("  layers      {}, {times}", names.join(" + ")));
    let mut seen = Vec::new();
    for kind in &config.pattern {
        if !seen.contains(kind) {
            seen.push(*kind);
            lines.push(format!(
                "  {:<11} {}",
                name_of(*kind),
                size_of(*kind, config)
            ));
        }
    }
    lines
}

fn name_of(kind: MixerKind) -> &'static str {
    match kind {
        MixerKind::Mamba1 => "mamba1",
        MixerKind::Mamba2 => "mamba2",
        MixerKind::Attention => "attention",
        MixerKind::Mlp => "mlp",
    }
}

fn size_of(kind: MixerKind, config: &LanguageModelConfig) -> String {
    match kind {
        MixerKind::Mamba1 => {
            let mut it = config.mamba1.clone();
            it.d_model = config.d_model;
            let (inner, state, conv) = (it.d_inner(), it.d_state, it.d_conv);
            format!(
                "inner width {inner}, {state} states a channel, convolution over {conv} positions"
            )
        }
        MixerKind::Mamba2 => {
            let mut it = config.mamba2.clone();
            it.d_model = config.d_model;
            let (heads, width, state, conv) = (it.nheads(), it.headdim, it.d_state, it.d_conv);
            let inner = it.d_inner();
            format!(
                "inner width {inner}, {heads} heads of {width}, {state} states a channel, convolution over {conv} positions"
            )
        }
        MixerKind::Attention => {
            let mut it = config.attention.clone();
            it.d_model = config.d_model;
            let (heads, shared, width) = (it.num_heads, it.num_kv_heads(), it.head_dim());
            format!("{heads} heads of {width}, {shared} of keys and values")
        }
        MixerKind::Mlp => {
            let mut it = config.mlp.clone();
            it.d_model = config.d_model;
            format!("hidden width {}", it.d_hidden())
        }
    }
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
