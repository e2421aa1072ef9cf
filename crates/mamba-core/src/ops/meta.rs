//! Output shapes and dtypes of the ops, which Fusion asks for before it runs them.

use burn::backend::fusion::custom::TensorSpec;
use burn::tensor::{DType, FloatDType, Shape};

use super::extension::{
    AttentionGradsMetadata, AttentionOutputsMetadata, ConvGradsMetadata, ConvInputsMetadata,
    ConvOutputsMetadata, GatedNormGradsMetadata, GatedNormInputsMetadata, LossGradsMetadata,
    NormGradsMetadata, OptionalFloatMetadata, PartsMetadata, SCAN_CHECKPOINT_INTERVAL,
    ScanGradsMetadata, ScanInputsMetadata, ScanOutputsMetadata, SsdGradsMetadata,
    SsdInputsMetadata, SsdOutputsMetadata,
};

fn single<const D: usize>(dims: [usize; D]) -> TensorSpec {
    TensorSpec::new(dims.into(), DType::F32)
}

pub(super) fn scan(inputs: &ScanInputsMetadata, save_checkpoints: &bool) -> ScanOutputsMetadata {
    let [batch, seq_len, d_inner] = inputs.u.shape.dims();
    let [_, d_state] = inputs.a.shape.dims();
    let chunks = seq_len.div_ceil(SCAN_CHECKPOINT_INTERVAL);
    let checkpoints = single([batch, chunks, d_state, d_inner]);
    ScanOutputsMetadata {
        y: inputs.u.clone(),
        final_state: single([batch, d_inner, d_state]),
        checkpoints: match save_checkpoints {
            true => OptionalFloatMetadata::Present(checkpoints),
            false => OptionalFloatMetadata::Absent,
        },
    }
}

pub(super) fn scan_backward(
    inputs: &ScanInputsMetadata,
    _checkpoints: &TensorSpec,
    _grad_y: &TensorSpec,
    _grad_final_state: &OptionalFloatMetadata,
) -> ScanGradsMetadata {
    ScanGradsMetadata {
        u: inputs.u.clone(),
        delta: inputs.delta.clone(),
        a: inputs.a.clone(),
        b: inputs.b.clone(),
        c: inputs.c.clone(),
        d: inputs.d.clone(),
        z: inputs.z.clone(),
        delta_bias: inputs.delta_bias.clone(),
        initial_state: inputs.initial_state.clone(),
    }
}

pub(super) fn ssd(inputs: &SsdInputsMetadata, save_checkpoints: &bool) -> SsdOutputsMetadata {
    let [batch, seq_len, d_ssm] = inputs.x.shape.dims();
    let [nheads] = inputs.a.shape.dims();
    let [_, _, columns] = inputs.b.shape.dims();
    let (headdim, d_state) = (d_ssm / nheads, columns / inputs.options.ngroups);
    let chunks = seq_len.div_ceil(inputs.options.chunk_size);
    let checkpoints = single([batch, chunks, nheads, headdim, d_state]);
    SsdOutputsMetadata {
        y: inputs.x.clone(),
        final_state: single([batch, nheads, headdim, d_state]),
        checkpoints: match save_checkpoints {
            true => OptionalFloatMetadata::Present(checkpoints),
            false => OptionalFloatMetadata::Absent,
        },
    }
}

pub(super) fn ssd_backward(
    inputs: &SsdInputsMetadata,
    _checkpoints: &TensorSpec,
    _grad_y: &TensorSpec,
    _grad_final_state: &OptionalFloatMetadata,
) -> SsdGradsMetadata {
    SsdGradsMetadata {
        x: inputs.x.clone(),
        dt: inputs.dt.clone(),
        a: inputs.a.clone(),
        b: inputs.b.clone(),
        c: inputs.c.clone(),
        d: inputs.d.clone(),
        dt_bias: inputs.dt_bias.clone(),
        initial_state: inputs.initial_state.clone(),
    }
}

pub(super) fn gated_rms_norm(inputs: &GatedNormInputsMetadata) -> TensorSpec {
    inputs.x.clone()
}

pub(super) fn gated_rms_norm_backward(
    inputs: &GatedNormInputsMetadata,
    _grad_y: &TensorSpec,
) -> GatedNormGradsMetadata {
    GatedNormGradsMetadata {
        x: inputs.x.clone(),
        z: inputs.z.clone(),
        gamma: inputs.gamma.clone(),
    }
}

pub(super) fn conv(inputs: &ConvInputsMetadata) -> ConvOutputsMetadata {
    let [batch, _, channels] = inputs.x.shape.dims();
    let [_, width] = inputs.weight.shape.dims();
    ConvOutputsMetadata {
        y: inputs.x.clone(),
        final_state: single([batch, width - 1, channels]),
    }
}

pub(super) fn conv_backward(
    inputs: &ConvInputsMetadata,
    _grad_y: &TensorSpec,
    _grad_final_state: &OptionalFloatMetadata,
) -> ConvGradsMetadata {
    ConvGradsMetadata {
        x: inputs.x.clone(),
        weight: inputs.weight.clone(),
        bias: inputs.bias.clone(),
        initial_state: inputs.initial_state.clone(),
    }
}

pub(super) fn loss_with_grads(
    hidden: &TensorSpec,
    weight: &TensorSpec,
    _targets: &TensorSpec,
    _vocab_size: &usize,
) -> LossGradsMetadata {
    LossGradsMetadata {
        loss: single([1]),
        hidden: TensorSpec::new(hidden.shape.clone(), DType::F32),
        weight: weight.clone(),
    }
}

pub(super) fn token_losses(
    hidden: &TensorSpec,
    _weight: &TensorSpec,
    _targets: &TensorSpec,
    _vocab_size: &usize,
) -> TensorSpec {
    single([hidden.shape[0]])
}

pub(super) fn loss(
    _hidden: &TensorSpec,
    _weight: &TensorSpec,
    _targets: &TensorSpec,
    _vocab_size: &usize,
) -> TensorSpec {
    single([1])
}

pub(super) fn linear(
    x: &TensorSpec,
    weight: &TensorSpec,
    _bias: &OptionalFloatMetadata,
    _residual: &OptionalFloatMetadata,
    out: &FloatDType,
) -> TensorSpec {
    let mut shape = x.shape.clone();
    let last = shape.num_dims() - 1;
    shape[last] = weight.shape[1];
    TensorSpec::new(shape, (*out).into())
}

pub(super) fn weight_backward(x: &TensorSpec, grad_y: &TensorSpec) -> TensorSpec {
    let columns = |shape: &Shape| shape[shape.num_dims() - 1];
    single([columns(&x.shape), columns(&grad_y.shape)])
}

pub(super) fn rms_norm(
    x: &TensorSpec,
    _gamma: &TensorSpec,
    _epsilon: &f64,
    out: &FloatDType,
) -> TensorSpec {
    TensorSpec::new(x.shape.clone(), (*out).into())
}

pub(super) fn rms_norm_backward(
    x: &TensorSpec,
    gamma: &TensorSpec,
    _epsilon: &f64,
    _grad_y: &TensorSpec,
) -> NormGradsMetadata {
    NormGradsMetadata {
        x: x.clone(),
        gamma: gamma.clone(),
    }
}

pub(super) fn attention(
    query: &TensorSpec,
    _key: &TensorSpec,
    _value: &TensorSpec,
    heads: &usize,
) -> AttentionOutputsMetadata {
    let [batch, len, _] = query.shape.dims();
    AttentionOutputsMetadata {
        y: query.clone(),
        log_sums: single([batch, *heads, len]),
    }
}

pub(super) fn attention_backward(
    query: &TensorSpec,
    key: &TensorSpec,
    value: &TensorSpec,
    _heads: &usize,
    _y: &TensorSpec,
    _log_sums: &TensorSpec,
    _grad_y: &TensorSpec,
) -> AttentionGradsMetadata {
    AttentionGradsMetadata {
        query: query.clone(),
        key: key.clone(),
        value: value.clone(),
    }
}

pub(super) fn gelu(x: &TensorSpec) -> TensorSpec {
    x.clone()
}

pub(super) fn gelu_backward(x: &TensorSpec, _grad_y: &TensorSpec) -> TensorSpec {
    x.clone()
}

pub(super) fn split(x: &TensorSpec, first: &usize, second: &usize) -> PartsMetadata {
    let part = |columns| {
        let mut shape = x.shape.clone();
        let last = shape.num_dims() - 1;
        shape[last] = columns;
        TensorSpec::new(shape, x.dtype)
    };
    let rest = x.shape[x.shape.num_dims() - 1] - first - second;
    PartsMetadata {
        first: part(*first),
        second: part(*second),
        third: match rest {
            0 => OptionalFloatMetadata::Absent,
            rest => OptionalFloatMetadata::Present(part(rest)),
        },
    }
}

pub(super) fn join(parts: &PartsMetadata) -> TensorSpec {
    let third = match &parts.third {
        OptionalFloatMetadata::Present(third) => Some(third),
        OptionalFloatMetadata::Absent => None,
    };
    let mut shape = parts.first.shape.clone();
    let last = shape.num_dims() - 1;
    let parts = [Some(&parts.first), Some(&parts.second), third];
    shape[last] = parts.iter().flatten().map(|part| part.shape[last]).sum();
    TensorSpec::new(shape, parts[0].map_or(DType::F32, |part| part.dtype))
}

pub(super) fn embed(weight: &TensorSpec, tokens: &TensorSpec) -> TensorSpec {
    let ([batch, seq_len], [_, d_model]) = (tokens.shape.dims(), weight.shape.dims());
    single([batch, seq_len, d_model])
}

pub(super) fn embed_backward(
    weight: &TensorSpec,
    _tokens: &TensorSpec,
    _grad: &TensorSpec,
) -> TensorSpec {
    weight.clone()
}
