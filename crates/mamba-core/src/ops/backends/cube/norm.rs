//! The normalisation on the kernels of `mamba_kernels`.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, FloatDType};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use mamba_kernels::rms_norm::{
    MAX_COLUMNS, NormGradients, NormInputs, rms_norm, rms_norm_backward,
};

use super::{empty_like, empty_of, launched, matrix, whole};
use crate::ops::extension::NormGrads;
use crate::ops::portable::{self, cast};

/// Whether the kernels hold as wide a row: wider ones take the portable path.
fn fits(gamma: &CubeTensor) -> bool {
    gamma.shape()[0] <= MAX_COLUMNS
}

fn inputs(x: &CubeTensor, gamma: &CubeTensor, epsilon: f64, dtype: DType) -> NormInputs {
    NormInputs {
        x: matrix(x.clone()),
        gamma: whole(gamma.clone()),
        epsilon: epsilon as f32,
        dtype: dtype_to_storage_type(dtype),
    }
}

pub(super) fn forward(
    x: CubeTensor,
    gamma: CubeTensor,
    epsilon: f64,
    out: FloatDType,
) -> CubeTensor {
    if fits(&gamma) {
        let y = empty_of(&x, x.shape(), out.into());
        let inputs = inputs(&x, &gamma, epsilon, y.dtype);
        if launched("rms_norm", rms_norm(&x.client, inputs, matrix(y.clone()))) {
            return y;
        }
    }
    cast::<CubeBackend>(
        portable::rms_norm::forward::<CubeBackend>(x, gamma, epsilon),
        out,
    )
}

pub(super) fn backward(
    x: CubeTensor,
    gamma: CubeTensor,
    epsilon: f64,
    grad_y: CubeTensor,
) -> NormGrads<CubeBackend> {
    if fits(&gamma) {
        let (grad_x, grad_gamma) = (empty_like(&x), empty_like(&gamma));
        let result = rms_norm_backward(
            &x.client,
            inputs(&x, &gamma, epsilon, grad_y.dtype),
            matrix(grad_y.clone()),
            NormGradients {
                x: matrix(grad_x.clone()),
                gamma: whole(grad_gamma.clone()),
            },
        );
        if launched("rms_norm backward", result) {
            return NormGrads {
                x: grad_x,
                gamma: grad_gamma,
            };
        }
    }
    let grad_y = cast::<CubeBackend>(grad_y, FloatDType::F32);
    portable::rms_norm::backward::<CubeBackend>(x, gamma, epsilon, grad_y)
}
