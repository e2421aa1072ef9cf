use burn::tensor::Device;
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
    /// What its driver calls the GPU, or what imitates one, where the run was on one.
    pub gpu: Option<String>,
    /// Version of that driver, if it is NVIDIA's and its tool is there.
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
    /// Looks around. `device` is that of the name `name`, started.
    pub fn collect(
        suite: &str,
        name: &str,
        device: &Device,
        beside: Vec<String>,
        precision: &str,
        quick: bool,
    ) -> Self {
        let threads = threads();
        let gpu = device::adapter(device);
        let driver = gpu.as_deref().and_then(|gpu| driver(name, gpu));
        Self {
            suite: suite.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            device: name.into(),
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
            let driver = self.driver.as_ref();
            let driver = driver.map_or(String::new(), |driver| format!(", driver {driver}"));
            lines.push(format!("{gpu}{driver}"));
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

/// The version of NVIDIA's driver, as its tool tells it, if `gpu` is one of its GPUs. On `cuda` it is, whatever the tool calls it.
fn driver(device: &str, gpu: &str) -> Option<String> {
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    driver_in(&output_of("nvidia-smi", &query)?, device, gpu)
}

/// `told` is a line for each GPU: name and driver, which all of them share.
fn driver_in(told: &str, device: &str, gpu: &str) -> Option<String> {
    let cuda = device.split(':').next() == Some("cuda");
    let mut lines = told.lines().filter_map(|line| line.split_once(", "));
    let (_, driver) = lines.find(|(name, _)| cuda || *name == gpu)?;
    Some(driver.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_that_of_the_gpu_that_ran() {
        let told = "NVIDIA L4, 580.65.06\nNVIDIA H100 80GB HBM3, 580.65.06";
        for (device, gpu, driver) in [
            ("cuda:1", "NVIDIA H100 80GB HBM3", Some("580.65.06")),
            ("vulkan", "NVIDIA H100 80GB HBM3", Some("580.65.06")),
            ("cuda", "H100", Some("580.65.06")),
            ("vulkan", "llvmpipe (LLVM 20.1.2, 256 bits)", None),
            ("wgpu:1", "AMD Radeon 780M (RADV)", None),
        ] {
            assert_eq!(driver_in(told, device, gpu).as_deref(), driver, "{gpu}");
        }
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn whatever_runs_wgpu_has_a_name() {
        // Where there is no adapter at all, other tests say so.
        let Ok(device) = device::start("wgpu") else {
            return;
        };
        let head = Head::collect("scaling", "wgpu", &device, vec![], "f32", true);
        let gpu = head.gpu.as_deref().unwrap();
        assert!(head.lines().join("\n").contains(gpu) && head.subtitle().contains(gpu));
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_head_tells_the_machine_and_the_build() {
        let device = Device::flex();
        let beside = vec!["PyTorch 2.9".into()];
        let head = Head::collect("scaling", "flex", &device, beside, "f32", true);
        assert!(head.gpu.is_none() && head.driver.is_none());
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
