use mamba_core::device;
use serde::{Deserialize, Serialize};

use crate::machine::{Provenance, output_of};

/// What all numbers of a run come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    /// The suite.
    pub suite: String,
    /// Version of mamba-lab.
    pub version: String,
    /// The device, as `--device` names it.
    pub device: String,
    /// Name of the GPU, where the run was on one and the system tells.
    pub gpu: Option<String>,
    /// Version of its driver.
    pub driver: Option<String>,
    /// Backends and options of the build.
    pub features: Vec<String>,
    /// The type of activations.
    pub precision: String,
    /// Whether sizes and rounds were those of `--quick`.
    pub quick: bool,
    /// Version of PyTorch, where it ran beside us; of results before there were other peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<String>,
    /// What ran beside us, with versions.
    #[serde(default)]
    pub beside: Vec<String>,
    /// Machine, sources and command.
    #[serde(flatten)]
    pub machine: Provenance,
}

impl Head {
    /// Looks around.
    pub fn collect(
        suite: &str,
        device: &str,
        beside: Vec<String>,
        precision: &str,
        quick: bool,
    ) -> Self {
        let threads = threads();
        let (gpu, driver) = match is_cpu(device) {
            true => (None, None),
            false => gpu(device),
        };
        Self {
            suite: suite.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            device: device.into(),
            gpu,
            driver,
            features: features(),
            precision: precision.into(),
            quick,
            torch: None,
            beside,
            machine: Provenance::collect(threads),
        }
    }

    /// The second line of a plot: device, hardware, type, date.
    pub fn subtitle(&self) -> String {
        let machine = &self.machine;
        let hardware = match &self.gpu {
            Some(gpu) => gpu.clone(),
            None => format!("{}, {} threads", machine.cpu, machine.threads),
        };
        let date = machine.date.as_deref().and_then(|it| it.split('T').next());
        format!(
            "{} on {hardware}, {}, {}",
            self.device,
            self.precision,
            date.unwrap_or("no date")
        )
    }

    /// Lines for people.
    pub fn lines(&self) -> Vec<String> {
        let machine = &self.machine;
        let memory = machine
            .memory_gib
            .map_or(String::new(), |gib| format!(", {gib} GiB"));
        let load = machine
            .load
            .map_or(String::new(), |load| format!(", load {load:.1} before"));
        let mut lines = vec![format!(
            "{}, {} cores{memory}, {}, {} threads{load}",
            machine.cpu, machine.cores, machine.simd, machine.threads
        )];
        if let Some(gpu) = &self.gpu {
            let driver = self.driver.as_deref().unwrap_or("unknown");
            lines.push(format!("{gpu}, driver {driver}"));
        }
        lines.push(format!(
            "device {}, {}, mamba-lab {} with {}, revision {}, {}{}",
            self.device,
            self.precision,
            self.version,
            self.features.join(" "),
            machine.revision.as_deref().unwrap_or("unknown"),
            machine.date.as_deref().unwrap_or("unknown date"),
            if self.quick { ", --quick" } else { "" }
        ));
        lines.extend(
            self.torch
                .as_ref()
                .map(|torch| format!("beside PyTorch {torch}")),
        );
        let beside = self.beside.iter();
        lines.extend(beside.map(|peer| format!("beside {peer}")));
        lines
    }
}

/// Whether the device of that name is a CPU.
pub fn is_cpu(device: &str) -> bool {
    matches!(device.split(':').next(), Some("flex" | "cpu" | "ndarray"))
}

/// Threads of the CPU backends.
pub fn threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok();
    let asked = asked
        .and_then(|threads| threads.parse().ok())
        .filter(|&threads| threads > 0);
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn features() -> Vec<String> {
    let options = [
        ("fusion", cfg!(feature = "fusion")),
        ("autotune", cfg!(feature = "autotune")),
    ];
    let options = options
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(name, _)| name);
    device::device_names()
        .into_iter()
        .chain(options)
        .map(String::from)
        .collect()
}

/// Name and driver, as NVIDIA's tool tells them; software Vulkan has neither.
fn gpu(device: &str) -> (Option<String>, Option<String>) {
    let index = device.split_once(':').map_or("0", |(_, index)| index);
    let query = [
        "--query-gpu=name,driver_version",
        "--format=csv,noheader",
        "-i",
        index,
    ];
    let told = output_of("nvidia-smi", &query);
    let told = told.as_deref().and_then(|line| line.split_once(", "));
    told.map_or((None, None), |(name, driver)| {
        (Some(name.into()), Some(driver.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_tells_the_machine_and_the_build() {
        let head = Head::collect("scaling", "flex", vec!["PyTorch 2.9".into()], "f32", true);
        let text = head.lines().join("\n");
        for part in [
            head.machine.cpu.as_str(),
            "device flex",
            "--quick",
            "PyTorch 2.9",
            "threads",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(
            head.features.first().map(String::as_str),
            device::device_names().first().copied()
        );
    }
}
