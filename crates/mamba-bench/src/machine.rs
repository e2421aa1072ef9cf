//! Where and from what a number was made.

use std::fs;
use std::process::Command;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The machine and the sources behind a run's numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Main memory in GiB, where the system tells.
    pub memory_gib: Option<u64>,
    /// The widest instruction set that the kernels use here.
    pub simd: String,
    /// Threads that every engine was given.
    pub threads: usize,
    /// Git revision of the working directory, `-dirty` if files differ from it.
    pub revision: Option<String>,
    /// Date and time of the start, UTC.
    pub date: Option<String>,
    /// The command line.
    pub command: String,
    /// Processes that wanted to run in the last minute, on average, where the system tells.
    #[serde(default)]
    pub load: Option<f64>,
    /// Variables that steer the allocators and thread pools of all engines, as `NAME=value`.
    pub environment: Vec<String>,
}

impl Provenance {
    /// Looks around.
    pub fn collect(threads: usize) -> Self {
        let memory = proc_field("/proc/meminfo", "MemTotal").and_then(kibibytes);
        Self {
            cpu: proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory.map(|bytes| bytes >> 30),
            simd: simd().into(),
            threads,
            revision: revision(),
            date: output_of("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            load: load(),
            environment: environment(),
        }
    }
}

/// The git revision of the folder that this program was built from, `-dirty` where it has changes; none where that folder
/// is gone.
fn revision() -> Option<String> {
    let folder = env!("CARGO_MANIFEST_DIR");
    let describe = [
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ];
    output_of("git", &[&["-C", folder], &describe[..]].concat())
}

fn load() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn environment() -> Vec<String> {
    const PREFIXES: [&str; 5] = ["MALLOC_", "GLIBC_", "RAYON_", "OMP_", "MKL_"];
    let mut variables: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    variables.sort();
    variables
}

fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    "baseline"
}

/// The largest resident size of this process so far, in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    proc_field("/proc/self/status", "VmHWM").and_then(kibibytes)
}

/// The size of this process that is in memory, in bytes, where the system tells.
pub fn resident_memory() -> Option<u64> {
    proc_field("/proc/self/status", "VmRSS").and_then(kibibytes)
}

/// Lets [`peak_memory`] count from here; whether the system could.
pub fn forget_peak() -> bool {
    // 5 is the kernel's code for this, see proc(5).
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Memory of an NVIDIA GPU that is taken, by whomever, in bytes, where its tool tells.
pub fn gpu_memory(index: &str) -> Option<u64> {
    let query = [
        "--query-gpu=memory.used",
        "--format=csv,noheader,nounits",
        "-i",
        index,
    ];
    let mebibytes: u64 = output_of("nvidia-smi", &query)?.parse().ok()?;
    Some(mebibytes << 20)
}

/// All memory of an NVIDIA GPU, in bytes, where its tool tells.
pub fn gpu_total_memory(index: &str) -> Option<u64> {
    let query = [
        "--query-gpu=memory.total",
        "--format=csv,noheader,nounits",
        "-i",
        index,
    ];
    let mebibytes: u64 = output_of("nvidia-smi", &query)?.parse().ok()?;
    Some(mebibytes << 20)
}

/// Memory that could be taken without swapping, in bytes, where the system tells.
pub fn available_memory() -> Option<u64> {
    proc_field("/proc/meminfo", "MemAvailable").and_then(kibibytes)
}

/// The value of the first line `name : value`.
fn proc_field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

fn kibibytes(value: String) -> Option<u64> {
    value
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()
        .map(|size| size * 1024)
}

pub(crate) fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Watches how busy processes other than this one and its peers keep the machine.
#[derive(Debug)]
pub struct Load<'a> {
    peers: &'a [u32],
    others: u64,
    start: Instant,
}

impl<'a> Load<'a> {
    /// Starts to watch, where the system has `/proc`. `peers` are processes that work for this one.
    pub fn start(peers: &'a [u32]) -> Option<Self> {
        Some(Self {
            peers,
            others: other_ticks(peers)?,
            start: Instant::now(),
        })
    }

    /// Cores that others kept busy since the start.
    pub fn others(self) -> Option<f64> {
        /// Linux counts processor time for `/proc` in hundredths of a second everywhere.
        const TICKS_A_SECOND: f64 = 100.0;
        let ticks = other_ticks(self.peers)?.saturating_sub(self.others);
        Some(ticks as f64 / TICKS_A_SECOND / self.start.elapsed().as_secs_f64())
    }
}

fn other_ticks(peers: &[u32]) -> Option<u64> {
    let own = process_ticks("self")?;
    let peers = peers.iter().map(|id| process_ticks(&id.to_string()));
    busy_ticks()?.checked_sub(own + peers.sum::<Option<u64>>()?)
}

/// All processes, from the line `cpu user nice system idle iowait irq softirq ..`.
fn busy_ticks() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields = text.lines().next()?.split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

/// Fields 14 and 15 of `/proc/<id>/stat`, counted behind the parenthesised name.
fn process_ticks(id: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(ticks()? + ticks()?)
}

/// The peak is that of the whole process: tests that read it or let it be forgotten do so one at a time.
#[cfg(all(test, target_os = "linux"))]
pub(crate) mod testing {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static PEAK: Mutex<()> = Mutex::new(());

    /// Has the peak to itself until it is dropped.
    pub fn peak_alone() -> MutexGuard<'static, ()> {
        PEAK.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::testing::peak_alone;
    use super::*;

    /// Linux counts pages for each core apart, and adds what it has not added up yet later.
    const UNCOUNTED: u64 = 8 << 20;

    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let _alone = peak_alone();
        let before = peak_memory().unwrap();
        let touched = vec![1u8; 64 << 20];
        assert!(touched.iter().map(|&byte| u64::from(byte)).sum::<u64>() == 64 << 20);
        assert!(peak_memory().unwrap() + UNCOUNTED >= before.max(64 << 20));
    }

    #[test]
    fn a_forgotten_peak_is_no_higher_than_what_is_held() {
        let _alone = peak_alone();
        let touched = vec![1u8; 256 << 20];
        assert!(touched.iter().all(|&byte| byte == 1));
        drop(touched);
        // Other tests take and return memory between the readings, now and then.
        let forgotten = || {
            let could = forget_peak();
            !could || peak_memory().unwrap() < resident_memory().unwrap() + (128 << 20)
        };
        assert!((0..50).any(|_| forgotten()));
    }
}
