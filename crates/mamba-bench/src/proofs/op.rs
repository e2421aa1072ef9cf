use anyhow::Result;
use burn::tensor::{DType, Device};
use mamba_core::Precision;
use mamba_kernels::oracle::{
    CausalConv1dInputs, SelectiveScanInputs, SsdInputs, causal_conv1d, selective_scan, ssd,
};

use super::{Proof, relative_error, tolerance, wide};
use crate::engines::op::OpEngine;
use crate::problems::{Conv, Heads, Op, Scan, Ssd};

/// An operation at its smallest size on a device, against loops of the host in f64.
///
/// # Errors
///
/// If it does not hold, or the device fails.
pub fn op(op: &Op, precision: Precision, name: &str, device: &Device) -> Result<Proof> {
    let tiny = op.tiny();
    let ours = OpEngine::new(&tiny, precision, device).run()?;
    let ours: Vec<f64> = ours.cast(DType::F32).into_data().iter().collect();
    let error = relative_error(&ours, &expected(&tiny))?;
    let claim = format!("{} on {name} equals loops in f64", op.name());
    Proof::new(claim, error, tolerance(name, precision))
}

/// An operation by `engine` of a peer, small: its output on our inputs, `theirs`, against loops of the host in f64.
///
/// # Errors
///
/// If it does not hold.
pub fn op_peer(
    op: &Op,
    engine: &str,
    theirs: &[f64],
    precision: Precision,
    name: &str,
) -> Result<Proof> {
    let error = relative_error(theirs, &expected(op))?;
    let claim = format!("{} by {engine} equals loops in f64", op.name());
    Proof::new(claim, error, tolerance(name, precision))
}

fn expected(op: &Op) -> Vec<f64> {
    match op {
        Op::Scan(problem) => expected_scan(problem),
        Op::Ssd(problem) => expected_ssd(problem),
        Op::Conv(problem) => expected_conv(problem),
        Op::Attention(problem) => expected_attention(problem),
    }
}

fn expected_scan(problem: &Scan) -> Vec<f64> {
    let data = problem.data();
    let [u, delta, a, b, c] = [&data.u, &data.delta, &data.a, &data.b, &data.c].map(|v| wide(v));
    let [d, z, bias] = [&data.d, &data.z, &data.delta_bias].map(|v| wide(v));
    let state = (problem.seq_len == 1).then(|| wide(&problem.state()));
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
        initial_state: state.as_deref(),
        seq_idx: None,
        delta_softplus: true,
    };
    selective_scan(&inputs).y
}

fn expected_ssd(problem: &Ssd) -> Vec<f64> {
    let data = problem.data();
    let [x, dt, a, b, c] = [&data.x, &data.dt, &data.a, &data.b, &data.c].map(|v| wide(v));
    let [d, bias] = [&data.d, &data.dt_bias].map(|v| wide(v));
    let state = data.initial_state.as_deref().map(wide);
    let inputs = SsdInputs {
        batch: problem.batch,
        seq_len: problem.seq_len,
        nheads: problem.nheads,
        headdim: problem.headdim,
        ngroups: 1,
        d_state: problem.d_state,
        x: &x,
        dt: &dt,
        a: &a,
        b: &b,
        c: &c,
        d: Some(&d),
        dt_bias: Some(&bias),
        initial_state: state.as_deref(),
        seq_idx: None,
        dt_softplus: true,
        dt_limit: (0.0, f64::INFINITY),
    };
    ssd(&inputs).y
}

fn expected_conv(problem: &Conv) -> Vec<f64> {
    let [x, weight, bias] = problem.data().map(|values| wide(&values));
    let inputs = CausalConv1dInputs {
        batch: problem.batch,
        seq_len: problem.seq_len,
        channels: problem.channels,
        width: problem.width,
        x: &x,
        weight: &weight,
        bias: Some(&bias),
        initial_state: None,
        seq_idx: None,
        activation: true,
    };
    causal_conv1d(&inputs).y
}

/// Softmax over the scores of the keys up to each query's own, written out.
fn expected_attention(problem: &Heads) -> Vec<f64> {
    let Heads {
        batch,
        seq_len,
        num_heads,
        head_dim,
    } = *problem;
    let [query, key, value] = problem.data().map(|values| wide(&values));
    let mut output = vec![0.0; batch * seq_len * num_heads * head_dim];
    for sequence in 0..batch {
        for head in 0..num_heads {
            let row = |t: usize| {
                let start = ((sequence * num_heads + head) * seq_len + t) * head_dim;
                start..start + head_dim
            };
            for t in 0..seq_len {
                let dot = |s: usize| {
                    query[row(t)]
                        .iter()
                        .zip(&key[row(s)])
                        .map(|(q, k)| q * k)
                        .sum::<f64>()
                };
                let weights: Vec<f64> = (0..=t)
                    .map(|s| (dot(s) / (head_dim as f64).sqrt()).exp())
                    .collect();
                let total: f64 = weights.iter().sum();
                let place = ((sequence * seq_len + t) * num_heads + head) * head_dim;
                for (s, weight) in weights.iter().enumerate() {
                    for (sum, value) in output[place..place + head_dim]
                        .iter_mut()
                        .zip(&value[row(s)])
                    {
                        *sum += weight / total * value;
                    }
                }
            }
        }
    }
    output
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_catalogue_passes() {
        for problem in Op::all(1, 64) {
            op(&problem, Precision::F32, "flex", &Device::flex()).unwrap();
        }
    }
}
