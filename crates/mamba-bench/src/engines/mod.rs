//! Who solves a problem: this project, and the peers that it is compared with.

#[cfg(feature = "flex")]
pub mod cpu_scan;
pub mod launches;
pub mod model;
pub mod model_peer;
pub mod op;
pub mod op_peer;
pub mod ours;
pub(crate) mod process;
pub mod pytorch;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Tensor, s};

/// Reads the last position of what a device computed, `[batch, length, channels]`. Waiting for a device does not tell that it
/// skipped the work, for want of memory, say; reading does.
///
/// # Errors
///
/// If it was not computed, or is no number.
pub(crate) fn read_some(output: Tensor<3>) -> Result<()> {
    let [batch, length, _] = output.dims();
    let last = output.slice(s![batch - 1, length - 1..]);
    let sum = last.cast(DType::F32).sum().try_into_scalar::<f32>();
    let sum = sum.context("the device did not compute it")?;
    ensure!(sum.is_finite(), "the device computed {sum}");
    Ok(())
}
