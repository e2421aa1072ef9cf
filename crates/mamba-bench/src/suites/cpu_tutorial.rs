//! The tutorial's model on the CPU: ours, PyTorch's naive loop and a PyTorch transformer.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;

use crate::engines::cpu_scan::CpuScan;
use crate::engines::ours::{Forward, Training, tutorial_model, tutorial_weights};
use crate::engines::pytorch::{Peer, PeerModel, Precision};
use crate::fit::PowerLaw;
use crate::machine::{Provenance, peak_memory};
use crate::measure::{Calls, Measurement, clocked};
use crate::pace::Pace;
use crate::problems::{Scan, Tutorial};
use crate::proofs;
use crate::report::Record;
use crate::roofline::{self, Floor};

const OURS: &str = "mamba-lab";
const PEERS: [(&str, PeerModel); 2] = [
    ("pytorch naive loop", PeerModel::Mamba),
    ("pytorch transformer", PeerModel::Transformer),
];

const FORWARD: &str = "backbone forward";
const TRAINING: &str = "training step";
const SCAN: &str = "scan, both ways";

/// Length of the training step, as in the tutorial.
const TRAINING_LENGTH: usize = 128;

/// A part of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The backbone in inference, at every length.
    Forward,
    /// The training step.
    Training,
    /// The selective scan, forward and backward, against its floor.
    Scan,
}

/// What to run.
#[derive(Debug)]
pub struct Suite {
    /// Interpreter with torch and safetensors.
    pub python: PathBuf,
    /// Threads of every engine.
    pub threads: usize,
    /// Turns of every engine at every size.
    pub rounds: usize,
    /// Lengths of the forward pass.
    pub lengths: Vec<usize>,
    /// The longest sequences that the peers get, too.
    pub peer_limit: usize,
    /// Parts to run.
    pub parts: Vec<Part>,
    /// Prints what [`training_memory`] returns in a process of its own.
    pub memory_probe: Command,
}

impl Suite {
    /// Proves and measures; hands every record to `emit` as soon as it is there.
    ///
    /// # Errors
    ///
    /// If a proof does not hold, the peer stops, or the thread pool has another size already.
    pub fn run(&mut self, mut emit: impl FnMut(Record)) -> Result<()> {
        ensure!(self.rounds > 0, "--rounds must be at least 1");
        use_threads(self.threads)?;
        let mut peer = Peer::start(&self.python, self.threads)?;
        let provenance = Provenance::collect(self.threads);
        emit(Record::Run {
            provenance,
            torch: peer.torch().to_owned(),
        });

        let device = Device::flex().autodiff();
        let proofs = proofs::tutorial(&mut peer, &device)?
            .into_iter()
            .chain(proofs::scan()?);
        proofs.for_each(|proof| emit(Record::Proof(proof)));
        if self.parts.contains(&Part::Forward) {
            self.forward(&mut peer, &device, &mut emit)?;
        }
        if self.parts.contains(&Part::Training) {
            self.training(&mut peer, &device, &mut emit)?;
            drop(peer);
            self.memory(&mut emit)?;
        }
        if self.parts.contains(&Part::Scan) {
            self.scan(&mut emit)?;
        }
        Ok(())
    }

    /// All rounds, however long they last.
    fn measure(&self, contenders: &mut [Calls], peers: &[u32]) -> Result<Vec<Measurement>> {
        let pace = Pace {
            rounds: self.rounds,
            patience: Duration::MAX,
            ..Pace::THOROUGH
        };
        pace.measure(contenders, peers).into_iter().collect()
    }

    fn forward(
        &self,
        peer: &mut Peer,
        device: &Device,
        emit: &mut impl FnMut(Record),
    ) -> Result<()> {
        let mut points = Vec::new();
        for &seq_len in &self.lengths {
            let problem = Tutorial::at_length(seq_len);
            let model = tutorial_model(&problem, device);
            let ours = Forward::new(&model, &problem, device);
            let peer_id = peer.id();
            let measured = if seq_len <= self.peer_limit {
                load(peer, &problem, &tutorial_weights(&model)?)?;
                let peer = std::cell::RefCell::new(&mut *peer);
                let theirs = PEERS.map(|(_, model)| -> Calls {
                    let peer = &peer;
                    Box::new(move |calls| peer.borrow_mut().forward(model, calls))
                });
                let mut contenders = vec![clocked(|| ours.run().map(drop))];
                contenders.extend(theirs);
                self.measure(&mut contenders, &[peer_id])?
            } else {
                self.measure(&mut [clocked(|| ours.run().map(drop))], &[peer_id])?
            };
            points.push((seq_len as f64, measured[0].ms.median()));
            let size = [problem.batch, seq_len];
            Record::times(FORWARD, size, &engines(), &measured)
                .into_iter()
                .for_each(&mut *emit);
        }
        if let Some(law) = PowerLaw::fit(&points) {
            emit(Record::Growth {
                problem: FORWARD,
                engine: OURS,
                exponent: law.exponent,
            });
        }
        Ok(())
    }

    fn training(
        &self,
        peer: &mut Peer,
        device: &Device,
        emit: &mut impl FnMut(Record),
    ) -> Result<()> {
        let problem = Tutorial::at_length(TRAINING_LENGTH);
        let model = tutorial_model(&problem, device);
        load(peer, &problem, &tutorial_weights(&model)?)?;
        let mut training = Some(Training::new(model, &problem, device));
        let ours = clocked(|| {
            let (next, _) = training.take().context("a training step failed")?.step()?;
            training = Some(next);
            Ok(())
        });
        let peer_id = peer.id();
        let peer = std::cell::RefCell::new(peer);
        let theirs = PEERS.map(|(_, model)| -> Calls {
            let peer = &peer;
            Box::new(move |calls| Ok(peer.borrow_mut().train(model, calls)?.ms))
        });
        let mut contenders = vec![ours];
        contenders.extend(theirs);
        let measured = self.measure(&mut contenders, &[peer_id])?;
        let size = [problem.batch, problem.seq_len];
        Record::times(TRAINING, size, &engines(), &measured)
            .into_iter()
            .for_each(emit);
        Ok(())
    }

    /// Each engine in a fresh process that does nothing else.
    fn memory(&mut self, emit: &mut impl FnMut(Record)) -> Result<()> {
        let output = self
            .memory_probe
            .output()
            .context("cannot start the memory probe")?;
        ensure!(
            output.status.success(),
            "the memory probe failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let bytes = String::from_utf8(output.stdout)?;
        let bytes = bytes
            .trim()
            .parse()
            .context("the memory probe printed no number")?;
        emit(Record::Memory {
            problem: TRAINING,
            engine: OURS,
            bytes,
        });

        let problem = Tutorial::at_length(TRAINING_LENGTH);
        for (engine, model) in PEERS {
            let mut peer = Peer::start(&self.python, self.threads)?;
            match model {
                PeerModel::Mamba => {
                    let weights = tutorial_weights(&tutorial_model(&problem, &Device::flex()))?;
                    peer.load_mamba(&weights, Precision::Single)?;
                }
                PeerModel::Transformer => peer.load_transformer(&problem)?,
            }
            peer.set_tokens(&problem)?;
            peer.train(model, MEMORY_STEPS)?;
            emit(Record::Memory {
                problem: TRAINING,
                engine,
                bytes: peer.peak_memory()?,
            });
        }
        Ok(())
    }

    fn scan(&self, emit: &mut impl FnMut(Record)) -> Result<()> {
        let problem = Scan::LARGE;
        let ours = CpuScan::new(problem);
        let instructions = roofline::scan_instructions(&problem);
        let floor = Floor::new(instructions);
        let mut contenders = [
            clocked(|| {
                floor.run();
                Ok(())
            }),
            clocked(|| ours.run().map(drop)),
        ];
        let measured = self.measure(&mut contenders, &[])?;
        let (floor, ours) = (&measured[0], &measured[1]);
        let Scan {
            batch,
            seq_len,
            d_inner,
            d_state,
        } = problem;
        emit(Record::Roofline {
            problem: SCAN,
            size: format!("B {batch}, L {seq_len}, D {d_inner}, N {d_state}"),
            instructions,
            floor_ms: floor.ms.clone(),
            ms: ours.ms.clone(),
            ratio: ours.ms.over(&floor.ms),
            other_cores: ours.other_cores,
        });
        Ok(())
    }
}

/// Steps after which the optimiser's state and all buffers have been there together.
const MEMORY_STEPS: usize = 2;

/// Takes training steps and returns the largest resident size of this process so far, in bytes.
///
/// # Errors
///
/// If the device fails, or the system does not tell.
pub fn training_memory(threads: usize) -> Result<u64> {
    use_threads(threads)?;
    let device = Device::flex().autodiff();
    let problem = Tutorial::at_length(TRAINING_LENGTH);
    let mut training = Training::new(tutorial_model(&problem, &device), &problem, &device);
    for _ in 0..MEMORY_STEPS {
        training = training.step()?.0;
    }
    peak_memory().context("this system has no /proc/self/status to read the peak memory from")
}

fn use_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context("the thread pool was started before the suite")
}

fn engines() -> [&'static str; 3] {
    [OURS, PEERS[0].0, PEERS[1].0]
}

fn load(peer: &mut Peer, problem: &Tutorial, weights: &[u8]) -> Result<()> {
    peer.load_mamba(weights, Precision::Single)?;
    peer.load_transformer(problem)?;
    peer.set_tokens(problem)
}
