//! Who runs beside ours, and what starts them.

use std::path::PathBuf;

use anyhow::{Error, Result, anyhow, ensure};

use crate::engines::model_peer::{CANDLE, HUGGING_FACE, MAMBA_RS, ModelPeer};
use crate::engines::op_peer::OpPeer;
use crate::engines::process::Process;
use crate::results::{is_cpu, threads};

/// Who a user wants beside ours.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// A Python with torch, and for whole models with transformers.
    pub python: Option<PathBuf>,
    /// Folders in which that Python looks for modules first.
    pub python_path: Vec<String>,
    /// The program built from `peers/candle`.
    pub candle: Option<PathBuf>,
    /// The program built from `peers/mamba-rs`.
    pub mamba_rs: Option<PathBuf>,
}

/// What peers of a suite do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There are none.
    None,
    /// They run whole models.
    Models,
    /// They run single operations.
    Operations,
}

/// The name of all engines of the script that runs operations, where it does not start.
const PYTHON: &str = "python";

/// Peers that were started.
#[derive(Debug, Default)]
pub struct Running {
    /// Those that run whole models.
    pub models: Vec<ModelPeer>,
    /// That which runs operations.
    pub operations: Option<OpPeer>,
}

impl Running {
    /// What runs and has a part in suites of that kind, with versions.
    pub fn versions(&self, kind: Kind) -> Vec<String> {
        match kind {
            Kind::None => Vec::new(),
            Kind::Models => of(self.models.iter().map(|peer| &peer.process)),
            Kind::Operations => of(self.operations.iter().map(|peer| &peer.process)),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.models.iter().any(|peer| peer.name() == name)
    }
}

fn of<'a>(processes: impl Iterator<Item = &'a Process>) -> Vec<String> {
    processes.map(|it| it.version().to_owned()).collect()
}

/// What starts a peer beside a device, if it is wanted.
type Starts = fn(&Beside, &str) -> Option<Result<ModelPeer>>;

impl Beside {
    /// Starts what the user wants, the suite can use beside `device`, and does not run yet. Returns which engines did not
    /// start, and why.
    pub fn start(
        &self,
        kind: Kind,
        device: &str,
        running: &mut Running,
    ) -> Vec<(&'static str, Error)> {
        let mut failed = Vec::new();
        match kind {
            Kind::None => {
                let wanted = [
                    (PYTHON, &self.python),
                    (CANDLE, &self.candle),
                    (MAMBA_RS, &self.mamba_rs),
                ];
                for (name, _) in wanted.into_iter().filter(|(_, it)| it.is_some()) {
                    failed.push((name, anyhow!("peers have no part in this suite")));
                }
            }
            Kind::Models => {
                let all: [(_, Starts); 3] = [
                    (HUGGING_FACE, Self::hugging_face),
                    (CANDLE, Self::candle),
                    (MAMBA_RS, Self::mamba_rs),
                ];
                for (name, start) in all {
                    if running.has(name) {
                        continue;
                    }
                    match start(self, device) {
                        Some(Ok(peer)) => running.models.push(peer),
                        Some(Err(reason)) => failed.push((name, reason)),
                        None => {}
                    }
                }
            }
            Kind::Operations => {
                if running.operations.is_none() {
                    match self.operations(device) {
                        Some(Ok(peer)) => running.operations = Some(peer),
                        Some(Err(reason)) => failed.push((PYTHON, reason)),
                        None => {}
                    }
                }
                for (name, program) in [(CANDLE, &self.candle), (MAMBA_RS, &self.mamba_rs)] {
                    if program.is_some() {
                        failed.push((name, anyhow!("it runs whole models alone")));
                    }
                }
            }
        }
        failed
    }

    fn hugging_face(&self, device: &str) -> Option<Result<ModelPeer>> {
        let python = self.python.as_deref()?;
        Some(ModelPeer::hugging_face(python, threads(), &torch(device)))
    }

    fn candle(&self, device: &str) -> Option<Result<ModelPeer>> {
        let program = self.candle.as_deref()?;
        let start = || {
            ensure!(is_cpu(device), "it runs on the CPU alone");
            ModelPeer::candle(program, threads())
        };
        Some(start())
    }

    fn mamba_rs(&self, device: &str) -> Option<Result<ModelPeer>> {
        let program = self.mamba_rs.as_deref()?;
        Some(ModelPeer::mamba_rs(program, threads(), &torch(device)))
    }

    fn operations(&self, device: &str) -> Option<Result<OpPeer>> {
        let python = self.python.as_deref()?;
        let folders = &self.python_path;
        Some(OpPeer::start(python, folders, threads(), &torch(device)))
    }
}

/// The same hardware, as PyTorch names it. Whatever graphics interface we take, its way to a GPU is CUDA, also on AMD's;
/// where it has none it says so.
fn torch(device: &str) -> String {
    let index = device.split_once(':').map(|(_, index)| index);
    match (is_cpu(device), device.split(':').next()) {
        (true, _) => "cpu".into(),
        (_, Some("metal")) => "mps".into(),
        _ => format!("cuda:{}", index.unwrap_or("0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_start_is_told() {
        let beside = Beside {
            python: Some("/no/python".into()),
            candle: Some("/no/candle".into()),
            ..Beside::default()
        };
        for (kind, expected) in [
            (Kind::None, vec![PYTHON, CANDLE]),
            (Kind::Models, vec![HUGGING_FACE, CANDLE]),
            (Kind::Operations, vec![PYTHON, CANDLE]),
        ] {
            let mut running = Running::default();
            let failed = beside.start(kind, "flex", &mut running);
            assert!(running.versions(kind).is_empty());
            let names: Vec<_> = failed.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, expected);
        }
        let mut running = Running::default();
        let none = Beside::default();
        assert!(none.start(Kind::Models, "flex", &mut running).is_empty());
    }

    #[test]
    fn devices_have_names_in_pytorch() {
        let names = ["flex", "cuda", "cuda:1", "vulkan", "metal"].map(torch);
        assert_eq!(names, ["cpu", "cuda:0", "cuda:1", "cuda:0", "mps"]);
    }
}
