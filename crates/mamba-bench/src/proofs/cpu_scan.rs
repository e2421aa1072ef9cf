use anyhow::Result;
use mamba_kernels::oracle::{SelectiveScanInputs, selective_scan, selective_scan_backward};

use super::{GRADIENTS, Proof, VALUES, relative_error, wide};
use crate::engines::cpu_scan::CpuScan;
use crate::problems::Scan;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scan_passes_its_proofs() {
        assert_eq!(scan().unwrap().len(), 2);
    }
}
