//! A run of a suite: its folder, its proofs, its progress.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use burn::tensor::Device;
use mamba_core::Precision;

use crate::attempt::{attempt, works};
use crate::beside::Running;
use crate::limit::{LeftOut, TimeLimit};
use crate::options::Options;
use crate::pace::Pace;
use crate::progress::{Clock, Watch};
use crate::proofs::Proof;
use crate::results::{Absent, Entry, Head, Key, Place, ResultFolder, is_cpu};
use crate::session::{Proved, Session};
use crate::suites::Asked;

/// A suite that runs.
pub struct Run<'a> {
    /// What the user chose.
    pub options: &'a Options,
    /// The device's name.
    pub name: &'a str,
    /// The device, without autodiff.
    pub device: &'a Device,
    /// Lengths instead of the suite's own.
    pub lengths: &'a [usize],
    /// Batches instead of the suite's own.
    pub batches: &'a [usize],
    /// Who runs beside ours.
    pub peers: &'a mut Running,
    proved: &'a mut Proved,
    limit: TimeLimit,
    late: usize,
    folder: ResultFolder,
    watch: &'a mut dyn Watch,
    clock: Clock,
    start: Instant,
}

impl<'a> Run<'a> {
    /// Starts the folder, and peers that do not run yet.
    ///
    /// # Errors
    ///
    /// If the folder cannot be made or written.
    pub fn start(
        session: &'a mut Session,
        asked: &'a Asked,
        place: Place,
        watch: &'a mut dyn Watch,
    ) -> Result<Self> {
        let Session {
            options,
            name,
            device,
            peers,
            proved,
            limit,
        } = session;
        let folder = ResultFolder::create(place, asked.suite.name)?;
        let kind = asked.suite.peers;
        let failed = match limit.check() {
            Ok(()) => options.beside.start(kind, name, peers),
            Err(_) => Vec::new(),
        };
        let versions = peers.versions(kind);
        let own = |own: &'a [usize], all: &'a [usize]| if own.is_empty() { all } else { own };
        let mut run = Self {
            options,
            name,
            device,
            lengths: own(&asked.lengths, &options.lengths),
            batches: own(&asked.batches, &options.batches),
            peers,
            proved,
            limit: *limit,
            late: 0,
            folder,
            watch,
            clock: Clock::default(),
            start: Instant::now(),
        };
        let precision = run.precision_name();
        let suite = asked.suite.name;
        let head = Head::collect(suite, name, device, versions, precision, options.quick);
        run.emit(Entry::Head(Box::new(head)))?;
        for (engine, reason) in failed {
            run.miss("every problem", engine, None, &reason)?;
        }
        if !asked.suite.batches && !run.batches.is_empty() {
            run.find(format!("--batches has no part in {}.", asked.suite.name))?;
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

    /// Those that the filter lets through.
    ///
    /// # Errors
    ///
    /// If there are none.
    pub fn filtered<T>(&self, all: Vec<T>, name: impl Fn(&T) -> &str) -> Result<Vec<T>> {
        let names = all.iter().map(|it| name(it).to_owned()).collect();
        let left = self.options.filtered(names)?;
        let wanted = |it: &T| left.iter().any(|other| other == name(it));
        Ok(all.into_iter().filter(wanted).collect())
    }

    /// What a row of ours is about.
    pub fn key(&self, problem: impl Into<String>, batch: usize, length: usize) -> Key {
        Key {
            problem: problem.into(),
            engine: OURS.into(),
            device: self.name.into(),
            precision: self.precision_name().into(),
            batch,
            length,
        }
    }

    /// Refuses work that would begin after the time limit.
    ///
    /// # Errors
    ///
    /// If it is over, as a [`LeftOut`].
    pub fn in_limit(&self) -> Result<()> {
        Ok(self.limit.check()?)
    }

    /// Refuses further work that may be left out, when the time limit is over or `--quick` has taken most of its two minutes.
    ///
    /// # Errors
    ///
    /// If it has.
    pub fn in_time(&self) -> Result<()> {
        self.in_limit()?;
        ensure!(
            !self.options.quick || self.start.elapsed() < QUICK,
            "--quick has taken its time: measure this without it"
        );
        Ok(())
    }

    /// What the time limit left out so far.
    pub fn late(&self) -> usize {
        self.late
    }

    /// Whether the device is a CPU.
    pub fn on_cpu(&self) -> bool {
        is_cpu(self.name)
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

    /// Makes the proof of `what`, which names the device, unless this process has made it before, and writes it.
    ///
    /// # Errors
    ///
    /// If it does not hold, the time limit is over, or the disk is full.
    pub fn prove(&mut self, what: String, proof: impl FnOnce() -> Result<Proof>) -> Result<()> {
        let limit = self.limit;
        let proof = self.proved.once(what, || {
            limit.check()?;
            attempt(proof)
        })?;
        self.emit(Entry::Proof(proof))
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
        reason: &Error,
    ) -> Result<()> {
        self.miss_on(self.name, problem, engine, length, reason)?;
        ensure!(
            engine != OURS || reason.is::<LeftOut>() || works(self.device),
            "{} works no longer after {problem} failed ({reason:#}); what was measured before is in {}",
            self.name,
            self.folder.path().display()
        );
        Ok(())
    }

    /// The same of any device, of which nothing is expected.
    ///
    /// # Errors
    ///
    /// If the disk is full.
    pub fn miss_on(
        &mut self,
        device: &str,
        problem: &str,
        engine: &str,
        length: Option<usize>,
        reason: &Error,
    ) -> Result<()> {
        self.late += usize::from(matches!(reason.downcast_ref(), Some(LeftOut::Time(_))));
        self.emit(Entry::Absent(Absent {
            problem: problem.into(),
            engine: engine.into(),
            device: device.into(),
            length,
            reason: format!("{reason:#}"),
        }))
    }

    /// Tells what all measurements together will take, in any unit, so that what is left can be told.
    pub fn expect(&mut self, cost: f64) {
        self.clock = Clock::new(cost);
    }

    /// Tells that a measurement begins which takes `cost` of what is [expected](Self::expect).
    ///
    /// # Errors
    ///
    /// If the time limit is over: then it must not begin.
    pub fn begin(&mut self, what: String, cost: f64) -> Result<()> {
        self.in_limit()?;
        let mut progress = self.clock.begin(what, cost);
        if let (Some(left), Some(most)) = (&mut progress.left, self.limit.left()) {
            *left = most.min(*left);
        }
        self.watch.progress(&progress);
        Ok(())
    }

    /// The second line of a plot.
    pub fn subtitle(&self) -> String {
        let head = self.folder.results().heads.first();
        head.map_or(String::new(), Head::subtitle)
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
