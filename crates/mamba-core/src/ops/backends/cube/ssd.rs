//! The recurrence of Mamba-2 on a CubeCL device.

use burn::tensor::FloatDType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use crate::ops::extension::{OptionalFloat, SsdGrads, SsdInputs, SsdOutputs};
use crate::ops::portable::{self, cast};

/// The portable bodies compute in f32.
fn single(inputs: SsdInputs<CubeBackend>) -> SsdInputs<CubeBackend> {
    let single = |tensor| cast::<CubeBackend>(tensor, FloatDType::F32);
    SsdInputs {
        x: single(inputs.x),
        dt: single(inputs.dt),
        b: single(inputs.b),
        c: single(inputs.c),
        ..inputs
    }
}

pub(super) fn forward(
    inputs: SsdInputs<CubeBackend>,
    save_checkpoints: bool,
) -> SsdOutputs<CubeBackend> {
    let dtype = inputs.x.dtype.into();
    let outputs = portable::ssd::forward::<CubeBackend>(single(inputs), save_checkpoints);
    SsdOutputs {
        y: cast::<CubeBackend>(outputs.y, dtype),
        ..outputs
    }
}

pub(super) fn backward(
    inputs: SsdInputs<CubeBackend>,
    checkpoints: CubeTensor,
    grad_y: CubeTensor,
    grad_final_state: OptionalFloat<CubeBackend>,
) -> SsdGrads<CubeBackend> {
    let dtype = inputs.x.dtype.into();
    let grads = portable::ssd::backward::<CubeBackend>(
        single(inputs),
        checkpoints,
        cast::<CubeBackend>(grad_y, FloatDType::F32),
        grad_final_state,
    );
    SsdGrads {
        x: cast::<CubeBackend>(grads.x, dtype),
        dt: cast::<CubeBackend>(grads.dt, dtype),
        b: cast::<CubeBackend>(grads.b, dtype),
        c: cast::<CubeBackend>(grads.c, dtype),
        ..grads
    }
}
