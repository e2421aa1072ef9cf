//! Hugging Face's models beside ours, with our weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use mamba_core::{Precision, checkpoint};

use super::sizes::worth_waiting;
use crate::attempt::attempt;
use crate::engines::hugging_face::{HuggingFace, NAME, Work};
use crate::engines::model::Subject;
use crate::measure::{Calls, Measurement};
use crate::proofs;
use crate::results::{Entry, Key, Row};
use crate::run::Run;

/// One measurement of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub work: Work,
    pub batch: usize,
    pub length: usize,
    /// Operations of a call.
    pub flops: f64,
    /// Seconds that a call of a peer may take.
    pub patience: f64,
}

/// What the peer has loaded, and how fast it was with it.
#[derive(Debug, Default)]
pub(super) struct Peers {
    rates: BTreeMap<&'static str, Option<f64>>,
}

impl Peers {
    /// Gives the peer the weights of `subject` and proves that it computes the same; a peer that cannot is told of, and left
    /// out. Without a peer this does nothing.
    pub fn load(&mut self, run: &mut Run, subject: &Subject) -> Result<()> {
        let name = subject.problem.name;
        let Some(mut peer) = run.peer.take() else {
            return Ok(());
        };
        let loaded = attempt(|| {
            run.in_time()?;
            hand_over(run, &mut peer, subject)
        });
        if peer.is_running() {
            run.peer = Some(peer);
        }
        match loaded {
            Ok(proof) => {
                self.rates.insert(name, None);
                run.emit(Entry::Proof(proof))
            }
            Err(reason) => run.miss(name, NAME, None, &reason),
        }
    }

    /// Lets the peer forget a model.
    pub fn forget(&mut self, run: &mut Run, subject: &Subject) {
        if let (Some(_), Some(peer)) = (self.rates.remove(subject.problem.name), &mut run.peer) {
            // A peer that stopped is told of where it is asked next.
            let _ = peer.forget(subject.problem.name);
        }
    }

    /// Measures ours in turns with the peer's, if it has loaded the model; returns ours, and what is there of the peer.
    pub fn measure(
        &mut self,
        run: &mut Run,
        subject: &Subject,
        ours: Calls,
        task: Task,
    ) -> (Result<Measurement>, Option<Result<Measurement>>) {
        let name = subject.problem.name;
        let pace = run.pace();
        let alone = |ours: Calls| attempt(|| pace.measure_one(ours));
        let Some(rate) = self.rates.get(name).copied() else {
            return (alone(ours), None);
        };
        let Some(mut peer) = run.peer.take() else {
            return (alone(ours), None);
        };
        let extra = usize::from(matches!(task.work, Work::Train));
        let tokens = subject
            .problem
            .token_values(task.batch, task.length + extra);
        let ready = run
            .in_time()
            .and_then(|()| worth_waiting(task.patience, task.flops, rate))
            .and_then(|()| peer.set_tokens(task.batch, &tokens));
        let (ours, theirs) = match ready {
            Err(reason) => (alone(ours), Err(reason)),
            Ok(()) => {
                let id = peer.id();
                let theirs: Calls = Box::new(|calls| peer.time(name, task.work, calls));
                let both = attempt(|| Ok(pace.measure(&mut [ours, theirs], Some(id))));
                match both.map(<[_; 2]>::try_from) {
                    Ok(Ok([ours, theirs])) => (ours, theirs),
                    Ok(Err(_)) => unreachable!("two contenders have two outcomes"),
                    Err(reason) => (Err(reason), Err(anyhow::anyhow!("ours failed beside it"))),
                }
            }
        };
        if let Ok(theirs) = &theirs {
            self.rates
                .insert(name, Some(task.flops / theirs.ms.median() * 1e3));
        }
        if peer.is_running() {
            run.peer = Some(peer);
        }
        (ours, Some(theirs))
    }
}

/// Writes the peer's row, or why there is none. `key` is that of ours; `tokens` are those of a call.
pub(super) fn emit(
    run: &mut Run,
    key: &Key,
    ours: &Measurement,
    theirs: Option<Result<Measurement>>,
    tokens: usize,
) -> Result<()> {
    match theirs {
        None => Ok(()),
        Some(Err(reason)) => run.miss(&key.problem, NAME, Some(key.length), &reason),
        Some(Ok(theirs)) => {
            let ratio = theirs.ms.over(&ours.ms);
            let rate = tokens as f64 / theirs.ms.median() * 1e3;
            let key = Key {
                engine: NAME.into(),
                ..key.clone()
            };
            let row = Row::timed(key, theirs)
                .with("tokens_per_second", rate)
                .with("over_ours", ratio.median())
                .with("over_ours_q1", ratio.quantile(0.25))
                .with("over_ours_q3", ratio.quantile(0.75));
            run.emit(Entry::Row(Box::new(row)))
        }
    }
}

fn hand_over(run: &Run, peer: &mut HuggingFace, subject: &Subject) -> Result<proofs::Proof> {
    /// Sequences of the proof: short, for a peer may take a second for them.
    const SEQUENCES: [usize; 2] = [2, 24];
    let folder = Folder::new(subject.problem.name);
    checkpoint::save(&subject.model, &subject.problem.config, &folder.0)?;
    let half = run.options.precision == Precision::Bf16;
    peer.load(subject.problem.name, &folder.0, half)?;
    let [batch, length] = SEQUENCES;
    peer.set_tokens(batch, &subject.problem.token_values(batch, length))?;
    let theirs = peer.logits(subject.problem.name)?;
    proofs::peer(
        subject,
        &theirs,
        SEQUENCES,
        run.options.precision,
        &run.name,
    )
}

/// A folder that goes away with this.
struct Folder(PathBuf);

impl Folder {
    fn new(model: &str) -> Self {
        Self(std::env::temp_dir().join(format!("mamba-bench-{}-{model}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Its absence is what is wanted.
        let _ = fs::remove_dir_all(&self.0);
    }
}
