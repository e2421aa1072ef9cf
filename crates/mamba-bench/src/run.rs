//! A run of a suite: its options, its folder, its progress.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use burn::tensor::Device;
use mamba_core::{Precision, device};

use crate::attempt::works;
use crate::beside::{Beside, Running};
use crate::pace::Pace;
use crate::progress::{Clock, Progress};
use crate::proofs::Proof;
use crate::results::{Absent, Entry, Head, Key, ResultFolder, is_cpu};
use crate::suites::Suite;

/// What a user chooses.
#[derive(Debug)]
pub struct Options {
    /// The device, by name; the default one of the build if none is given.
    pub device: Option<String>,
    /// Small sizes and few rounds.
    pub quick: bool,
    /// The type of activations.
    pub precision: Precision,
    /// Problems whose name contains one of these; all if there are none.
    pub filter: Vec<String>,
    /// Lengths instead of the suite's own; none for those.
    pub lengths: Vec<usize>,
    /// Batches instead of the suite's own, of suites of whole models; none for those.
    pub batches: Vec<usize>,
    /// Rounds instead of nine, or of five if it is `quick`.
    pub rounds: Option<usize>,
    /// Where results go; the next free folder of `artifacts/bench` if none is given.
    pub out: Option<PathBuf>,
    /// Who is to run beside ours.
    pub beside: Beside,
    /// Starts this program again to measure memory: it is given a [`Probe`](crate::probe::Probe) in JSON and prints a
    /// [`Reading`](crate::probe::Reading).
    pub probe: fn(&str) -> Result<Command>,
}

/// Who looks on while a suite runs.
pub trait Watch {
    /// An entry was written.
    fn entry(&mut self, entry: &Entry);
    /// Another measurement begins.
    fn progress(&mut self, progress: &Progress);
}

/// A suite that runs.
pub struct Run<'a> {
    /// What the user chose.
    pub options: &'a Options,
    /// The device's name.
    pub name: String,
    /// The device, without autodiff.
    pub device: Device,
    /// Who runs beside ours.
    pub peers: Running,
    folder: ResultFolder,
    watch: &'a mut dyn Watch,
    clock: Clock,
    start: Instant,
}

impl<'a> Run<'a> {
    /// Starts the device and the folder.
    ///
    /// # Errors
    ///
    /// If the device does not start or lacks the precision, or the folder cannot be made.
    pub fn start(suite: &Suite, options: &'a Options, watch: &'a mut dyn Watch) -> Result<Self> {
        let (name, device) = match &options.device {
            Some(name) => (name.clone(), device::start(name)?),
            None => match device::start_default().transpose()? {
                Some(default) => (default.name.to_owned(), default.device),
                None => bail!("this build has no backend: build with one, as in `--features flex`"),
            },
        };
        ensure!(
            options.precision.is_supported(&device),
            "{name} has no bf16: leave --precision at f32"
        );
        let folder = ResultFolder::create(options.out.as_deref(), suite.name)?;
        let (peers, failed) = options.beside.start(suite.peers, &name);
        let clock = Clock::default();
        let mut run = Self {
            options,
            name,
            device,
            peers,
            folder,
            watch,
            clock,
            start: Instant::now(),
        };
        let head = Head::collect(
            suite.name,
            &run.name,
            run.peers.versions(),
            run.precision_name(),
            options.quick,
        );
        run.emit(Entry::Head(Box::new(head)))?;
        for (engine, reason) in failed {
            run.miss("every problem", engine, None, &reason)?;
        }
        Ok(run)
    }

    /// How long things are measured.
    pub fn pace(&self) -> Pace {
        let pace = match self.options.quick {
            true => Pace::QUICK,
            false => Pace::THOROUGH,
        };
        Pace {
            rounds: self.options.rounds.unwrap_or(pace.rounds),
            ..pace
        }
    }

    /// As files name it.
    pub fn precision_name(&self) -> &'static str {
        match self.options.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Whether the filter lets a problem through.
    pub fn wants(&self, problem: &str) -> bool {
        let filter = &self.options.filter;
        filter.is_empty() || filter.iter().any(|part| problem.contains(part.as_str()))
    }

    /// Those that the filter lets through.
    ///
    /// # Errors
    ///
    /// If there are none.
    pub fn filtered<T>(&self, all: Vec<T>, name: impl Fn(&T) -> &str) -> Result<Vec<T>> {
        let names: Vec<String> = all.iter().map(|it| name(it).to_owned()).collect();
        let left: Vec<T> = all.into_iter().filter(|it| self.wants(name(it))).collect();
        ensure!(
            !left.is_empty(),
            "--filter {} leaves nothing to measure: this suite has {}",
            self.options.filter.join(","),
            names.join(", ")
        );
        Ok(left)
    }

    /// What a row of ours is about.
    pub fn key(&self, problem: impl Into<String>, batch: usize, length: usize) -> Key {
        Key {
            problem: problem.into(),
            engine: OURS.into(),
            device: self.name.clone(),
            precision: self.precision_name().into(),
            batch,
            length,
        }
    }

    /// Refuses further work that may be left out, when `--quick` has taken most of its two minutes.
    ///
    /// # Errors
    ///
    /// If it has.
    pub fn in_time(&self) -> Result<()> {
        ensure!(
            !self.options.quick || self.start.elapsed() < QUICK,
            "--quick has taken its time: measure this without it"
        );
        Ok(())
    }

    /// Whether the device is a CPU.
    pub fn on_cpu(&self) -> bool {
        is_cpu(&self.name)
    }

    /// Writes an entry.
    ///
    /// # Errors
    ///
    /// If the disk is full.
    pub fn emit(&mut self, entry: Entry) -> Result<()> {
        self.watch.entry(&entry);
        self.folder.append(entry)
    }

    /// Writes a sentence.
    ///
    /// # Errors
    ///
    /// If the disk is full.
    pub fn find(&mut self, text: String) -> Result<()> {
        self.emit(Entry::Finding { text })
    }

    /// Writes the proof, which must hold.
    ///
    /// # Errors
    ///
    /// If it does not hold, or the disk is full.
    pub fn prove(&mut self, proof: Result<Proof>) -> Result<()> {
        self.emit(Entry::Proof(proof?))
    }

    /// Writes what is missing and why.
    ///
    /// # Errors
    ///
    /// If the device works no longer, or the disk is full.
    pub fn miss(
        &mut self,
        problem: &str,
        engine: &str,
        length: Option<usize>,
        reason: &anyhow::Error,
    ) -> Result<()> {
        let absent = Absent {
            problem: problem.into(),
            engine: engine.into(),
            device: self.name.clone(),
            length,
            reason: format!("{reason:#}"),
        };
        self.emit(Entry::Absent(absent))?;
        ensure!(
            engine != OURS || works(&self.device),
            "{} works no longer after {problem} failed ({reason:#}); what was measured before is in {}",
            self.name,
            self.folder.path().display()
        );
        Ok(())
    }

    /// Tells what all measurements together will take, in any unit, so that what is left can be told.
    pub fn expect(&mut self, cost: f64) {
        self.clock = Clock::new(cost);
    }

    /// Tells that a measurement begins which takes `cost` of what is [expected](Self::expect).
    pub fn begin(&mut self, what: String, cost: f64) {
        let progress = self.clock.begin(what, cost);
        self.watch.progress(&progress);
    }

    /// The second line of a plot: hardware, type, date.
    pub fn subtitle(&self) -> String {
        let Some(head) = self.folder.results().heads.first() else {
            return String::new();
        };
        let machine = &head.machine;
        let hardware = match &head.gpu {
            Some(gpu) => gpu.clone(),
            None => format!("{}, {} threads", machine.cpu, machine.threads),
        };
        let date = machine
            .date
            .as_deref()
            .and_then(|date| date.split('T').next());
        format!(
            "{} on {hardware}, {}, {}",
            self.name,
            self.precision_name(),
            date.unwrap_or("no date")
        )
    }

    /// What was found.
    pub fn folder(&self) -> &ResultFolder {
        &self.folder
    }

    /// Gives the folder back.
    pub fn into_folder(self) -> ResultFolder {
        self.folder
    }
}

/// After this long nothing that may be left out begins under `--quick`.
const QUICK: Duration = Duration::from_secs(75);

/// This project's name as an engine.
pub const OURS: &str = "mamba-lab";
