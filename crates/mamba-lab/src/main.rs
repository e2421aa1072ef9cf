//! `mamba-lab`: train, evaluate and sample language models.
#![recursion_limit = "256"]

mod commands;
mod experiments;
mod failure;
mod output;
mod progress;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{bench, chat, compare, convert, evaluate, generate, info, train};
use failure::{Failed, guard};
use mamba_core::{compilation, device};
use mamba_train::cache::cache_dir;
use mamba_train::{compiling, logging};

/// Train, evaluate and sample Mamba and transformer language models.
#[derive(Parser)]
#[command(name = "mamba-lab", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Arguments),
    Evaluate(evaluate::Arguments),
    Compare(compare::Arguments),
    Generate(generate::Arguments),
    Chat(chat::Arguments),
    Convert(convert::Arguments),
    Bench(bench::Arguments),
    Info(info::Arguments),
}

fn main() -> ExitCode {
    mamba_core::memory::keep_freed();
    let arguments = Arguments::parse();
    logging::install();
    failure::install_hook();
    let kernels = cache_dir().ok().map(|dir| dir.join("kernels"));
    let unwanted = std::env::var_os("MAMBA_LAB_KERNELS").is_some_and(|it| it == "off");
    compilation::configure(kernels.as_deref().filter(|_| !unwanted));
    let outcome = guard(
        "free memory there, choose another device with --device, or lower data.batch_size in the run's config.toml",
        || match arguments.command {
            Command::Train(arguments) => train::run(arguments),
            Command::Evaluate(arguments) => evaluate::run(arguments),
            Command::Compare(arguments) => compare::run(arguments),
            Command::Generate(arguments) => generate::run(arguments),
            Command::Chat(arguments) => chat::run(arguments),
            Command::Convert(arguments) => convert::run(arguments),
            Command::Bench(arguments) => bench::run(arguments),
            Command::Info(arguments) => info::run(arguments),
        },
    );
    compiling::hide();
    // A device that failed is not asked again.
    if !outcome.as_ref().is_err_and(Failed::is_in) {
        device::finish();
        compilation::seal();
    }
    match outcome {
        Ok(code) => code,
        // Whoever read our output has had enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_errors = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors
        .into_iter()
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
