//! What a run ran on.

use std::fs;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

/// The machine and device of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// The processor's name, or its architecture where the name is unknown.
    pub cpu: String,
    /// Threads the process may use at once.
    pub cores: usize,
    /// Installed memory in bytes. Known on Linux only.
    pub memory: Option<u64>,
    /// The operating system.
    pub os: String,
    /// The device the model was on.
    pub device: String,
}

impl Hardware {
    /// Describes this machine and `device`.
    pub fn detect(device: &Device) -> Self {
        Self {
            cpu: cpu_model().unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kibibytes("/proc/meminfo", "MemTotal"),
            os: std::env::consts::OS.to_string(),
            device: format!("{:?}", device.clone().inner()),
        }
    }
}

/// The most memory this process has held at once, in bytes. Known on Linux only.
pub fn peak_memory() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM")
}

/// The memory this process holds, in bytes. Known on Linux only.
pub fn resident_memory() -> Option<u64> {
    kibibytes("/proc/self/status", "VmRSS")
}

fn cpu_model() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// The value of a `Name:   123 kB` line, in bytes.
fn kibibytes(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let value: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(value * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_figures_are_ordered() {
        let resident = resident_memory().unwrap();
        let peak = peak_memory().unwrap();
        let installed = Hardware::detect(&Device::default()).memory.unwrap();
        assert!(resident > 1 << 20 && peak >= resident / 2 && peak < installed);
    }
}
