//! Whole runs of a tiny model on tokens that repeat.

mod resumed;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn::train::Interrupter;
use mamba_train::data::Splits;
use mamba_train::encoded::EncodedCorpus;
use mamba_train::experiment::Experiment;
use mamba_train::history::{Record, read_history};
use mamba_train::learner::{LmTraining, Stop};
use mamba_train::load::{Weights, load_run};
use mamba_train::run::RunFolder;
use mamba_train::summary::Summary;
use mamba_train::tokenizer::Tokenizer;
use mamba_train::train::{Display, Outcome, Start, TrainEvent, TrainOptions, train_on};
use mamba_train::windows::{Tail, Windows};

/// Random numbers belong to the device, so that runs side by side would disturb each other.
static SERIAL: Mutex<()> = Mutex::new(());

/// The CPU where it is built in: a GPU beside it would compile kernels for minutes.
fn device() -> Device {
    mamba_core::device::device("flex").unwrap_or_default()
}

fn serial() -> MutexGuard<'static, ()> {
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

const BASE: &str = r#"
name = "tiny"

[model]
d_model = 8
vocab_size = 256

[model.mamba1]
d_state = 2

[data]
tokenizer = "bytes"
seq_len = 6
batch_size = 2

[training]
epochs = 2
grad_accum = 2
learning_rate = 0.02
warmup_steps = 3
weight_decay = 0.1
eval_every = 4
checkpoint_every = 5
log_every = 1
"#;

fn experiment(overrides: &[&str]) -> Experiment {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Experiment::parse(BASE, "test", &overrides).unwrap()
}

fn windows(tokens: u32, tail: Tail) -> Arc<Windows> {
    let tokens: Vec<u32> = (0..tokens).map(|i| (i * i / 3 + i) % 31 + 97).collect();
    Arc::new(Windows::new(Arc::new(EncodedCorpus::from_tokens(&tokens)), 6, tail).unwrap())
}

/// 11 optimizer steps an epoch under [`BASE`].
fn splits() -> Splits {
    Splits {
        tokenizer: Arc::new(Tokenizer::bytes()),
        train: windows(6 * 46 + 1, Tail::Drop),
        valid: windows(50, Tail::Keep),
        test: Some(windows(40, Tail::Keep)),
        corpus: "own-text".into(),
        description: "numbers".into(),
        notice: None,
    }
}

fn start(runs: &Path, name: &str, experiment: Experiment) -> Start {
    let name = Some(name.to_string());
    Start::New {
        experiment: Box::new(experiment),
        runs: runs.to_path_buf(),
        name,
    }
}

fn run(start: Start, interrupter: &Interrupter) -> anyhow::Result<Outcome> {
    let options = TrainOptions {
        device: device(),
        display: Display::Quiet,
        interrupter: interrupter.clone(),
        ..TrainOptions::default()
    };
    train_on(start, options, |_, _| Ok(splits()), |_| {})
}

fn finish(start: Start) -> (RunFolder, Summary) {
    match run(start, &Interrupter::new()).unwrap() {
        Outcome::Finished { folder, summary } => (folder, *summary),
        Outcome::Interrupted { step, .. } => panic!("interrupted at step {step}"),
    }
}

#[test]
fn finished_run_has_learnt_and_holds_everything() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let (folder, summary) = finish(start(
        runs.path(),
        "done",
        experiment(&["training.epochs=6"]),
    ));

    let read = Summary::read(&folder.summary()).unwrap();
    assert_eq!(
        (read.name.as_str(), read.stop, read.steps),
        ("done", summary.stop, 66)
    );
    assert_eq!(
        (summary.stop, summary.steps, summary.epochs),
        (Stop::Completed, 66, 6.0)
    );
    assert_eq!(summary.tokens, 66 * 2 * 2 * 6);
    let before = summary.before.unwrap();
    assert!(
        (before.loss - 256f64.ln()).abs() < 0.1,
        "before: {}",
        before.loss
    );
    let (valid, test) = (summary.valid.unwrap(), summary.test.unwrap());
    assert!(valid.loss < before.loss - 0.5, "after: {}", valid.loss);
    assert_eq!((valid.tokens, test.tokens), (Some(49), Some(39)));
    assert!(summary.wall_seconds > 0.0 && summary.tokens_per_second > 0.0);

    let run = load_run(folder.path(), &device()).unwrap();
    assert_eq!(run.weights, Weights::Final);
    assert_eq!(run.experiment.training.epochs, 6);
    assert_eq!(run.model.num_params(), summary.parameters);
    let kinds = read_history(&folder.metrics()).unwrap();
    assert!(matches!(kinds[0], Record::Eval(_)) && matches!(kinds[1], Record::Train { .. }));
    assert!(matches!(kinds.last(), Some(Record::Final(record)) if record.split == "test"));
    assert!(
        fs::read_to_string(folder.curve())
            .unwrap()
            .contains("</svg>")
    );
    assert!(folder.checkpoints().steps().unwrap().contains(&66));

    let message = format!("{:#}", run_error(Start::Resume(folder)));
    assert!(message.contains("done is finished"), "{message}");
}

fn run_error(start: Start) -> anyhow::Error {
    run(start, &Interrupter::new()).unwrap_err()
}

#[test]
fn name_that_is_taken_is_refused_before_any_work() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    finish(start(
        runs.path(),
        "mine",
        experiment(&["training.max_steps=1"]),
    ));
    let begin = start(runs.path(), "mine", experiment(&[]));
    let loaded = train_on(
        begin,
        TrainOptions::default(),
        |_, _| panic!("data must not be loaded"),
        |_: TrainEvent| {},
    );
    assert!(
        loaded
            .unwrap_err()
            .to_string()
            .contains("mine exists; give --resume")
    );
}

#[test]
fn early_stopping_keeps_the_best_weights() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    // A rate this high destroys what was learnt: evaluations soon stop improving.
    let overrides = [
        "training.epochs=40",
        "training.learning_rate=2.0",
        "training.schedule=constant",
        "training.warmup_steps=300",
        "training.patience=3",
        "training.clip_norm=0",
    ];
    let (folder, summary) = finish(start(runs.path(), "early", experiment(&overrides)));
    assert_eq!(summary.stop, Stop::EarlyStopping);
    assert!(summary.kept_step < summary.steps);
    let evaluations = read_history(&folder.metrics()).unwrap();
    let best = evaluations
        .iter()
        .filter_map(|record| match record {
            Record::Eval(record) => Some(record.loss),
            _ => None,
        })
        .fold(f64::INFINITY, f64::min);
    assert_eq!(summary.valid.unwrap().loss, best);
}

#[test]
fn time_limit_finishes_the_run() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let overrides = ["training.epochs=100000", "training.max_minutes=0.005"];
    let (_, summary) = finish(start(runs.path(), "timed", experiment(&overrides)));
    assert_eq!(summary.stop, Stop::TimeLimit);
    assert!(summary.valid.is_some());
}

/// The folder of such a run is read like any other.
#[test]
fn time_that_is_up_before_the_first_step_leaves_a_run_that_can_be_read() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let overrides = ["training.max_minutes=1e-12"];
    let (folder, summary) = finish(start(runs.path(), "none", experiment(&overrides)));
    assert_eq!((summary.stop, summary.steps), (Stop::TimeLimit, 0));
    let read = Summary::read(&folder.summary()).unwrap();
    assert_eq!((read.tokens, read.tokens_per_second), (0, 0.0));
    load_run(folder.path(), &device()).unwrap();
}

#[test]
fn sample_that_could_not_be_written_is_refused_before_training() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    let learned = [
        "model.pattern=[\"attention\", \"mlp\"]",
        "model.attention.num_heads=2",
        "model.max_positions=6",
    ];
    let long = "sample.prompt=\"seven..\"";
    for (overrides, told) in [
        (vec!["sample.prompt=\"\""], "sample.prompt: "),
        ([&learned[..], &[long]].concat(), "7 tokens"),
    ] {
        let begin = start(runs.path(), "bad", experiment(&overrides));
        let message = format!("{:#}", run_error(begin));
        assert!(message.contains(told), "{message}");
        assert!(!runs.path().join("bad").exists(), "nothing was begun");
        let none = [&overrides[..], &["sample.tokens=0", "training.max_steps=1"]].concat();
        finish(start(runs.path(), told, experiment(&none)));
    }
}

#[test]
fn loss_that_is_not_finite_is_an_error_with_advice() {
    let _serial = serial();
    let runs = tempfile::tempdir().unwrap();
    // Noticed by whichever comes first: a logged training loss or an evaluation.
    for (name, every) in [
        ("log", "training.eval_every=0"),
        ("eval", "training.eval_every=1"),
    ] {
        let overrides = [
            "training.epochs=50",
            "training.log_every=2",
            "training.learning_rate=1e30",
            "training.warmup_steps=0",
            "training.clip_norm=0",
            every,
        ];
        let begin = start(runs.path(), name, experiment(&overrides));
        let message = format!("{:#}", run_error(begin));
        assert!(message.contains("training.learning_rate"), "{message}");
    }
}

#[test]
fn accumulated_gradients_equal_those_of_one_big_batch() {
    use burn::data::dataloader::batcher::Batcher;
    use burn::data::dataset::Dataset;
    use burn::optim::{GradientsAccumulator, GradientsParams};
    use burn::train::TrainStep;
    use mamba_train::windows::TokenBatcher;

    let _serial = serial();
    let device = device().autodiff();
    device.seed(7);
    let model = experiment(&[]).model.init(&device);
    let windows = windows(6 * 4 + 1, Tail::Drop);
    let batch = |range: std::ops::Range<usize>| {
        TokenBatcher.batch(windows.get_many(range.collect()).unwrap(), &device)
    };
    let gradient = |grads: &GradientsParams| -> Tensor<2> {
        grads
            .get(model.embedding.id)
            .expect("the embedding should have a gradient")
    };

    let whole = LmTraining::new(model.clone(), 1, 0.0);
    let whole = gradient(&TrainStep::step(&whole, batch(0..4)).grads);

    let part = LmTraining::new(model.clone(), 2, 0.0);
    let mut accumulator = GradientsAccumulator::new();
    for range in [0..2, 2..4] {
        accumulator.accumulate(&part, TrainStep::step(&part, batch(range)).grads);
    }
    let parts = gradient(&accumulator.grads());
    whole
        .into_data()
        .assert_approx_eq::<f32>(&parts.into_data(), burn::tensor::Tolerance::absolute(1e-6));
}

/// The parameters of a finished run or of its last checkpoint, flat.
fn parameters(folder: &RunFolder) -> Vec<f32> {
    use burn::module::Module;
    use mamba_train::load::load_run;
    struct All(Vec<f32>);
    impl burn::module::ModuleVisitor for All {
        fn visit_float<const D: usize>(
            &mut self,
            param: &burn::module::Param<burn::tensor::Tensor<D>>,
        ) {
            self.0.extend(param.val().into_data().iter::<f32>());
        }
    }
    let mut all = All(Vec::new());
    load_run(folder.path(), &device())
        .unwrap()
        .model
        .visit(&mut all);
    all.0
}
