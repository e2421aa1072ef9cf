//! Any GPU: the CubeCL kernels of `mamba_kernels` on the tensors' own buffers.

mod columns;
mod decode;
mod embed;
mod gated_norm;
mod linear;
mod loss;
mod norm;
mod ssd;

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, cubecl};
use cubecl::prelude::{ElemType, TensorBinding};
use mamba_kernels::{KernelError, causal_conv1d, selective_scan};

use crate::ops::extension::{
    ConvGrads, ConvInputs, ConvOutputs, GatedNormGrads, GatedNormInputs, LossGrads, MambaOps,
    NormGrads, OptionalFloat, OptionalInt, Parts, SCAN_CHECKPOINT_INTERVAL, ScanGrads, ScanInputs,
    ScanOutputs, SsdGrads, SsdInputs, SsdOutputs,
};
use crate::ops::portable::{self, cast};

pub(crate) use decode::{Behind, decoder};

const _: () = assert!(SCAN_CHECKPOINT_INTERVAL == selective_scan::CHECKPOINT_INTERVAL);

/// A tensor whose last axis is contiguous, as it is in slices along that axis: read in place.
/// Anything else is copied once.
fn rows(tensor: CubeTensor) -> TensorBinding {
    let tensor = burn_cubecl::kernel::untile(tensor);
    match tensor.meta.strides().last() {
        Some(1) => tensor.binding(),
        _ => into_contiguous(tensor).binding(),
    }
}

fn whole(tensor: CubeTensor) -> TensorBinding {
    into_contiguous(tensor).binding()
}

/// All axes but the last as rows.
fn matrix(tensor: CubeTensor) -> TensorBinding {
    let mut matrix = whole(tensor);
    let columns = matrix.shape[matrix.shape.len() - 1];
    let rows = matrix.shape[..matrix.shape.len() - 1].iter().product();
    matrix.shape = [rows, columns].into();
    matrix.strides = [columns, 1].into_iter().collect();
    matrix
}

fn optional(
    tensor: &OptionalFloat<CubeBackend>,
    place: fn(CubeTensor) -> TensorBinding,
) -> Option<TensorBinding> {
    tensor.clone().into_option().map(place)
}

/// The indices and their dtype.
fn indices(seq_idx: &OptionalInt<CubeBackend>) -> (Option<TensorBinding>, ElemType) {
    let seq_idx = seq_idx.clone().into_option();
    let dtype = seq_idx.as_ref().map_or(DType::I32, |it| it.dtype);
    (seq_idx.map(whole), dtype_to_storage_type(dtype))
}

fn scan_inputs(inputs: &ScanInputs<CubeBackend>) -> selective_scan::ScanInputs {
    let (seq_idx, index_dtype) = indices(&inputs.seq_idx);
    selective_scan::ScanInputs {
        u: rows(inputs.u.clone()),
        delta: rows(inputs.delta.clone()),
        a: whole(inputs.a.clone()),
        b: rows(inputs.b.clone()),
        c: rows(inputs.c.clone()),
        d: optional(&inputs.d, whole),
        z: optional(&inputs.z, rows),
        delta_bias: optional(&inputs.delta_bias, whole),
        initial_state: optional(&inputs.initial_state, whole),
        seq_idx,
        delta_softplus: inputs.delta_softplus,
        dtype: dtype_to_storage_type(inputs.u.dtype),
        index_dtype,
    }
}

fn conv_inputs(inputs: &ConvInputs<CubeBackend>) -> causal_conv1d::ConvInputs {
    let (seq_idx, index_dtype) = indices(&inputs.seq_idx);
    causal_conv1d::ConvInputs {
        x: rows(inputs.x.clone()),
        weight: whole(inputs.weight.clone()),
        bias: optional(&inputs.bias, whole),
        initial_state: optional(&inputs.initial_state, whole),
        seq_idx,
        silu: inputs.silu,
        dtype: dtype_to_storage_type(inputs.x.dtype),
        index_dtype,
    }
}

/// Whether the convolution's kernels hold as many taps: with more, the portable path is taken.
fn few_taps(op: &str, width: usize) -> bool {
    let most = causal_conv1d::MAX_WIDTH;
    if width > most {
        log::debug!("{op}: {width} taps, the kernel holds {most}; taking the portable path");
    }
    width <= most
}

/// An uninitialised f32 tensor beside `like`.
fn empty(like: &CubeTensor, shape: Shape) -> CubeTensor {
    empty_of(like, shape, DType::F32)
}

fn empty_of(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape, dtype)
}

/// An uninitialised tensor as shaped as `like`.
fn empty_like(like: &CubeTensor) -> CubeTensor {
    empty_of(like, like.shape(), like.dtype)
}

fn optional_like(like: &OptionalFloat<CubeBackend>) -> Option<CubeTensor> {
    like.clone().into_option().as_ref().map(empty_like)
}

fn optional_binding(tensor: &Option<CubeTensor>) -> Option<TensorBinding> {
    tensor.clone().map(CubeTensor::binding)
}

/// Whether the kernels run: a device that lacks what they need takes the portable path.
///
/// # Panics
/// On any other error: the arguments do not fit each other.
fn launched(op: &str, result: Result<(), KernelError>) -> bool {
    match result {
        Ok(()) => true,
        Err(error @ (KernelError::Device { .. } | KernelError::Product { .. })) => {
            log::debug!("{op}: {error}; taking the portable path");
            false
        }
        Err(error) => panic!("{op}: {error}"),
    }
}

fn cast_optional(
    tensor: OptionalFloat<CubeBackend>,
    dtype: FloatDType,
) -> OptionalFloat<CubeBackend> {
    let tensor = tensor.into_option();
    tensor.map(|it| cast::<CubeBackend>(it, dtype)).into()
}

// The portable bodies compute in f32.

fn single_scan(inputs: ScanInputs<CubeBackend>) -> ScanInputs<CubeBackend> {
    let single = |tensor| cast::<CubeBackend>(tensor, FloatDType::F32);
    ScanInputs {
        u: single(inputs.u),
        delta: single(inputs.delta),
        b: single(inputs.b),
        c: single(inputs.c),
        z: cast_optional(inputs.z, FloatDType::F32),
        ..inputs
    }
}

fn single_conv(inputs: ConvInputs<CubeBackend>) -> ConvInputs<CubeBackend> {
    ConvInputs {
        x: cast::<CubeBackend>(inputs.x, FloatDType::F32),
        ..inputs
    }
}

fn portable_conv(inputs: ConvInputs<CubeBackend>) -> ConvOutputs<CubeBackend> {
    let dtype = inputs.x.dtype.into();
    let outputs = portable::causal_conv1d::forward::<CubeBackend>(single_conv(inputs));
    ConvOutputs {
        y: cast::<CubeBackend>(outputs.y, dtype),
        ..outputs
    }
}

fn portable_conv_backward(
    inputs: ConvInputs<CubeBackend>,
    grad_y: CubeTensor,
    grad_final_state: OptionalFloat<CubeBackend>,
) -> ConvGrads<CubeBackend> {
    let dtype = inputs.x.dtype.into();
    let grad_y = cast::<CubeBackend>(grad_y, FloatDType::F32);
    let inputs = single_conv(inputs);
    let grads = portable::causal_conv1d::backward::<CubeBackend>(inputs, grad_y, grad_final_state);
    ConvGrads {
        x: cast::<CubeBackend>(grads.x, dtype),
        ..grads
    }
}

impl MambaOps for CubeBackend {
    fn selective_scan(inputs: ScanInputs<Self>, save_checkpoints: bool) -> ScanOutputs<Self> {
        let [batch, seq_len, d_inner] = inputs.u.shape().dims();
        let [_, d_state] = inputs.a.shape().dims();
        let intervals = seq_len.div_ceil(SCAN_CHECKPOINT_INTERVAL);
        let y = empty_like(&inputs.u);
        let final_state = empty(&inputs.u, [batch, d_inner, d_state].into());
        let checkpoints =
            save_checkpoints.then(|| empty(&inputs.u, [batch, intervals, d_state, d_inner].into()));
        let outputs = selective_scan::ScanOutputs {
            y: y.clone().binding(),
            final_state: final_state.clone().binding(),
            checkpoints: optional_binding(&checkpoints),
        };
        let result = selective_scan::selective_scan(
            &inputs.u.client,
            scan_inputs(&inputs),
            outputs,
            selective_scan::Strategy::Auto,
        );
        if !launched("selective_scan", result) {
            let dtype = inputs.u.dtype.into();
            let outputs =
                portable::selective_scan::forward::<Self>(single_scan(inputs), save_checkpoints);
            return ScanOutputs {
                y: cast::<Self>(outputs.y, dtype),
                ..outputs
            };
        }
        ScanOutputs {
            y,
            final_state,
            checkpoints: checkpoints.into(),
        }
    }

    fn selective_scan_backward(
        inputs: ScanInputs<Self>,
        checkpoints: CubeTensor,
        grad_y: CubeTensor,
        grad_final_state: OptionalFloat<Self>,
    ) -> ScanGrads<Self> {
        let [u, delta, a, b, c] =
            [&inputs.u, &inputs.delta, &inputs.a, &inputs.b, &inputs.c].map(empty_like);
        let [d, z, delta_bias, initial_state] = [
            &inputs.d,
            &inputs.z,
            &inputs.delta_bias,
            &inputs.initial_state,
        ]
        .map(optional_like);
        let gradients = selective_scan::ScanGradients {
            u: u.clone().binding(),
            delta: delta.clone().binding(),
            a: a.clone().binding(),
            b: b.clone().binding(),
            c: c.clone().binding(),
            d: optional_binding(&d),
            z: optional_binding(&z),
            delta_bias: optional_binding(&delta_bias),
            initial_state: optional_binding(&initial_state),
        };
        let upstream = selective_scan::ScanUpstream {
            checkpoints: whole(checkpoints.clone()),
            y: rows(grad_y.clone()),
            final_state: optional(&grad_final_state, whole),
        };
        let result = selective_scan::selective_scan_backward(
            &inputs.u.client,
            scan_inputs(&inputs),
            upstream,
            gradients,
            selective_scan::Strategy::Auto,
        );
        if !launched("selective_scan backward", result) {
            let dtype = inputs.u.dtype.into();
            let grads = portable::selective_scan::backward::<Self>(
                single_scan(inputs),
                checkpoints,
                cast::<Self>(grad_y, FloatDType::F32),
                grad_final_state,
            );
            return ScanGrads {
                u: cast::<Self>(grads.u, dtype),
                delta: cast::<Self>(grads.delta, dtype),
                b: cast::<Self>(grads.b, dtype),
                c: cast::<Self>(grads.c, dtype),
                z: cast_optional(grads.z, dtype),
                ..grads
            };
        }
        ScanGrads {
            u,
            delta,
            a,
            b,
            c,
            d: d.into(),
            z: z.into(),
            delta_bias: delta_bias.into(),
            initial_state: initial_state.into(),
        }
    }

    fn causal_conv1d(inputs: ConvInputs<Self>) -> ConvOutputs<Self> {
        let op = "causal_conv1d";
        let [batch, _, channels] = inputs.x.shape().dims();
        let [_, width] = inputs.weight.shape().dims();
        if !few_taps(op, width) {
            return portable_conv(inputs);
        }
        let y = empty_like(&inputs.x);
        let final_state = empty(&inputs.x, [batch, width - 1, channels].into());
        let outputs = causal_conv1d::ConvOutputs {
            y: y.clone().binding(),
            final_state: Some(final_state.clone().binding()),
        };
        let result = causal_conv1d::causal_conv1d(&inputs.x.client, conv_inputs(&inputs), outputs);
        if !launched(op, result) {
            return portable_conv(inputs);
        }
        ConvOutputs { y, final_state }
    }

    fn causal_conv1d_backward(
        inputs: ConvInputs<Self>,
        grad_y: CubeTensor,
        grad_final_state: OptionalFloat<Self>,
    ) -> ConvGrads<Self> {
        let op = "causal_conv1d backward";
        let [_, width] = inputs.weight.shape().dims();
        if !few_taps(op, width) {
            return portable_conv_backward(inputs, grad_y, grad_final_state);
        }
        let [x, weight] = [&inputs.x, &inputs.weight].map(empty_like);
        let [bias, initial_state] = [&inputs.bias, &inputs.initial_state].map(optional_like);
        let gradients = causal_conv1d::ConvGradients {
            x: x.clone().binding(),
            weight: weight.clone().binding(),
            bias: optional_binding(&bias),
            initial_state: optional_binding(&initial_state),
        };
        let upstream = causal_conv1d::ConvUpstream {
            y: rows(grad_y.clone()),
            final_state: optional(&grad_final_state, whole),
        };
        let result = causal_conv1d::causal_conv1d_backward(
            &inputs.x.client,
            conv_inputs(&inputs),
            upstream,
            gradients,
        );
        if !launched(op, result) {
            return portable_conv_backward(inputs, grad_y, grad_final_state);
        }
        ConvGrads {
            x,
            weight,
            bias: bias.into(),
            initial_state: initial_state.into(),
        }
    }

    fn ssd(inputs: SsdInputs<Self>, save_checkpoints: bool) -> SsdOutputs<Self> {
        ssd::forward(inputs, save_checkpoints)
    }

    fn ssd_backward(
        inputs: SsdInputs<Self>,
        checkpoints: CubeTensor,
        grad_y: CubeTensor,
        grad_final_state: OptionalFloat<Self>,
    ) -> SsdGrads<Self> {
        ssd::backward(inputs, checkpoints, grad_y, grad_final_state)
    }

    fn gated_rms_norm(inputs: GatedNormInputs<Self>) -> CubeTensor {
        gated_norm::forward(inputs)
    }

    fn gated_rms_norm_backward(
        inputs: GatedNormInputs<Self>,
        grad_y: CubeTensor,
    ) -> GatedNormGrads<Self> {
        gated_norm::backward(inputs, grad_y)
    }

    fn token_losses(
        hidden: CubeTensor,
        weight: CubeTensor,
        targets: CubeTensor,
        vocab_size: usize,
    ) -> CubeTensor {
        loss::token_losses(hidden, weight, targets, vocab_size)
    }

    fn linear_cross_entropy(
        hidden: CubeTensor,
        weight: CubeTensor,
        targets: CubeTensor,
        vocab_size: usize,
    ) -> CubeTensor {
        loss::loss(hidden, weight, targets, vocab_size)
    }

    fn linear_cross_entropy_with_grads(
        hidden: CubeTensor,
        weight: CubeTensor,
        targets: CubeTensor,
        vocab_size: usize,
    ) -> LossGrads<Self> {
        loss::loss_with_grads(hidden, weight, targets, vocab_size)
    }

    fn fused_linear(
        x: CubeTensor,
        weight: CubeTensor,
        bias: OptionalFloat<Self>,
        residual: OptionalFloat<Self>,
        out: FloatDType,
    ) -> CubeTensor {
        linear::forward_onto(x, weight, bias.into_option(), residual.into_option(), out)
    }

    fn fused_linear_weight_backward(x: CubeTensor, grad_y: CubeTensor) -> CubeTensor {
        linear::weight_backward(x, grad_y)
    }

    fn rms_norm(x: CubeTensor, gamma: CubeTensor, epsilon: f64, out: FloatDType) -> CubeTensor {
        norm::forward(x, gamma, epsilon, out)
    }

    fn rms_norm_backward(
        x: CubeTensor,
        gamma: CubeTensor,
        epsilon: f64,
        grad_y: CubeTensor,
    ) -> NormGrads<Self> {
        norm::backward(x, gamma, epsilon, grad_y)
    }

    fn split(x: CubeTensor, first: usize, second: usize) -> Parts<Self> {
        columns::split(x, first, second)
    }

    fn embed_backward(weight: CubeTensor, tokens: CubeTensor, grad: CubeTensor) -> CubeTensor {
        embed::backward(weight, tokens, grad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_that_lacks_something_takes_the_portable_path() {
        assert!(launched("op", Ok(())));
        let short = KernelError::Device {
            resource: "units of a cube",
            needed: 64,
            available: 32,
        };
        assert!(!launched("op", Err(short)));
    }

    #[test]
    #[should_panic(expected = "op: d_state must be 1 to 256, got 300")]
    fn arguments_that_do_not_fit_are_refused() {
        let wrong = KernelError::Size {
            name: "d_state",
            expected: "1 to 256",
            got: 300,
        };
        launched("op", Err(wrong));
    }
}
