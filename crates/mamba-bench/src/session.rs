//! The suites of one process, one after the other: what they share is started, compiled and proved once.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Error, Result, bail, ensure};
use burn::tensor::Device;
use mamba_core::{device, memory};

use crate::attempt::attempt;
use crate::beside::Running;
use crate::limit::{LeftOut, TimeLimit};
use crate::options::Options;
use crate::progress::Watch;
use crate::proofs::Proof;
use crate::results::{Place, ROOM, ResultFolder};
use crate::run::{OURS, Run};
use crate::suites::{Asked, SUITES};

/// What all suites of a process share.
pub struct Session<'a> {
    /// What the user chose.
    pub options: &'a Options,
    /// The device's name.
    pub name: String,
    /// The device, without autodiff.
    pub device: Device,
    /// Peers that were started; those that a suite has no use for wait.
    pub peers: Running,
    /// What was proved.
    pub proved: Proved,
    /// Until when measurements may begin.
    pub limit: TimeLimit,
}

/// Proofs that passed in this process, so that none is made twice.
#[derive(Debug, Default)]
pub struct Proved(HashMap<String, Proof>);

impl Proved {
    /// The proof of `what`, which is made if there is none.
    ///
    /// # Errors
    ///
    /// Those of `prove`.
    pub fn once(&mut self, what: String, prove: impl FnOnce() -> Result<Proof>) -> Result<Proof> {
        if let Some(proof) = self.0.get(&what) {
            return Ok(proof.clone());
        }
        let proof = prove()?;
        self.0.insert(what, proof.clone());
        Ok(proof)
    }
}

/// What became of a suite that did not fail.
#[derive(Debug)]
pub struct Finished {
    /// All that was found.
    pub folder: ResultFolder,
    /// What the time limit left out: measurements, models or the whole suite.
    pub late: usize,
}

impl<'a> Session<'a> {
    /// Starts the device.
    ///
    /// # Errors
    ///
    /// If it does not start or lacks the precision.
    pub fn start(options: &'a Options) -> Result<Self> {
        let limit = TimeLimit::from_now(options.time_limit);
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
        Ok(Self {
            options,
            name,
            device,
            peers: Running::default(),
            proved: Proved::default(),
            limit,
        })
    }

    /// Runs one suite; its results go to `place`.
    ///
    /// # Errors
    ///
    /// If the folder cannot be made, a proof does not hold, the device fails, or the disk is full. What was measured until
    /// then stays in the folder.
    pub fn run(&mut self, asked: &Asked, place: Place, watch: &mut dyn Watch) -> Result<Finished> {
        let suite = asked.suite;
        let mut run = Run::start(self, asked, place, watch)?;
        let measured = run
            .in_limit()
            .and_then(|()| attempt(|| (suite.run)(&mut run)));
        let outcome = match measured.map_err(Error::downcast::<LeftOut>) {
            Ok(()) => Ok(()),
            Err(Ok(reason)) => run.miss("every problem", OURS, None, &reason.into()),
            Err(Err(error)) => Err(error),
        };
        let late = run.late();
        let folder = run.into_folder();
        let finished = folder.finish();
        self.rest(outcome.is_ok());
        let kept = || {
            format!(
                "{} stopped; what it had found is in {}",
                suite.name,
                folder.path().display()
            )
        };
        outcome.with_context(kept)?;
        finished?;
        Ok(Finished { folder, late })
    }

    /// Gives back what the suite took: the next one, and the processes in which memory is measured, want it.
    fn rest(&mut self, is_well: bool) {
        if !is_well {
            // Who knows what they hold, or wait for.
            self.peers = Running::default();
            return;
        }
        memory::give_back();
        // A device that fails at this fails the next suite, which tells of it.
        let _ = attempt(|| {
            self.device.memory_cleanup();
            Ok(self.device.sync()?)
        });
    }
}

/// Runs suites, one after the other in one process. Several get a folder each in that of the options; one that fails is told
/// of, and the others go on. Returns how much the time limit left out.
///
/// # Errors
///
/// If the filter leaves nothing of any, or none takes the batches, the device does not start, or a suite failed. Before the first, nothing is made.
pub fn run(asked: &[Asked], options: &Options, watch: &mut dyn Watch) -> Result<usize> {
    filtered(asked, options)?;
    batched(asked, options)?;
    let mut session = Session::start(options)?;
    let place = match (&options.out, asked.len()) {
        (Some(out), 1) => Place::Just(out),
        (Some(out), _) => Place::In(out),
        (None, _) => Place::In(Path::new(ROOM)),
    };
    // Not once a suite, where it cannot be made.
    place.prepare()?;
    let (mut failed, mut late) = (Vec::new(), 0);
    for (index, one) in asked.iter().enumerate() {
        watch.begin(one.suite.name, [index + 1, asked.len()]);
        let outcome = session.run(one, place, watch);
        watch.end(one.suite.name, &outcome);
        match outcome {
            Ok(finished) => late += finished.late,
            Err(error) => failed.push((one.suite.name, error)),
        }
    }
    let names: Vec<_> = failed.iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    let count = failed.len();
    if let Some((_, last)) = failed.pop() {
        return Err(match asked.len() {
            1 => last,
            all => last.context(format!("{count} of {all} suites failed: {names}")),
        });
    }
    Ok(late)
}

/// Refuses a filter that leaves nothing of any suite.
fn filtered(asked: &[Asked], options: &Options) -> Result<(), LeftOut> {
    let mut names = Vec::new();
    for name in asked
        .iter()
        .flat_map(|it| (it.suite.problems)(options.quick))
    {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    options.filtered(names).map(drop)
}

/// Refuses batches that no suite takes.
fn batched(asked: &[Asked], options: &Options) -> Result<()> {
    let takes = SUITES.iter().filter(|suite| suite.batches);
    ensure!(
        options.batches.is_empty() || asked.iter().any(|it| it.suite.batches),
        "--batches is for {}: {} chooses its own",
        takes.map(|suite| suite.name).collect::<Vec<_>>().join(", "),
        asked.first().map_or("each of these", |it| it.suite.name)
    );
    Ok(())
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::sleep;
    use std::time::Duration;

    use mamba_core::Precision;

    use super::*;
    use crate::beside::{Beside, Kind};
    use crate::progress::Progress;
    use crate::results::testing::row;
    use crate::results::{Entry, Results};
    use crate::suites::Suite;

    const fn suite(name: &'static str, run: fn(&mut Run) -> Result<()>) -> Suite {
        Suite {
            name,
            about: "",
            peers: Kind::None,
            batches: false,
            problems: |_| vec!["first", "second"],
            run,
        }
    }

    static FAILING: Suite = suite("failing", |_| bail!("it is broken"));
    static PANICKING: Suite = suite("panicking", |_| panic!("it fell over"));

    static PROOFS: AtomicUsize = AtomicUsize::new(0);

    /// Proves one thing and "measures" two problems, of which the first lasts until time is over, if it is limited.
    static FINE: Suite = suite("fine", |run| {
        run.prove("a sum".into(), || {
            Ok(Proof {
                claim: format!("proof {}", PROOFS.fetch_add(1, Ordering::Relaxed)),
                error: 0.0,
                tolerance: 1.0,
            })
        })?;
        let problems = run.filtered(vec!["first", "second"], |name| name)?;
        run.expect(2.0);
        for problem in problems {
            if let Err(reason) = run.begin(problem.into(), 1.0) {
                run.miss(problem, OURS, Some(run.lengths[0]), &reason)?;
                continue;
            }
            while run.options.time_limit.is_some() && run.in_limit().is_ok() {
                sleep(Duration::from_millis(10));
            }
            run.emit(Entry::Row(Box::new(row(problem, run.lengths[0], &[1.0]))))?;
        }
        Ok(())
    });

    /// What was told of each suite.
    #[derive(Default)]
    struct Told(Vec<String>);

    impl Watch for Told {
        fn begin(&mut self, suite: &str, [number, all]: [usize; 2]) {
            self.0.push(format!("{suite} {number}/{all}"));
        }

        fn entry(&mut self, _: &Entry) {}

        fn progress(&mut self, _: &Progress) {}

        fn end(&mut self, suite: &str, outcome: &Result<Finished>) {
            if let Err(error) = outcome {
                self.0.push(format!("{suite}: {error:#}"));
            }
        }
    }

    fn options(out: PathBuf) -> Options {
        Options {
            device: Some("flex".into()),
            quick: true,
            precision: Precision::F32,
            filter: Vec::new(),
            lengths: vec![8],
            batches: Vec::new(),
            rounds: None,
            time_limit: None,
            out: Some(out),
            beside: Beside::default(),
            probe: |_| bail!("no memory is measured here"),
        }
    }

    fn asked(suites: &[&'static Suite]) -> Vec<Asked> {
        let asked = |suite: &&'static Suite| Asked {
            suite,
            lengths: Vec::new(),
            batches: Vec::new(),
        };
        suites.iter().map(asked).collect()
    }

    fn results(out: &Path, name: &str) -> Results {
        Results::read(&out.join(name)).unwrap()
    }

    #[test]
    fn one_that_fails_is_told_and_the_others_go_on() {
        let out = tempfile::tempdir().unwrap();
        let mut told = Told::default();
        let options = options(out.path().into());
        let mut asked = asked(&[&FAILING, &FINE, &PANICKING, &FINE]);
        asked[3].lengths = vec![64];
        let error = run(&asked, &options, &mut told).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.starts_with("2 of 4 suites failed: failing, panicking: "),
            "{error}"
        );
        let told = told.0.join("\n");
        for part in [
            "failing 1/4",
            "what it had found is in",
            "it is broken",
            "fine 4/4",
            "it fell over",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(results(out.path(), "failing").heads[0].suite, "failing");
        let lengths = ["fine", "fine-2"].map(|name| results(out.path(), name).rows[1].key.length);
        assert_eq!(lengths, [8, 64], "its own lengths come before those of all");
    }

    #[test]
    fn one_alone_has_the_folder_to_itself_and_fails_with_its_own_error() {
        let out = tempfile::tempdir().unwrap();
        let alone = options(out.path().join("alone"));
        assert_eq!(
            run(&asked(&[&FINE]), &alone, &mut Told::default()).unwrap(),
            0
        );
        assert_eq!(results(out.path(), "alone").rows.len(), 2);
        let failed = options(out.path().join("failed"));
        let error = run(&asked(&[&FAILING]), &failed, &mut Told::default()).unwrap_err();
        assert!(error.to_string().starts_with("failing stopped"), "{error}");
    }

    #[test]
    fn what_was_proved_is_written_again_but_not_proved_again() {
        let out = tempfile::tempdir().unwrap();
        let options = options(out.path().into());
        run(&asked(&[&FINE, &FINE]), &options, &mut Told::default()).unwrap();
        let claims =
            ["fine", "fine-2"].map(|name| results(out.path(), name).proofs[0].claim.clone());
        assert_eq!(claims[0], claims[1]);
    }

    #[test]
    fn after_the_time_limit_nothing_begins_and_what_is_missing_is_named() {
        // On a busy machine the first measurement may take long to begin: then it has more time.
        let run_within = |seconds| {
            let out = tempfile::tempdir().unwrap();
            let mut options = options(out.path().into());
            options.time_limit = Some(Duration::from_secs(seconds));
            let late = run(&asked(&[&FINE, &FINE]), &options, &mut Told::default()).unwrap();
            let began = !results(out.path(), "fine").rows.is_empty();
            began.then_some((out, seconds, late))
        };
        let (out, seconds, late) = [2, 8, 32, 128].into_iter().find_map(run_within).unwrap();
        assert_eq!(late, 2, "a problem, and a suite");
        let first = results(out.path(), "fine");
        assert_eq!((first.rows.len(), first.absent.len()), (1, 1));
        assert_eq!(first.absent[0].problem, "second");
        let second = results(out.path(), "fine-2");
        assert!(second.rows.is_empty() && second.proofs.is_empty());
        let reason = format!("the {seconds} s of --time-limit are over");
        assert_eq!(second.absent[0].reason, reason);
        let table = std::fs::read_to_string(out.path().join("fine-2/table.txt")).unwrap();
        let line = format!("Not measured: every problem by mamba-lab on flex: {reason}");
        assert!(table.contains(&line), "{table}");
    }

    #[test]
    fn a_filter_that_leaves_nothing_of_all_suites_is_refused_before_anything_is_made() {
        let out = tempfile::tempdir().unwrap();
        let mut options = options(out.path().join("out"));
        options.filter = vec!["third".into()];
        let error = run(&asked(&[&FINE, &FINE]), &options, &mut Told::default()).unwrap_err();
        assert!(
            error.to_string().ends_with("there are first, second"),
            "{error}"
        );
        assert!(!out.path().join("out").exists());
        static OTHER: Suite = Suite {
            problems: |_| vec!["third"],
            ..suite("other", |run| {
                run.filtered(vec!["third"], |name| name).map(drop)
            })
        };
        assert_eq!(
            run(&asked(&[&FINE, &OTHER]), &options, &mut Told::default()).unwrap(),
            0
        );
        let absent = &results(&out.path().join("out"), "fine").absent[0];
        assert!(absent.reason.contains("--filter third"));
    }

    #[test]
    fn batches_that_no_suite_takes_are_refused_and_those_that_one_does_not_take_are_told() {
        let out = tempfile::tempdir().unwrap();
        let mut options = options(out.path().into());
        options.batches = vec![2, 3];
        let error = run(&asked(&[&FINE]), &options, &mut Told::default()).unwrap_err();
        let message = "--batches is for prefill, decode, train: fine chooses its own";
        assert_eq!(error.to_string(), message);
        static BATCHED: Suite = Suite {
            batches: true,
            ..suite("batched", |run| {
                ensure!(run.batches == [2, 3]);
                Ok(())
            })
        };
        run(&asked(&[&FINE, &BATCHED]), &options, &mut Told::default()).unwrap();
        let findings = ["fine", "batched"].map(|name| results(out.path(), name).findings);
        assert_eq!(findings[0], ["--batches has no part in fine."]);
        assert!(findings[1].is_empty());
    }
}
