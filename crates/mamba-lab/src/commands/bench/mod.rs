//! `mamba-lab bench`

mod compare;
mod screen;

use std::env;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use compare::Compare;
use mamba_bench::beside::Beside;
use mamba_bench::options::Options;
use mamba_bench::probe::Probe;
use mamba_bench::session;
use mamba_bench::suites::{Asked, SUITES};
use mamba_core::Precision;
use screen::Screen;

/// Measure time and memory of Mamba-1, Mamba-2 and transformers on this machine.
///
/// Nothing is timed before it was proved right on a small shape in the same process. Results are written as they come:
/// results.jsonl, then results.json, results.csv, table.txt and plots (SVG, for light and dark pages).
///
/// Several suites run one after the other in one process, which compiles and proves what they share once. A suite that fails is
/// told of, the others go on, and the exit code is 1. Where a suite has no use for an option that another one takes, its table
/// says so; a suite of which --filter leaves nothing is left out.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, after_help = suites())]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to measure: suites of those below, or all; one may have sizes of its own, as in prefill:1024 (lengths) or
    /// prefill:1,8x128,1024 (batches x lengths).
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// Device to run on, such as flex, wgpu or cuda:1.
    #[arg(long)]
    device: Option<String>,
    /// Small sizes and few rounds: each suite within two minutes on two cores, for a look.
    #[arg(long)]
    quick: bool,
    /// The type of activations and products: f32 or bf16.
    #[arg(long, default_value = "f32", value_parser = parse_precision)]
    precision: Precision,
    /// Only problems whose name contains one of these, such as mamba2.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    filter: Vec<String>,
    /// Lengths of sequences instead of the suites' own, such as 1024,4096; backends takes the first.
    #[arg(long, value_delimiter = ',', value_parser = parse_length)]
    lengths: Vec<usize>,
    /// Sequences at once instead of the suites' own, such as 1,64; for prefill, decode and train.
    #[arg(long, value_delimiter = ',', value_parser = parse_length)]
    batches: Vec<usize>,
    /// Rounds of every measurement. [default: 9, with --quick 5]
    #[arg(long, value_parser = parse_length)]
    rounds: Option<usize>,
    /// Begin no measurement so many seconds after the start. What runs then comes to its end, and what is left out is
    /// listed in the tables and results.json; the exit code is 0.
    #[arg(long, value_name = "SECONDS", value_parser = parse_length)]
    time_limit: Option<usize>,
    /// Where the results go: a folder that is new or empty. With several suites a folder in which each gets FOLDER/SUITE,
    /// numbered if it exists. [default: artifacts/bench/SUITE, numbered if it exists]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Run peers beside ours, where there is a Python with torch: Hugging Face's models with our weights, if it has
    /// transformers; in `kernels` operations of PyTorch, of Triton and of the authors' CUDA packages, as far as it has them.
    #[arg(long)]
    peers: bool,
    /// That Python.
    #[arg(
        long,
        default_value = "python3",
        value_name = "FILE",
        requires = "peers"
    )]
    python: PathBuf,
    /// Where that Python looks for modules first, such as a folder with the Python files of mamba-ssm, of which no extension
    /// needs to be built.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "FOLDERS",
        requires = "peers"
    )]
    python_path: Vec<String>,
    /// Run candle's models beside ours on the CPU: the program built from crates/mamba-bench/peers/candle.
    #[arg(long, value_name = "FILE")]
    peer_candle: Option<PathBuf>,
    /// Run mamba-rs's models beside ours, on the CPU or CUDA: the program built from crates/mamba-bench/peers/mamba-rs.
    #[arg(long, value_name = "FILE")]
    peer_mamba_rs: Option<PathBuf>,
    /// Measure the memory of one piece of work and print it.
    #[arg(long, hide = true, value_name = "JSON")]
    probe: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    Compare(Compare),
}

fn suites() -> String {
    let mut text = String::from("Suites:\n");
    for suite in &SUITES {
        text += &format!("  {:<10} {}\n", suite.name, suite.about);
    }
    text
}

fn parse_precision(name: &str) -> Result<Precision, String> {
    [("f32", Precision::F32), ("bf16", Precision::Bf16)]
        .into_iter()
        .find(|(known, _)| *known == name)
        .map(|(_, precision)| precision)
        .ok_or_else(|| "expected f32 or bf16".into())
}

fn parse_length(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&length| length > 0)
        .ok_or_else(|| "expected a number above 0".into())
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Command::Compare(compare)) = arguments.command {
        return compare::run(&compare);
    }
    if let Some(probe) = arguments.probe {
        let probe: Probe = serde_json::from_str(&probe).context("--probe")?;
        writeln!(stdout(), "{}", serde_json::to_string(&probe.run()?)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let asked: Result<Vec<_>> = arguments.suites.iter().map(|it| Asked::parse(it)).collect();
    let asked = asked?.concat();
    if asked.is_empty() {
        let names: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        bail!("which suite? there are {}, and all", names.join(", "));
    }
    let options = Options {
        device: arguments.device,
        quick: arguments.quick,
        precision: arguments.precision,
        filter: arguments.filter,
        lengths: arguments.lengths,
        time_limit: arguments
            .time_limit
            .map(|it| Duration::from_secs(it as u64)),
        out: arguments.out,
        batches: arguments.batches,
        rounds: arguments.rounds,
        beside: Beside {
            python: arguments.peers.then_some(arguments.python),
            python_path: arguments.python_path,
            candle: arguments.peer_candle,
            mamba_rs: arguments.peer_mamba_rs,
        },
        probe,
    };
    let late = session::run(&asked, &options, &mut Screen::default())?;
    if let (Some(limit), 1..) = (arguments.time_limit, late) {
        writeln!(
            stdout(),
            "The {limit} s of --time-limit were over before the end: the tables name what was left out ({late} lines)"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// This program again, to measure memory in a process that does nothing else.
fn probe(json: &str) -> Result<process::Command> {
    let program = env::current_exe().context("cannot find this program to start it again")?;
    let mut command = process::Command::new(program);
    command.args(["bench", "--probe", json]);
    Ok(command)
}
