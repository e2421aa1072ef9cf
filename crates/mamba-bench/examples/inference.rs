//! Times prompts through the modules of Mamba-130M, and tokens as `generate` gives them; see the README of this crate.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::Parser;
use mamba_bench::machine::Provenance;
use mamba_bench::measure::Samples;
use mamba_bench::report::write_json_lines;
use mamba_core::{
    LanguageModel, LanguageModelConfig, Precision, Sampler, SamplingConfig, checkpoint,
};
use serde::Serialize;

/// Calls before the first that counts: kernels are compiled, memory is allocated.
const WARM_UP: usize = 3;

#[derive(Parser)]
#[command(
    about = "Times prompts through the modules of Mamba-130M, and generated tokens; random weights"
)]
struct Args {
    /// Such as cuda, vulkan or flex
    #[arg(long, default_value = "cuda")]
    device: String,
    /// f32 or bf16
    #[arg(long, default_value = "bf16", value_parser = precision)]
    precision: Precision,
    /// Lengths of the prompts
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1024, 4096, 65536])]
    lengths: Vec<usize>,
    /// Length of the prompt before the decoded tokens
    #[arg(long, default_value_t = 1024)]
    prompt: usize,
    /// Decoded tokens
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    /// Calls of every kind
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Layers of the model
    #[arg(long, default_value_t = 24)]
    layers: usize,
    /// Also write the model there, in Hugging Face's layout, to time commands on it
    #[arg(long)]
    save: Option<PathBuf>,
    /// Where the JSON lines go
    #[arg(long)]
    output: Option<PathBuf>,
}

fn precision(name: &str) -> Result<Precision, String> {
    serde_json::from_value(name.into()).map_err(|_| "expected f32 or bf16".into())
}

/// Wall times in milliseconds.
#[derive(Serialize)]
struct Record<'a> {
    what: &'a str,
    device: &'a str,
    precision: Precision,
    /// Of the prompt.
    length: usize,
    ms: Samples,
    median_ms: f64,
    tokens_per_second: f64,
    provenance: &'a Provenance,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        args.tokens > 1 && args.rounds > 0,
        "--tokens 2 and --rounds 1 at least"
    );
    let device = mamba_core::device::start(&args.device)?;
    let config = LanguageModelConfig::mamba_130m().with_n_layer(args.layers);
    let model = config.init(&device).with_precision(args.precision);
    if let Some(folder) = &args.save {
        checkpoint::save(&model, &config, folder)?;
    }
    let provenance = Provenance::collect(1);
    let mut records = Vec::new();
    let mut record = |what, length, ms: Samples, tokens: usize| {
        let median_ms = ms.median();
        let tokens_per_second = tokens as f64 * 1e3 / median_ms;
        println!(
            "{what} of {length}: {median_ms:.3} ms [{:.3}, {:.3}], {tokens_per_second:.0} tokens/s",
            ms.min(),
            ms.max(),
        );
        records.push(Record {
            what,
            device: &args.device,
            precision: args.precision,
            length,
            ms,
            median_ms,
            tokens_per_second,
            provenance: &provenance,
        });
    };
    for &length in &args.lengths {
        let ms = prompts(&model, &device, length, args.rounds);
        record("prompt", length, ms, length);
    }
    let ms = decoding(&model, &device, args.prompt, args.tokens)?;
    record("token behind a prompt", args.prompt, ms, 1);
    match args.output {
        Some(path) => write_json_lines(&path, &records),
        None => Ok(()),
    }
}

fn tokens(length: usize) -> Vec<u32> {
    (0..length as u32)
        .map(|index| index * 31 % 50_000)
        .collect()
}

/// From the tokens on the host to the logits of the next on the host.
fn prompts(model: &LanguageModel, device: &Device, length: usize, rounds: usize) -> Samples {
    let ids: Vec<i32> = tokens(length).into_iter().map(|id| id as i32).collect();
    let call = || {
        let ids = TensorData::new(ids.clone(), [1, length]);
        let ids = Tensor::<2, Int>::from_data(ids, device);
        let start = Instant::now();
        let (logits, _) = model.prefill(ids, model.initial_state(1, device));
        let _ = logits.into_data();
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..WARM_UP).for_each(|_| {
        call();
    });
    Samples::new((0..rounds).map(|_| call()).collect())
}

/// Milliseconds from one token to the next, greedy, each token on the host.
fn decoding(
    model: &LanguageModel,
    device: &Device,
    prompt: usize,
    count: usize,
) -> Result<Samples> {
    let greedy = SamplingConfig {
        temperature: 0.0,
        ..SamplingConfig::default()
    };
    let mut generator = model.generate(&tokens(prompt), Sampler::new(greedy)?, device)?;
    for _ in 0..=WARM_UP {
        generator.next().context("a generator does not end")??;
    }
    let mut last = Instant::now();
    let mut times = Vec::new();
    for token in generator.take(count) {
        token?;
        times.push(last.elapsed().as_secs_f64() * 1e3);
        last = Instant::now();
    }
    Ok(Samples::new(times))
}
