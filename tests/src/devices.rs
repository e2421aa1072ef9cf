//! The device under test.

use burn::tensor::Device;

/// The device named by `MAMBA_TEST_DEVICE`, by default the CPU backend `flex`.
///
/// # Panics
///
/// If the name is unknown to this build or the device does not start.
pub fn device() -> Device {
    let name = std::env::var("MAMBA_TEST_DEVICE").unwrap_or_else(|_| "flex".into());
    mamba_core::device::device(&name).unwrap_or_else(|error| panic!("MAMBA_TEST_DEVICE: {error}"))
}

/// Both ways to record a tape: keeping results, and recomputing the cheap ones.
pub fn autodiff_devices() -> [Device; 2] {
    [
        device().autodiff(),
        device().autodiff().gradient_checkpointing(),
    ]
}
