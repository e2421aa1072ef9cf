//! Others' models beside ours, with our weights.

use std::collections::BTreeMap;
use std::fs;
use std::mem;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use mamba_core::{Precision, checkpoint};

use super::sizes::worth_waiting;
use crate::attempt::attempt;
use crate::engines::model::Subject;
use crate::engines::model_peer::{ModelPeer, Work};
use crate::measure::{Calls, Measurement};
use crate::problems::flops;
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

impl Task {
    fn training(&self) -> bool {
        matches!(self.work, Work::Train)
    }
}

/// What each peer has loaded, by its name and the model's, and how fast it was with it.
#[derive(Debug, Default)]
pub(super) struct Peers {
    rates: BTreeMap<(&'static str, &'static str), Option<f64>>,
}

/// What each peer needed, or why it did not.
pub(super) type Theirs = Vec<(String, Result<Measurement>)>;

impl Peers {
    /// Gives the peers the weights of `subject` and proves that they compute the same; one that cannot is told of, and left
    /// out. Without peers this does nothing.
    pub fn load(&mut self, run: &mut Run, subject: &Subject, training: bool) -> Result<()> {
        let model = subject.problem.name;
        for mut peer in mem::take(&mut run.peers.models) {
            let name = peer.name();
            let loaded = attempt(|| {
                run.in_time()?;
                hand_over(run, &mut peer, subject, training)
            });
            if peer.process.is_running() {
                run.peers.models.push(peer);
            }
            match loaded {
                Ok(proof) => {
                    self.rates.insert((name, model), None);
                    run.emit(Entry::Proof(proof))?;
                }
                Err(reason) => run.miss(model, name, None, &reason)?,
            }
        }
        Ok(())
    }

    /// Lets the peers forget a model.
    pub fn forget(&mut self, run: &mut Run, subject: &Subject) {
        let model = subject.problem.name;
        for peer in &mut run.peers.models {
            if self.rates.remove(&(peer.name(), model)).is_some() {
                // A peer that stopped is told of where it is asked next.
                let _ = peer.forget(model);
            }
        }
    }

    /// Measures ours in turns with those peers that have loaded the model; returns ours, and what is there of theirs.
    pub fn measure(
        &mut self,
        run: &mut Run,
        subject: &Subject,
        ours: Calls,
        task: Task,
    ) -> (Result<Measurement>, Theirs) {
        let model = subject.problem.name;
        let mut theirs: Theirs = Vec::new();
        let mut ready = Vec::new();
        let mut idle = Vec::new();
        for mut peer in mem::take(&mut run.peers.models) {
            match self.rates.get(&(peer.name(), model)).copied() {
                None => idle.push(peer),
                Some(rate) => match make_ready(run, &mut peer, subject, &task, rate) {
                    Ok(()) => ready.push(peer),
                    Err(reason) => {
                        theirs.push((peer.name().into(), Err(reason)));
                        idle.push(peer);
                    }
                },
            }
        }
        let ids: Vec<u32> = ready.iter().map(|peer| peer.process.id()).collect();
        let names: Vec<_> = ready.iter().map(|peer| peer.name().to_owned()).collect();
        let mut contenders = vec![ours];
        for peer in &mut ready {
            contenders.push(Box::new(|calls| peer.time(model, task.work, calls)));
        }
        let pace = run.pace();
        let all = attempt(|| Ok(pace.measure(&mut contenders, &ids)));
        drop(contenders);
        let ours = match all {
            Ok(mut all) => {
                theirs.extend(names.into_iter().zip(all.drain(1..)));
                all.pop()
                    .unwrap_or_else(|| Err(anyhow!("nothing was measured")))
            }
            Err(reason) => {
                let failed = || Err(anyhow!("ours failed beside it"));
                theirs.extend(names.into_iter().map(|name| (name, failed())));
                Err(reason)
            }
        };
        for peer in &ready {
            let measured = theirs.iter().find(|(name, _)| name == peer.name());
            if let Some((_, Ok(measured))) = measured {
                let rate = task.flops / measured.ms.median() * 1e3;
                self.rates.insert((peer.name(), model), Some(rate));
            }
        }
        let all = ready.into_iter().chain(idle);
        run.peers.models = all.filter(|peer| peer.process.is_running()).collect();
        (ours, theirs)
    }
}

/// Gives a peer its tokens, if its call will not last too long; `rate` is how fast it was, if that is known.
fn make_ready(
    run: &Run,
    peer: &mut ModelPeer,
    subject: &Subject,
    task: &Task,
    rate: Option<f64>,
) -> Result<()> {
    /// Tokens that a peer whose rate is not known reads first: a loop in Python takes a second for them.
    const FIRST: usize = 512;
    /// With more tokens than these it is asked for those first.
    const KNOWN: usize = 4096;
    run.in_time()?;
    let model = &subject.problem;
    let rate = match rate {
        None if task.batch * task.length > KNOWN => {
            peer.set_tokens(1, &model.token_values(1, FIRST))?;
            let ms = peer.time(model.name, Work::Prefill, 2)?;
            let work = flops::forward(&model.config, 1, FIRST, 1);
            Some(work / ms[ms.len() - 1] * 1e3)
        }
        rate => rate,
    };
    worth_waiting(task.patience, task.flops, rate)?;
    let extra = usize::from(task.training());
    peer.set_tokens(
        task.batch,
        &model.token_values(task.batch, task.length + extra),
    )
}

/// Writes the peers' rows, or why there are none, and returns who took how many milliseconds. `key` is that of ours; `tokens` are
/// those of a call.
pub(super) fn emit(
    run: &mut Run,
    key: &Key,
    ours: &Measurement,
    theirs: Theirs,
    tokens: usize,
) -> Result<Vec<(String, f64)>> {
    let mut measured = Vec::new();
    for (name, theirs) in theirs {
        match theirs {
            Err(reason) => run.miss(&key.problem, &name, Some(key.length), &reason)?,
            Ok(theirs) => {
                let ms = theirs.ms.median();
                let rate = tokens as f64 / ms * 1e3;
                let row = beside(key, &name, theirs, ours).with("tokens_per_second", rate);
                run.emit(Entry::Row(Box::new(row)))?;
                measured.push((name, ms));
            }
        }
    }
    Ok(measured)
}

/// The row of `engine` with its ratio to ours, whose key is `key`.
pub(super) fn beside(key: &Key, engine: &str, theirs: Measurement, ours: &Measurement) -> Row {
    let ratio = theirs.ms.over(&ours.ms);
    let key = Key {
        engine: engine.into(),
        ..key.clone()
    };
    Row::timed(key, theirs)
        .with("over_ours", ratio.median())
        .with("over_ours_q1", ratio.quantile(0.25))
        .with("over_ours_q3", ratio.quantile(0.75))
}

fn hand_over(
    run: &Run,
    peer: &mut ModelPeer,
    subject: &Subject,
    training: bool,
) -> Result<proofs::Proof> {
    /// Sequences of the proof: short, for a peer may take a second for them.
    const SEQUENCES: [usize; 2] = [2, 24];
    let folder = Folder::new(subject.problem.name);
    checkpoint::save(&subject.model, &subject.problem.config, &folder.0)?;
    let half = run.options.precision == Precision::Bf16;
    peer.load(subject.problem.name, &folder.0, half, training)?;
    let [batch, length] = SEQUENCES;
    peer.set_tokens(batch, &subject.problem.token_values(batch, length))?;
    let theirs = peer.logits(subject.problem.name)?;
    let whose = peer.name();
    let precision = run.options.precision;
    proofs::peer(subject, &theirs, SEQUENCES, whose, precision, run.name)
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
