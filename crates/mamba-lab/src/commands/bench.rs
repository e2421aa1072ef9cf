//! `mamba-lab bench`

use std::env;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use mamba_bench::beside::Beside;
use mamba_bench::probe::Probe;
use mamba_bench::progress::Progress;
use mamba_bench::results::{Comparison, Entry, Results, line, table};
use mamba_bench::run::{Options, Watch};
use mamba_bench::suites::{SUITES, Suite};
use mamba_core::Precision;

/// Measure time and memory of Mamba-1, Mamba-2 and transformers on this machine.
///
/// Nothing is timed before it was proved right on a small shape in the same process. Results are written as they come:
/// results.jsonl, then results.json, results.csv, table.txt and plots (SVG, for light and dark pages).
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, after_help = suites())]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to measure: one of the suites below.
    suite: Option<String>,
    /// Device to run on, such as flex, wgpu or cuda:1.
    #[arg(long)]
    device: Option<String>,
    /// Small sizes and few rounds: within two minutes on two cores, for a look.
    #[arg(long)]
    quick: bool,
    /// The type of activations and products: f32 or bf16.
    #[arg(long, default_value = "f32", value_parser = parse_precision)]
    precision: Precision,
    /// Only problems whose name contains one of these, such as mamba2.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    filter: Vec<String>,
    /// Lengths of sequences instead of the suite's own, such as 1024,4096.
    #[arg(long, value_delimiter = ',', value_parser = parse_length)]
    lengths: Vec<usize>,
    /// Sequences at once instead of the suite's own, such as 1,64; for prefill, decode and train, which takes the first.
    #[arg(long, value_delimiter = ',', value_parser = parse_length)]
    batches: Vec<usize>,
    /// Rounds of every measurement. [default: 9, with --quick 5]
    #[arg(long, value_parser = parse_length)]
    rounds: Option<usize>,
    /// Where the results go: a folder that is new or empty. [default: artifacts/bench/SUITE, numbered if it exists]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Run peers beside ours, where there is a Python with torch: Hugging Face's models with our weights, if it has
    /// transformers; in `kernels` operations of PyTorch, of Triton and of the authors' CUDA packages, as far as it has them.
    #[arg(long)]
    peers: bool,
    /// That Python.
    #[arg(long, default_value = "python3", value_name = "FILE")]
    python: PathBuf,
    /// Where that Python looks for modules first, such as a folder with the Python files of mamba-ssm, of which no extension
    /// needs to be built.
    #[arg(long, value_delimiter = ',', value_name = "FOLDERS")]
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

/// Compare two runs of a suite: relative speed with its error.
#[derive(Args)]
struct Compare {
    /// The run before: its results.json or its folder.
    before: PathBuf,
    /// The run after.
    after: PathBuf,
    /// Fail if anything got slower by more than this, such as 10%, and by more than twice its error.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, allow_negative_numbers = true)]
    fail_above: Option<f64>,
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

fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim().parse::<f64>().ok();
    let share = number
        .filter(|number| number.is_finite() && *number >= 0.0)
        .map(|number| number / 100.0);
    share.ok_or_else(|| "expected a percentage such as 10%".into())
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Command::Compare(compare)) = arguments.command {
        return run_compare(&compare);
    }
    if let Some(probe) = arguments.probe {
        let probe: Probe = serde_json::from_str(&probe).context("--probe")?;
        writeln!(stdout(), "{}", serde_json::to_string(&probe.run()?)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(suite) = arguments.suite else {
        let names: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        bail!("which suite? there are {}", names.join(", "));
    };
    let suite = Suite::find(&suite)?;
    let options = Options {
        device: arguments.device,
        quick: arguments.quick,
        precision: arguments.precision,
        filter: arguments.filter,
        lengths: arguments.lengths,
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
    let mut screen = Screen::new();
    let outcome = suite.run(&options, &mut screen);
    screen.close();
    let folder = outcome?;
    let mut out = stdout().lock();
    writeln!(out, "\n{}", table(folder.results()))?;
    writeln!(out, "Everything is in {}", folder.path().display())?;
    Ok(ExitCode::SUCCESS)
}

/// This program again, to measure memory in a process that does nothing else.
fn probe(json: &str) -> Result<process::Command> {
    let program = env::current_exe().context("cannot find this program to start it again")?;
    let mut command = process::Command::new(program);
    command.args(["bench", "--probe", json]);
    Ok(command)
}

fn run_compare(arguments: &Compare) -> Result<ExitCode> {
    let [before, after] = [&arguments.before, &arguments.after].map(|path| Results::read(path));
    let comparison = Comparison::new(&before?, &after?);
    write!(stdout().lock(), "{}", comparison.table())?;
    if comparison.changes.is_empty() {
        bail!("the two runs have nothing in common to compare");
    }
    let share = arguments.fail_above.unwrap_or(f64::INFINITY);
    let failed: Vec<_> = comparison
        .changes
        .iter()
        .filter(|change| change.fails(share))
        .collect();
    if let Some(worst) = failed
        .iter()
        .max_by(|a, b| a.slower_by().total_cmp(&b.slower_by()))
    {
        bail!(
            "{} of {} got slower by more than {:.0} %, {} at length {} by {:.0} %",
            failed.len(),
            comparison.changes.len(),
            100.0 * share,
            worst.key.problem,
            worst.key.length,
            100.0 * worst.slower_by()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Entries as lines, and how far the run is: a bar where standard error is a terminal, else lines there.
struct Screen {
    bar: Option<ProgressBar>,
}

/// Steps of the bar.
const STEPS: f64 = 1000.0;

impl Screen {
    fn new() -> Self {
        let style = ProgressStyle::with_template("[{bar:30}] {percent}% {msg}")
            .expect("the template is a constant")
            .progress_chars("=> ");
        let bar = || ProgressBar::new(STEPS as u64).with_style(style);
        Self {
            bar: stderr().is_terminal().then(bar),
        }
    }

    fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Screen {
    fn entry(&mut self, entry: &Entry) {
        let Some(text) = line(entry) else { return };
        // A reader who has had enough does not end the measurement: the folder gets it all.
        let print = || drop(writeln!(stdout(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let left = progress.left.map_or("?".into(), minutes);
        match &self.bar {
            Some(bar) => {
                bar.set_position((STEPS * progress.share) as u64);
                bar.set_message(format!("{left} left, {}", progress.what));
            }
            None => {
                let percent = 100.0 * progress.share;
                let _ = writeln!(stderr(), "[{percent:3.0}%, {left} left] {}", progress.what);
            }
        }
    }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{:02}s", seconds % 60),
    }
}
