//! What a layer of Mamba-1 has of its own.

use mamba_kernels::decode::Mamba1Weights;
use mamba_kernels::oracle::{SelectiveScanInputs, selective_scan};

use super::{Case, Draw, Upload, columns, double, times};

pub struct Numbers {
    x_proj: Vec<f32>,
    dt_proj: Vec<f32>,
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
}

impl Numbers {
    pub fn new(case: &Case, draw: &mut Draw) -> Self {
        let Case {
            d_inner,
            d_state,
            dt_rank,
            ..
        } = *case;
        Self {
            x_proj: draw.matrix(d_inner, dt_rank + 2 * d_state),
            dt_proj: draw.matrix(dt_rank, d_inner),
            dt_bias: draw.next(d_inner, -4.0, 0.0),
            a: draw.next(d_inner * d_state, -4.0, -0.1),
            d: draw.next(d_inner, -1.0, 1.0),
        }
    }

    pub fn weights(&self, case: &Case, upload: &Upload) -> Mamba1Weights {
        let projected = case.dt_rank + 2 * case.d_state;
        Mamba1Weights {
            x_proj: upload.whole(&self.x_proj, &[case.d_inner, projected]),
            dt_proj: upload.whole(&self.dt_proj, &[case.dt_rank, case.d_inner]),
            dt_bias: case.biases.then(|| upload.vector(&self.dt_bias)),
            a: upload.whole(&self.a, &[case.d_inner, case.d_state]),
            d: upload.vector(&self.d),
        }
    }

    /// What the output projection reads, and the state behind it.
    pub fn mix(&self, case: &Case, state: &[f64], u: &[f64], z: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let Case {
            batch,
            d_inner,
            d_state,
            dt_rank,
            ..
        } = *case;
        let wide = dt_rank + 2 * d_state;
        let projected = times(u, &self.x_proj, d_inner, None);
        let low = columns(&projected, wide, 0..dt_rank);
        let scan = selective_scan(&SelectiveScanInputs {
            batch,
            seq_len: 1,
            d_inner,
            d_state,
            u,
            delta: &times(&low, &self.dt_proj, dt_rank, None),
            a: &double(&self.a),
            b: &columns(&projected, wide, dt_rank..dt_rank + d_state),
            c: &columns(&projected, wide, dt_rank + d_state..wide),
            d: Some(&double(&self.d)),
            z: Some(z),
            delta_bias: case.biases.then(|| double(&self.dt_bias)).as_deref(),
            initial_state: Some(state),
            seq_idx: None,
            delta_softplus: true,
        });
        (scan.y, scan.final_state)
    }
}
