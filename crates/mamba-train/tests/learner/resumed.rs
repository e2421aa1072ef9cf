//! Runs that are stopped, crash or begin with another model, and go on.

use log::{Log, Metadata};

use super::*;

/// Asks a run to stop from its own thread, as soon as it tells the log that it took a step: polling would race with
/// steps of a millisecond.
struct Stopper(Mutex<Option<(String, Interrupter)>>);

static STOPPER: Stopper = Stopper(Mutex::new(None));

impl Stopper {
    fn order(&self) -> MutexGuard<'_, Option<(String, Interrupter)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Stopper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mamba_train::learner")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata())
            && let Some((message, interrupter)) = &*self.order()
            && record.args().to_string() == *message
        {
            interrupter.stop(Some("test"));
        }
    }

    fn flush(&self) {}
}

/// Stops a run right after `step`.
fn interrupt_at(start: Start, step: usize) -> RunFolder {
    // Fails from the second call on, where it is set already.
    let _ = log::set_logger(&STOPPER);
    log::set_max_level(log::LevelFilter::Trace);
    let interrupter = Interrupter::new();
    *STOPPER.order() = Some((format!("took step {step}"), interrupter.clone()));
    let outcome = run(start, &interrupter);
    *STOPPER.order() = None;
    match outcome.unwrap() {
        Outcome::Interrupted {
            folder,
            step: stopped,
            ..
        } => {
            assert_eq!(stopped, step);
            folder
        }
        Outcome::Finished { .. } => panic!("the run finished before it was interrupted"),
    }
}

/// The history without what depends on the clock, as text: losses are compared to the last digit.
fn losses(folder: &RunFolder) -> Vec<String> {
    let text = fs::read_to_string(folder.metrics()).unwrap();
    let lines = text
        .lines()
        .map(|line| match line.find(",\"tokens_per_second\"") {
            Some(clock) => line[..clock].to_string(),
            None => line.to_string(),
        });
    lines.collect()
}

#[test]
fn resumed_run_equals_an_uninterrupted_one_to_the_bit() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    // Accumulated losses must survive as well: the checkpoints fall between logged steps.
    let overrides = [
        "training.epochs=8",
        "training.log_every=3",
        "training.eval_every=7",
    ];
    let (whole, whole_summary) = finish(start(runs.path(), "whole", experiment(&overrides)));
    assert_eq!(whole_summary.steps, 88);

    let mut cut = interrupt_at(start(runs.path(), "cut", experiment(&overrides)), 8);
    cut = interrupt_at(Start::Resume(cut), 37);
    let (cut, cut_summary) = finish(Start::Resume(cut));

    assert_eq!(losses(&cut), losses(&whole));
    assert_eq!(cut_summary.valid, whole_summary.valid);
    assert_eq!(cut_summary.test, whole_summary.test);
    let parameters = |folder: &RunFolder| {
        let run = load_run(folder.path(), &device()).unwrap();
        let table: Vec<f32> = run.model.embedding.val().into_data().try_to_vec().unwrap();
        table
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(parameters(&cut), parameters(&whole));
}

#[test]
fn crashed_run_continues_from_its_last_checkpoint() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let (whole, _) = finish(start(runs.path(), "whole", experiment(&[])));

    let all = ["training.keep_checkpoints=100"];
    let crash = interrupt_at(start(runs.path(), "crash", experiment(&all)), 13);
    // As if the process had been killed a little after the checkpoint of step 10.
    let checkpoints = crash.checkpoints();
    let steps = checkpoints.steps().unwrap();
    for &step in steps.iter().filter(|&&step| step > 10) {
        fs::remove_dir_all(checkpoints.step_folder(step)).unwrap();
    }
    let latest = checkpoints.latest().unwrap().expect("checkpoints are left");
    assert_eq!(latest.state.step, 10);
    // No later checkpoint is made at that step.
    let partial = crash.path().join("checkpoints/step-00000007.partial");
    fs::create_dir(&partial).unwrap();
    let metrics = fs::read_to_string(crash.metrics()).unwrap();
    fs::write(crash.metrics(), metrics + "{\"kind\":\"train\",\"st").unwrap();

    let (crash, _) = finish(Start::Resume(crash));
    assert_eq!(losses(&crash), losses(&whole));
    assert!(!partial.exists(), "what a crash left is cleared up");
}

#[test]
fn interrupted_run_leaves_a_checkpoint_that_loads() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let begin = start(runs.path(), "cut", experiment(&["training.epochs=50"]));
    let folder = interrupt_at(begin, 2);
    assert!(!folder.is_finished());
    let step = folder.checkpoints().latest().unwrap().unwrap().state.step;
    let run = load_run(folder.path(), &device()).unwrap();
    assert_eq!(run.weights, Weights::Checkpoint(step));
    assert_eq!(run.tokenizer.name(), "bytes");
    assert_eq!(run.model.vocab_size(), 256);
}

#[test]
fn a_stop_while_evaluating_is_told_as_such_and_goes_on() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let interrupter = Interrupter::new();
    let options = TrainOptions {
        device: device(),
        display: Display::Quiet,
        interrupter: interrupter.clone(),
        ..TrainOptions::default()
    };
    let begin = start(runs.path(), "cut", experiment(&["training.max_steps=3"]));
    let stop = |event: TrainEvent| {
        if matches!(event, TrainEvent::Evaluating { .. }) {
            interrupter.stop(Some("test"));
        }
    };
    let outcome = train_on(begin, options, |_, _| Ok(splits()), stop).unwrap();
    let Outcome::Interrupted {
        folder,
        step,
        total_steps,
        evaluating,
    } = outcome
    else {
        panic!("the run finished");
    };
    assert_eq!((step, total_steps, evaluating), (3, 3, true));
    let (_, summary) = finish(Start::Resume(folder));
    assert_eq!(summary.steps, 3);
}

#[test]
fn damaged_checkpoint_is_not_resumed_from() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let begin = start(runs.path(), "cut", experiment(&["training.epochs=50"]));
    let folder = interrupt_at(begin, 12);
    let step = folder.checkpoints().steps().unwrap().pop().unwrap();
    let file = folder
        .path()
        .join(format!("checkpoints/step-{step:08}/optimizer.bpk"));
    let content = fs::read(&file).unwrap();
    fs::write(&file, &content[..content.len() / 2]).unwrap();
    let message = format!("{:#}", run_error(Start::Resume(folder)));
    assert!(message.contains("optimizer.bpk is damaged"), "{message}");
    assert!(message.contains("to resume from step"), "{message}");
}

#[test]
fn checkpoint_of_another_model_is_refused() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let begin = start(runs.path(), "cut", experiment(&["training.epochs=50"]));
    let folder = interrupt_at(begin, 2);
    let config = fs::read_to_string(folder.config()).unwrap();
    let changed = config.replacen("d_model = 8", "d_model = 16", 1);
    assert_ne!(config, changed);
    fs::write(folder.config(), changed).unwrap();
    let message = format!("{:#}", run_error(Start::Resume(folder)));
    assert!(message.contains("does not fit the model"), "{message}");
}

fn files(folder: &RunFolder) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(folder.path())
        .unwrap()
        .map(|it| it.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_run_begins_with_another_model_and_resumes_like_any_other() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    // Wider than the default, with another vocabulary than the tokenizer's: a fine-tuned run keeps all of it.
    let sizes = ["model.d_model=12", "training.epochs=1"];
    let (source, _) = finish(start(runs.path(), "source", experiment(&sizes)));
    let before = files(&source);
    let plain = r#"
        name = "further"
        [data]
        seq_len = 6
        batch_size = 2
        [training]
        precision = "auto"
        epochs = 2
        learning_rate = 0.001
        warmup_fraction = 0.1
        weight_decay = 0.1
        checkpoint_every = 3
        log_every = 1
    "#;
    let further = |name: &str, overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        let mut experiment = Experiment::parse(plain, "further", &overrides).unwrap();
        experiment.from = Some(source.path().to_path_buf());
        start(runs.path(), name, experiment)
    };

    // A step so small that it changes nothing shows with what the run began.
    let still = [
        "training.max_steps=1",
        "training.learning_rate=1e-30",
        "training.min_learning_rate=0",
    ];
    let (folder, _) = finish(further("still", &still));
    assert_eq!(parameters(&folder), parameters(&source));
    let written = folder.experiment().unwrap();
    assert_eq!((written.model.d_model, written.model.vocab_size), (12, 256));
    assert_eq!(&written.data.tokenizer, "bytes");
    assert_eq!(
        written.training.precision,
        mamba_train::experiment::PrecisionSetting::F32
    );

    let (whole, summary) = finish(further("whole", &[]));
    assert!(summary.valid.unwrap().loss < summary.before.unwrap().loss);
    let parts = interrupt_at(further("parts", &[]), 9);
    finish(Start::Resume(parts.clone()));
    assert_eq!(parameters(&parts), parameters(&whole));
    assert_ne!(parameters(&whole), parameters(&source));
    assert_eq!(files(&source), before, "the source is only read");

    // What contradicts the model is refused before a folder is made.
    for (overrides, told) in [
        (["model.d_model=16"], "model:"),
        (["data.tokenizer=some.json"], "data.tokenizer:"),
    ] {
        let error = run(further("none", &overrides), &Interrupter::new()).unwrap_err();
        assert!(format!("{error:#}").contains(told), "{error:#}");
    }
    let mut nowhere = Experiment::parse(plain, "further", &[]).unwrap();
    nowhere.from = Some(runs.path().join("nowhere"));
    let error = run(start(runs.path(), "none", nowhere), &Interrupter::new()).unwrap_err();
    assert!(format!("{error:#}").contains("nowhere"), "{error:#}");
    assert!(!runs.path().join("none").exists());
}
