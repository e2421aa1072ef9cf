//! Measures the tutorial's model on the CPU beside PyTorch; see the README of this crate.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use mamba_bench::report::write_json_lines;
use mamba_bench::suites::cpu_tutorial::{Part, Suite, training_memory};

#[derive(Parser)]
#[command(about = "Measures the tutorial's model on the CPU beside PyTorch")]
struct Args {
    /// Interpreter with torch and safetensors
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Threads of every engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Turns of every engine at every size
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Lengths of the forward pass
    #[arg(long, value_delimiter = ',', default_values_t = [128, 256, 1024, 4096, 16384])]
    lengths: Vec<usize>,
    /// The longest sequences that the peers get, too
    #[arg(long, default_value_t = 4096)]
    peer_limit: usize,
    /// Parts to run
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = PartArg::value_variants().to_vec())]
    parts: Vec<PartArg>,
    /// Where the JSON lines go
    #[arg(long, default_value = "artifacts/bench/cpu-tutorial.json")]
    output: PathBuf,
    /// Only take training steps and print this process's peak memory in bytes
    #[arg(long, hide = true)]
    training_memory: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PartArg {
    Forward,
    Training,
    Scan,
}

impl From<PartArg> for Part {
    fn from(part: PartArg) -> Self {
        match part {
            PartArg::Forward => Self::Forward,
            PartArg::Training => Self::Training,
            PartArg::Scan => Self::Scan,
        }
    }
}

fn main() -> Result<()> {
    // As `mamba-lab` runs.
    mamba_core::memory::keep_freed();
    let args = Args::parse();
    if args.training_memory {
        println!("{}", training_memory(args.threads)?);
        return Ok(());
    }
    let mut suite = Suite {
        python: args.python,
        threads: args.threads,
        rounds: args.rounds,
        lengths: args.lengths,
        peer_limit: args.peer_limit,
        parts: args.parts.into_iter().map(Part::from).collect(),
        memory_probe: memory_probe(args.threads)?,
    };
    let mut records = Vec::new();
    suite.run(|record| {
        println!("{record}");
        records.push(record);
    })?;
    write_json_lines(&args.output, &records)
}

fn memory_probe(threads: usize) -> Result<Command> {
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    let mut command = Command::new(program);
    command.args(["--training-memory", "--threads", &threads.to_string()]);
    Ok(command)
}
