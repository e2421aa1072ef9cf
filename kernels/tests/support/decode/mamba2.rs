//! What a layer of Mamba-2 has of its own.

use mamba_kernels::decode::{GatedNormWeights, Mamba2Weights};
use mamba_kernels::oracle::{GatedRmsNormInputs, SsdInputs, gated_rms_norm, silu, ssd};

use super::{Case, Draw, Heads, Upload, columns, double};

/// Unlike that of the other norms.
const EPSILON: f32 = 2e-2;

pub struct Numbers {
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
    gamma: Vec<f32>,
}

impl Numbers {
    pub fn new(case: &Case, draw: &mut Draw) -> Self {
        let factors = match case.heads.skips_channels {
            true => case.d_inner,
            false => case.nheads(),
        };
        Self {
            dt_bias: draw.next(case.nheads(), -4.0, 0.0),
            a: draw.next(case.nheads(), -4.0, -0.1),
            d: draw.next(factors, -1.0, 1.0),
            gamma: draw.next(case.d_inner, 0.5, 1.5),
        }
    }

    pub fn weights(&self, case: &Case, upload: &Upload) -> Mamba2Weights {
        let norm = |norm_before_gate| GatedNormWeights {
            gamma: upload.vector(&self.gamma),
            epsilon: EPSILON,
            norm_before_gate,
        };
        Mamba2Weights {
            headdim: case.heads.headdim,
            ngroups: case.heads.ngroups,
            dt_bias: case.biases.then(|| upload.vector(&self.dt_bias)),
            dt_limit: case.heads.dt_limit,
            a: upload.vector(&self.a),
            d: upload.vector(&self.d),
            norm: case.heads.norm_before_gate.map(norm),
        }
    }

    /// What the output projection reads, and the state behind it. `u` is what left the convolution.
    pub fn mix(
        &self,
        case: &Case,
        state: &[f64],
        u: &[f64],
        dt: &[f64],
        z: &[f64],
    ) -> (Vec<f64>, Vec<f64>) {
        let (batch, d_inner) = (case.batch, case.d_inner);
        let Heads {
            headdim,
            ngroups,
            d_state,
            norm_before_gate,
            dt_limit: (least, most),
            ..
        } = case.heads;
        let (width, wide) = (ngroups * d_state, u.len() / batch);
        let scan = ssd(&SsdInputs {
            batch,
            seq_len: 1,
            nheads: case.nheads(),
            headdim,
            ngroups,
            d_state,
            x: &columns(u, wide, 0..d_inner),
            dt,
            a: &double(&self.a),
            b: &columns(u, wide, d_inner..d_inner + width),
            c: &columns(u, wide, d_inner + width..wide),
            d: Some(&double(&self.d)),
            dt_bias: case.biases.then(|| double(&self.dt_bias)).as_deref(),
            initial_state: Some(state),
            seq_idx: None,
            dt_softplus: true,
            dt_limit: (least.into(), most.into()),
        });
        let y = match norm_before_gate {
            Some(norm_before_gate) => gated_rms_norm(&GatedRmsNormInputs {
                rows: batch,
                columns: d_inner,
                group_size: d_inner / ngroups,
                x: &scan.y,
                z,
                gamma: &double(&self.gamma),
                epsilon: EPSILON.into(),
                norm_before_gate,
            }),
            None => {
                let gated = scan.y.iter().zip(z);
                gated.map(|(y, z)| y * silu(*z)).collect()
            }
        };
        (y, scan.final_state)
    }
}
