//! What has to hold before anything is timed.

#[cfg(feature = "flex")]
mod cpu_scan;
mod model;
mod op;
mod tutorial;

use anyhow::{Result, ensure};
use mamba_core::Precision;
use serde::{Deserialize, Serialize};

use crate::results::is_cpu;

#[cfg(feature = "flex")]
pub use cpu_scan::scan;
pub use model::{gradients, model, peer};
pub use op::{op, op_peer};
pub use tutorial::tutorial;

/// A comparison that passed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// What was compared with what.
    pub claim: String,
    /// Largest difference, relative to the largest value.
    pub error: f64,
    /// What the error had to stay below.
    pub tolerance: f64,
}

impl Proof {
    fn new(claim: impl Into<String>, error: f64, tolerance: f64) -> Result<Self> {
        let claim = claim.into();
        ensure!(
            error < tolerance,
            "{claim}: they differ by {error:.1e} of the largest value, at most {tolerance:.0e} is \
             allowed; nothing was timed"
        );
        Ok(Self {
            claim,
            error,
            tolerance,
        })
    }
}

/// f32 with sums over a few dozen terms, against f64.
const VALUES: f64 = 1e-5;

/// Gradients of parameters sum over all positions.
#[cfg(feature = "flex")]
const GRADIENTS: f64 = 1e-4;

/// How far values may be off on a device.
fn tolerance(device: &str, precision: Precision) -> f64 {
    match (precision, is_cpu(device)) {
        // Eight bits of mantissa, through a few layers.
        (Precision::Bf16, _) => 5e-2,
        (Precision::F32, true) => 2e-5,
        // Burn's attention on CUDA multiplies in TF32, which has eleven bits.
        (Precision::F32, false) => 2e-3,
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// The largest difference over the largest expected value; infinite where ours is no number.
fn relative_error(ours: &[f64], expected: &[f64]) -> Result<f64> {
    ensure!(
        ours.len() == expected.len() && !ours.is_empty(),
        "expected {} values to compare, got {}",
        expected.len(),
        ours.len()
    );
    let largest = expected
        .iter()
        .fold(0.0f64, |max, value| max.max(value.abs()));
    let difference = |(a, b): (&f64, &f64)| {
        let difference = (a - b).abs();
        if difference.is_nan() {
            f64::INFINITY
        } else {
            difference
        }
    };
    Ok(ours
        .iter()
        .zip(expected)
        .map(difference)
        .fold(0.0, f64::max)
        / largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_or_a_missing_value_is_no_proof() {
        assert_eq!(
            relative_error(&[f64::NAN, 1.0], &[1.0, 1.0]).unwrap(),
            f64::INFINITY
        );
        assert!(relative_error(&[], &[]).is_err());
        assert!(Proof::new("nothing", f64::INFINITY, VALUES).is_err());
    }
}
