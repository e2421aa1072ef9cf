//! How many kernels a layer launches, counted in CubeCL's own log of a process that runs it: through wgpu, since
//! devices differ in the slices that they can read in place.
#![recursion_limit = "256"]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use mamba_core::{Block, LanguageModelConfig, Mamba1Config};
use mamba_tests::devices::device;

/// Names the log to the process that runs the layer; the one that counts has none.
const LAYER: &str = "MAMBA_TEST_LAUNCHES";

/// In the log, the kernel that stands between what is counted.
const MARK: &str = "FlipKernel";

/// How many of them there are.
const MARKS: usize = 3;

/// A thread of CubeCL's writes the log, which nothing waits for when the process ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// Norm, four products, convolution, recurrence, residual; `-exp(A_log)` in two; copies of the three columns of `x_proj`.
const FORWARD: usize = 13;

/// With the gradients of the input and all parameters, and the sum that stands for a loss. Seven of them put gradients of
/// slices together, three cut the product of the longest inner axis.
const WITH_BACKWARD: usize = 51;

/// Sizes at which the gate can be read in place wherever wgpu runs, and `B` and `C` nowhere.
fn block(device: &Device) -> Block {
    let config = LanguageModelConfig::new()
        .with_vocab_size(8)
        .with_d_model(32)
        .with_mamba1(Mamba1Config::new(0).with_d_state(4).with_dt_rank(3));
    let model = config.init(device);
    model.layers.into_iter().next().expect("one layer")
}

/// Everything before it is launched before it, and everything behind it behind.
fn mark(device: &Device) {
    let _ = Tensor::<1>::zeros([7], device).flip([0]).into_data();
}

/// The process that is counted. By itself it does nothing.
#[test]
fn layer() {
    let Some(log) = std::env::var_os(LAYER) else {
        return;
    };
    let device = device();
    let plain = block(&device);
    let tracked = block(&device.clone().autodiff());
    let shape = [1, 8, 32];
    let x = Tensor::<3>::random(shape, Distribution::Default, &device);
    let forward = || {
        let y = plain.forward_sequence(x.clone(), None);
        let _ = y.into_data();
    };
    let tracked_x = Tensor::<3>::random(shape, Distribution::Default, &device.clone().autodiff());
    let both = || {
        let x = tracked_x.clone().require_grad();
        let y = tracked.forward_sequence(x.clone(), None);
        let grads = y.sum().backward();
        let _ = x.grad(&grads).expect("the input has one").into_data();
    };
    forward();
    both();
    mark(&device);
    forward();
    mark(&device);
    both();
    mark(&device);

    let start = Instant::now();
    while marks(log.as_ref()) < MARKS {
        assert!(start.elapsed() < PATIENCE, "the log lacks marks");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many marks the log holds by now.
fn marks(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .filter_map(launch)
        .filter(|name| name.contains(MARK))
        .count()
}

#[test]
fn a_layer_launches_as_many_kernels_as_its_arithmetic_asks_for() {
    let name = std::env::var("MAMBA_TEST_DEVICE").unwrap_or_else(|_| "flex".into());
    if !name.starts_with("wgpu") || std::env::var_os(LAYER).is_some() {
        println!("not tested: MAMBA_TEST_DEVICE is {name}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("launches.log");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "layer"])
        .env(LAYER, &log)
        .env("BURN_FUSION_MAX_EXPLORATIONS", "0")
        .env("CUBECL_DEBUG_OPTION", "profile")
        .env("CUBECL_DEBUG_LOG", &log)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = std::fs::read_to_string(&log).unwrap();

    let launches: Vec<&str> = text.lines().filter_map(launch).collect();
    let parts: Vec<&[&str]> = launches.split(|name| name.contains(MARK)).collect();
    assert_eq!(parts.len(), MARKS + 1, "marks: {launches:#?}");
    // What makes the next mark's tensor.
    let [forward, both] = [parts[1], parts[2]].map(|part| &part[..part.len() - 1]);
    assert_eq!(forward.len(), FORWARD, "forward: {forward:#?}");
    assert_eq!(both.len(), WITH_BACKWARD, "with backward: {both:#?}");
}

/// The kernel of a line that reports a launch: `| 56.9µs | Name`, or `| not measured | Name`.
fn launch(line: &str) -> Option<&str> {
    let (time, name) = line.strip_prefix("| ")?.split_once(" | ")?;
    let unit = time
        .trim_end()
        .trim_start_matches(|it: char| it.is_ascii_digit() || it == '.');
    let name = name.split(" | ").next()?;
    ["ns", "µs", "ms", "s", "not measured"]
        .contains(&unit)
        .then(|| name.trim())
}
