//! The gated normalisation on the kernels of `mamba_kernels`.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::FloatDType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use mamba_kernels::gated_rms_norm::{
    self, GatedNormGradients, MAX_GROUP, gated_rms_norm, gated_rms_norm_backward,
};

use super::{empty_like, launched, rows, whole};
use crate::ops::extension::{GatedNormGrads, GatedNormInputs};
use crate::ops::portable::{self, cast};

/// Whether the kernels hold as wide a group: wider ones take the portable path.
fn fits(inputs: &GatedNormInputs<CubeBackend>) -> bool {
    inputs.options.group_size <= MAX_GROUP
}

fn bindings(inputs: &GatedNormInputs<CubeBackend>) -> gated_rms_norm::GatedNormInputs {
    gated_rms_norm::GatedNormInputs {
        x: rows(inputs.x.clone()),
        z: rows(inputs.z.clone()),
        gamma: whole(inputs.gamma.clone()),
        group_size: inputs.options.group_size,
        epsilon: inputs.options.epsilon as f32,
        norm_before_gate: inputs.options.norm_before_gate,
        dtype: dtype_to_storage_type(inputs.x.dtype),
    }
}

/// The portable bodies compute in f32.
fn single(inputs: GatedNormInputs<CubeBackend>) -> GatedNormInputs<CubeBackend> {
    GatedNormInputs {
        x: cast::<CubeBackend>(inputs.x, FloatDType::F32),
        z: cast::<CubeBackend>(inputs.z, FloatDType::F32),
        ..inputs
    }
}

pub(super) fn forward(inputs: GatedNormInputs<CubeBackend>) -> CubeTensor {
    if fits(&inputs) {
        let y = empty_like(&inputs.x);
        let result = gated_rms_norm(&inputs.x.client, bindings(&inputs), y.clone().binding());
        if launched("gated_rms_norm", result) {
            return y;
        }
    }
    let dtype = inputs.x.dtype.into();
    cast::<CubeBackend>(
        portable::gated_rms_norm::forward::<CubeBackend>(single(inputs)),
        dtype,
    )
}

pub(super) fn backward(
    inputs: GatedNormInputs<CubeBackend>,
    grad_y: CubeTensor,
) -> GatedNormGrads<CubeBackend> {
    if fits(&inputs) {
        let [x, z, gamma] = [&inputs.x, &inputs.z, &inputs.gamma].map(empty_like);
        let result = gated_rms_norm_backward(
            &inputs.x.client,
            bindings(&inputs),
            rows(grad_y.clone()),
            GatedNormGradients {
                x: x.clone().binding(),
                z: z.clone().binding(),
                gamma: gamma.clone().binding(),
            },
        );
        if launched("gated_rms_norm backward", result) {
            return GatedNormGrads { x, z, gamma };
        }
    }
    let dtype = inputs.x.dtype.into();
    let grad_y = cast::<CubeBackend>(grad_y, FloatDType::F32);
    let grads = portable::gated_rms_norm::backward::<CubeBackend>(single(inputs), grad_y);
    GatedNormGrads {
        x: cast::<CubeBackend>(grads.x, dtype),
        z: cast::<CubeBackend>(grads.z, dtype),
        gamma: grads.gamma,
    }
}
