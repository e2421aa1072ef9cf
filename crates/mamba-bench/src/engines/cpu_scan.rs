//! The fused loops of the CPU, called as they are.

use anyhow::{Context, Result, ensure};
use mamba_core::ops::cpu::{Rows, selective_scan};

use crate::problems::{Scan, ScanData};

/// The fused selective scan of the CPU, without a tensor library around it.
#[derive(Debug)]
pub struct CpuScan {
    problem: Scan,
    data: ScanData,
}

impl CpuScan {
    /// Makes the problem's data.
    pub fn new(problem: Scan) -> Self {
        Self {
            problem,
            data: problem.data(),
        }
    }

    /// What it runs on.
    pub fn data(&self) -> &ScanData {
        &self.data
    }

    /// Output, final state and gradients, as a training step makes them.
    ///
    /// # Errors
    ///
    /// If the forward pass saves no checkpoints.
    pub fn run(&self) -> Result<(selective_scan::ScanOutputs, selective_scan::ScanGrads)> {
        let (data, inputs) = (&self.data, self.inputs());
        let outputs = selective_scan::forward(&inputs, true);
        let checkpoints = outputs.checkpoints.as_deref();
        let checkpoints = checkpoints.context("the scan saved no checkpoints")?;
        let gradients = selective_scan::backward(&inputs, checkpoints, &data.grad_y, None);
        ensure!(
            gradients.u.len() == data.u.len(),
            "the scan returned gradients of another size"
        );
        Ok((outputs, gradients))
    }

    fn inputs(&self) -> selective_scan::ScanInputs<'_> {
        let Scan {
            batch,
            seq_len,
            d_inner,
            d_state,
        } = self.problem;
        let data = &self.data;
        selective_scan::ScanInputs {
            dims: selective_scan::ScanDims {
                batch,
                seq_len,
                d_inner,
                d_state,
            },
            u: Rows::contiguous(&data.u, d_inner),
            delta: Rows::contiguous(&data.delta, d_inner),
            a: &data.a,
            b: Rows::contiguous(&data.b, d_state),
            c: Rows::contiguous(&data.c, d_state),
            d: Some(&data.d),
            z: Some(Rows::contiguous(&data.z, d_inner)),
            delta_bias: Some(&data.delta_bias),
            delta_softplus: true,
            initial_state: None,
            seq_idx: None,
        }
    }
}
