//! Memory of one piece of work, in a process that does nothing else.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, s};
use mamba_core::{Precision, device, memory};
use serde::{Deserialize, Serialize};

use crate::attempt::one_line;
use crate::engines::model::Subject;
use crate::engines::ours::Training;
use crate::machine::{forget_peak, gpu_memory, peak_memory, resident_memory};
use crate::problems::Model;
use crate::results::is_cpu;

/// What a process is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// A model of the catalogue, by name.
    pub model: String,
    /// What to do with it.
    pub work: Work,
    /// Sequences at once.
    pub batch: usize,
    /// Positions of a sequence.
    pub length: usize,
    /// The device's name.
    pub device: String,
    /// The type of activations.
    pub precision: Precision,
}

/// What can be done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Reading a prompt.
    Prefill,
    /// Two training steps: after them the optimiser's state and all buffers have been there together.
    Train,
}

/// What was found, in bytes. On a GPU the pools of this process are asked: what tensors take of them before the work, and
/// all that they hold of the device after it. Where a backend does not tell, the driver is asked for what everyone has taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Taken by loading the model, where the system tells.
    pub weights: Option<u64>,
    /// Held before the work began, in all.
    pub before: Option<u64>,
    /// The most that was held, in all, where the system tells.
    pub peak: Option<u64>,
    /// What the model remembers of a prompt.
    pub state: Option<u64>,
    /// Seconds that the work took: of a prompt on a GPU, of reading it again, since kernels are compiled the first time.
    pub seconds: f64,
}

impl Reading {
    /// The peak less what was there before the work.
    pub fn over_weights(&self) -> Option<u64> {
        self.peak
            .zip(self.before)
            .map(|(peak, before)| peak.saturating_sub(before))
    }
}

impl Probe {
    /// Does the work in this process.
    ///
    /// # Errors
    ///
    /// If there is no such model or device, or the device fails.
    pub fn run(&self) -> Result<Reading> {
        let model = Model::find(&self.model, self.length);
        let model = model.with_context(|| format!("no model is called {}", self.model))?;
        let plain = device::start(&self.device)?;
        let device = match self.work {
            Work::Prefill => plain.clone(),
            Work::Train => plain.clone().autodiff(),
        };
        let meter = Meter::new(&self.device, &plain);
        let before = meter.held();
        let subject = Subject::new(&model, self.precision, &device);
        plain.sync().context("the device did not load the model")?;
        memory::give_back();
        let loaded = meter.held();
        let countable = meter.restart();
        let mut start = Instant::now();
        let (state, peak) = match self.work {
            Work::Prefill => {
                let tokens = subject.tokens(self.batch, self.length);
                let read = || -> Result<_> { Ok(subject.prefill(&tokens)?.1.num_bytes() as u64) };
                let state = read()?;
                let peak = meter.peak();
                if !is_cpu(&self.device) {
                    start = Instant::now();
                    read()?;
                }
                (Some(state), peak)
            }
            Work::Train => {
                self.train(subject, &device)?;
                (None, meter.peak())
            }
        };
        Ok(Reading {
            weights: loaded
                .zip(before)
                .map(|(loaded, before)| loaded.saturating_sub(before)),
            before: loaded,
            peak: peak.filter(|_| countable),
            state,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn train(&self, subject: Subject, device: &Device) -> Result<()> {
        let tokens = subject.tokens(self.batch, self.length + 1);
        let pair = [
            tokens.clone().slice(s![.., ..self.length]),
            tokens.slice(s![.., 1..]),
        ];
        let (training, _) = Training::on(subject.model, pair, device).step()?;
        training.step().map(drop)
    }

    /// Has another process do the work: `program` starts this one again, for a probe in JSON.
    ///
    /// # Errors
    ///
    /// If it cannot be started, or fails; with the last line that it told.
    pub fn start(&self, program: fn(&str) -> Result<Command>) -> Result<Reading> {
        let output = program(&serde_json::to_string(self)?)?.output();
        let output = output.context("cannot start this program again to measure memory")?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            let told = told
                .lines()
                .last()
                .map_or("it was killed, perhaps for memory".into(), one_line);
            bail!("{}", told.strip_prefix("Error: ").unwrap_or(&told));
        }
        let text = String::from_utf8(output.stdout)?;
        let reading = serde_json::from_str(text.trim());
        ensure!(
            reading.is_ok(),
            "the process that measured memory answered `{}`",
            one_line(&text)
        );
        Ok(reading?)
    }
}

/// What tells how much memory is taken.
enum Meter {
    /// The system, of this process.
    Host,
    /// The pools of a device.
    Pools(Device),
    /// NVIDIA's tool, of a GPU.
    Gpu(String),
}

impl Meter {
    fn new(name: &str, device: &Device) -> Self {
        match (is_cpu(name), device.memory_pool_usage()) {
            (true, _) => Self::Host,
            (false, Some(_)) => Self::Pools(device.clone()),
            (false, None) => Self::Gpu(name.split_once(':').map_or("0", |(_, index)| index).into()),
        }
    }

    fn held(&self) -> Option<u64> {
        match self {
            Self::Host => resident_memory(),
            Self::Pools(device) => Some(device.memory_pool_usage()?.bytes_in_use),
            Self::Gpu(index) => gpu_memory(index),
        }
    }

    /// Lets the peak count from here; whether it does.
    fn restart(&self) -> bool {
        match self {
            Self::Host => forget_peak(),
            Self::Pools(device) => {
                // What loading left behind.
                device.memory_cleanup();
                device.sync().is_ok()
            }
            Self::Gpu(_) => true,
        }
    }

    /// A pool of GPU memory does not shrink: what it holds in the end is the most that it held.
    fn peak(&self) -> Option<u64> {
        match self {
            Self::Host => peak_memory(),
            Self::Pools(device) => Some(device.memory_pool_usage()?.bytes_reserved),
            Self::Gpu(index) => gpu_memory(index),
        }
    }
}

#[cfg(all(test, feature = "flex", target_os = "linux"))]
mod tests {
    use super::*;
    use crate::machine::testing::peak_alone;

    fn probe(model: &str) -> Probe {
        Probe {
            model: model.into(),
            work: Work::Prefill,
            batch: 1,
            length: 64,
            device: "flex".into(),
            precision: Precision::F32,
        }
    }

    #[test]
    fn a_cache_grows_and_a_state_does_not() {
        let _alone = peak_alone();
        let state = |model: &str, length| {
            Probe {
                length,
                ..probe(model)
            }
            .run()
            .unwrap()
            .state
            .unwrap()
        };
        assert_eq!(state("mamba1-small", 64), state("mamba1-small", 256));
        assert_eq!(4 * state("gpt2-small", 64), state("gpt2-small", 256));
    }

    #[test]
    fn a_process_that_fails_is_told_with_its_last_line() {
        let failing = |_: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo first >&2; echo 'Error: no memory' >&2; exit 1"]);
            Ok(command)
        };
        assert_eq!(
            probe("mamba1").start(failing).unwrap_err().to_string(),
            "no memory"
        );
        let chatty = |_: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo hello"]);
            Ok(command)
        };
        let error = probe("mamba1").start(chatty).unwrap_err().to_string();
        assert!(error.contains("`hello`"), "{error}");
        assert!(
            probe("none")
                .run()
                .unwrap_err()
                .to_string()
                .contains("none")
        );
    }
}
