//! The recurrence of Mamba-2 on the kernels of `mamba_kernels`.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::FloatDType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::prelude::TensorBinding;
use burn_cubecl::tensor::CubeTensor;
use mamba_kernels::ssd::{self, ssd, ssd_backward};

use super::{
    empty, empty_like, indices, launched, optional, optional_binding, optional_like, rows, whole,
};

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

/// Sizes as the kernels see them.
struct Sizes {
    batch: usize,
    seq_len: usize,
    nheads: usize,
    headdim: usize,
    ngroups: usize,
    d_state: usize,
    chunk_size: usize,
}

impl Sizes {
    fn of(inputs: &SsdInputs<CubeBackend>) -> Self {
        let [batch, seq_len, d_ssm] = inputs.x.shape().dims();
        let [nheads] = inputs.a.shape().dims();
        let [_, _, columns] = inputs.b.shape().dims();
        let ngroups = inputs.options.ngroups;
        Self {
            batch,
            seq_len,
            nheads,
            headdim: d_ssm / nheads,
            ngroups,
            d_state: columns / ngroups,
            chunk_size: inputs.options.chunk_size,
        }
    }

    /// Heads and their channels as axes of their own.
    fn sequence(&self, tensor: TensorBinding) -> TensorBinding {
        with_heads(tensor, self.nheads, self.headdim)
    }

    fn projection(&self, tensor: TensorBinding) -> TensorBinding {
        with_heads(tensor, self.ngroups, self.d_state)
    }

    fn bindings(&self, inputs: &SsdInputs<CubeBackend>) -> ssd::SsdInputs {
        let (seq_idx, index_dtype) = indices(&inputs.seq_idx);
        let (least, most) = inputs.options.dt_limit;
        ssd::SsdInputs {
            x: self.sequence(rows(inputs.x.clone())),
            dt: rows(inputs.dt.clone()),
            a: whole(inputs.a.clone()),
            b: self.projection(rows(inputs.b.clone())),
            c: self.projection(rows(inputs.c.clone())),
            d: optional(&inputs.d, whole),
            dt_bias: optional(&inputs.dt_bias, whole),
            initial_state: optional(&inputs.initial_state, whole),
            seq_idx,
            dt_softplus: inputs.options.dt_softplus,
            dt_limit: (least as f32, most as f32),
            chunk_size: self.chunk_size,
            dtype: dtype_to_storage_type(inputs.x.dtype),
            index_dtype,
        }
    }
}

/// `[batch, seq_len, heads * width]` as `[batch, seq_len, heads, width]`, where it lies.
fn with_heads(mut tensor: TensorBinding, heads: usize, width: usize) -> TensorBinding {
    let (shape, strides) = (tensor.shape.clone(), tensor.strides.clone());
    tensor.shape = [shape[0], shape[1], heads, width].into();
    tensor.strides = [strides[0], strides[1], width, 1].into_iter().collect();
    tensor
}

pub(super) fn forward(
    inputs: SsdInputs<CubeBackend>,
    save_checkpoints: bool,
) -> SsdOutputs<CubeBackend> {
    let sizes = Sizes::of(&inputs);
    let Sizes {
        batch,
        seq_len,
        nheads,
        headdim,
        d_state,
        ..
    } = sizes;
    let chunks = seq_len.div_ceil(sizes.chunk_size);
    let saved = [batch, chunks, nheads, headdim, d_state];
    let y = empty_like(&inputs.x);
    let final_state = empty(&inputs.x, [batch, nheads, headdim, d_state].into());
    let checkpoints = save_checkpoints.then(|| empty(&inputs.x, saved.into()));
    let outputs = ssd::SsdOutputs {
        y: sizes.sequence(y.clone().binding()),
        final_state: final_state.clone().binding(),
        checkpoints: optional_binding(&checkpoints),
    };
    let result = ssd(&inputs.x.client, sizes.bindings(&inputs), outputs);
    if launched("ssd", result) {
        return SsdOutputs {
            y,
            final_state,
            checkpoints: checkpoints.into(),
        };
    }
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
    let sizes = Sizes::of(&inputs);
    let [x, dt, a, b, c] = [&inputs.x, &inputs.dt, &inputs.a, &inputs.b, &inputs.c].map(empty_like);
    let [d, dt_bias, initial_state] =
        [&inputs.d, &inputs.dt_bias, &inputs.initial_state].map(optional_like);
    let gradients = ssd::SsdGradients {
        x: sizes.sequence(x.clone().binding()),
        dt: dt.clone().binding(),
        a: a.clone().binding(),
        b: sizes.projection(b.clone().binding()),
        c: sizes.projection(c.clone().binding()),
        d: optional_binding(&d),
        dt_bias: optional_binding(&dt_bias),
        initial_state: optional_binding(&initial_state),
    };
    let upstream = ssd::SsdUpstream {
        checkpoints: whole(checkpoints.clone()),
        y: sizes.sequence(rows(grad_y.clone())),
        final_state: optional(&grad_final_state, whole),
    };
    let (client, inputs_given) = (&inputs.x.client, sizes.bindings(&inputs));
    let result = ssd_backward(client, inputs_given, upstream, gradients);
    if launched("ssd backward", result) {
        return SsdGrads {
            x,
            dt,
            a,
            b,
            c,
            d: d.into(),
            dt_bias: dt_bias.into(),
            initial_state: initial_state.into(),
        };
    }
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
