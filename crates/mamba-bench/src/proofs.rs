//! What has to hold before anything is timed.

use anyhow::{Result, ensure};
use burn::tensor::Device;
use mamba_kernels::oracle::{SelectiveScanInputs, selective_scan, selective_scan_backward};
use serde::Serialize;

use crate::engines::ours::{CpuScan, Forward, Training, tutorial_model, tutorial_weights};
use crate::engines::pytorch::{Peer, PeerModel, Precision};
use crate::problems::{Scan, Tutorial};

/// A comparison that passed.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    /// What was compared with what.
    pub claim: &'static str,
    /// Largest difference, relative to the largest value.
    pub error: f64,
    /// What the error had to stay below.
    pub tolerance: f64,
}

impl Proof {
    fn new(claim: &'static str, error: f64, tolerance: f64) -> Result<Self> {
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
const GRADIENTS: f64 = 1e-4;

/// Steps that training is compared over.
const STEPS: usize = 4;

/// Our tutorial model against PyTorch's in f64, and PyTorch's transformer against itself with
/// attention written out. Leaves small models in the peer.
///
/// # Errors
///
/// If one does not hold, or the peer or the device fails.
pub fn tutorial(peer: &mut Peer, device: &Device) -> Result<Vec<Proof>> {
    let problem = Tutorial::small();
    let model = tutorial_model(&problem, device);
    peer.load_mamba(&tutorial_weights(&model)?, Precision::Double)?;
    peer.load_transformer(&problem)?;
    peer.set_tokens(&problem)?;

    let hidden = Forward::new(&model, &problem, device).run()?.into_data();
    let hidden: Vec<f64> = hidden.iter().collect();
    let error = relative_error(&hidden, &peer.hidden(PeerModel::Mamba)?)?;
    let forward = Proof::new("our backbone equals PyTorch's in f64", error, VALUES)?;

    let mut training = Training::new(model, &problem, device);
    let mut losses = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        let (next, loss) = training.step()?;
        training = next;
        losses.push(f64::from(loss));
    }
    let error = relative_error(&losses, &peer.train(PeerModel::Mamba, STEPS)?.losses)?;
    let training = Proof::new(
        "our losses over four steps equal PyTorch's in f64",
        error,
        VALUES,
    )?;

    let error = peer.attention_error()?;
    let attention = Proof::new(
        "the SDPA transformer equals its plain attention",
        error,
        VALUES,
    )?;
    Ok(vec![forward, training, attention])
}

/// Our scan's output and gradients against the f64 oracle.
///
/// # Errors
///
/// If one does not hold.
pub fn scan() -> Result<Vec<Proof>> {
    let problem = Scan::SMALL;
    let ours = CpuScan::new(problem);
    let (outputs, gradients) = ours.run()?;
    let data = ours.data();
    let [u, delta, a, b, c] = [&data.u, &data.delta, &data.a, &data.b, &data.c].map(|v| wide(v));
    let [d, z, bias] = [&data.d, &data.z, &data.delta_bias].map(|v| wide(v));
    let inputs = SelectiveScanInputs {
        batch: problem.batch,
        seq_len: problem.seq_len,
        d_inner: problem.d_inner,
        d_state: problem.d_state,
        u: &u,
        delta: &delta,
        a: &a,
        b: &b,
        c: &c,
        d: Some(&d),
        z: Some(&z),
        delta_bias: Some(&bias),
        initial_state: None,
        seq_idx: None,
        delta_softplus: true,
    };
    let expected = selective_scan(&inputs);
    let error = relative_error(&wide(&outputs.y), &expected.y)?;
    let forward = Proof::new("the scan's output equals the f64 oracle's", error, VALUES)?;

    let expected = selective_scan_backward(&inputs, &wide(&data.grad_y), None);
    let absent = Vec::new;
    let pairs = [
        (gradients.u, expected.u),
        (gradients.delta, expected.delta),
        (gradients.a, expected.a),
        (gradients.b, expected.b),
        (gradients.c, expected.c),
        (
            gradients.d.unwrap_or_default(),
            expected.d.unwrap_or_else(absent),
        ),
        (
            gradients.z.unwrap_or_default(),
            expected.z.unwrap_or_else(absent),
        ),
        (
            gradients.delta_bias.unwrap_or_default(),
            expected.delta_bias.unwrap_or_else(absent),
        ),
    ];
    let mut error = 0.0f64;
    for (ours, expected) in &pairs {
        error = error.max(relative_error(&wide(ours), expected)?);
    }
    let backward = Proof::new(
        "the scan's gradients equal the f64 oracle's",
        error,
        GRADIENTS,
    )?;
    Ok(vec![forward, backward])
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
    fn the_scan_passes_its_proofs() {
        assert_eq!(scan().unwrap().len(), 2);
    }

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
