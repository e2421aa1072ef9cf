//! A language model of Mamba-1 layers as the kernels that decode it.

use burn::tensor::{DType, FloatDType, Tensor};
use burn_cubecl::kernel::untile;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{Cube, cubecl};
use cubecl::prelude::TensorBinding;
use mamba_kernels::decode::{Before, Choice, Decoder, LayerState, LayerWeights, Weights};

use super::{dtype_to_storage_type, whole};
use crate::block::Mixer;
use crate::language_model::LanguageModel;
use crate::mamba1::Mamba1;
use crate::norm::{Norm, NormKind};
use crate::state::{LanguageModelState, LayerState as ModuleState};

/// The model behind `state`, or behind nothing if there is none, where kernels decode it: RMS norms of one kind
/// and Mamba-1 layers without positions, on a CubeCL device, one sequence or few.
pub(crate) fn decoder(
    model: &LanguageModel,
    state: Option<&LanguageModelState>,
    choice: Choice,
) -> Option<Decoder> {
    let epsilon = model.norm.epsilon;
    let alike = |norm: &Norm| norm.epsilon == epsilon && norm.output() == model.norm.output();
    if model.positions.is_some() || !model.layers.iter().all(|layer| alike(&layer.norm)) {
        return None;
    }
    let layers = model.layers.iter().map(|layer| match &layer.mixer {
        Mixer::Mamba1(mixer) => layer_weights(&layer.norm, mixer),
        _ => None,
    });
    let layers = layers.collect::<Option<Vec<_>>>()?;
    let before = match state {
        Some(state) => Before::States(
            state
                .layers
                .iter()
                .map(layer_state)
                .collect::<Option<Vec<_>>>()?,
        ),
        None => Before::Nothing { batch: 1 },
    };
    let embedding = resolve(model.embedding.val())?;
    let client = embedding.client.clone();
    let head = match &model.head {
        Some(head) => Some(matrix(head.val())?),
        None => None,
    };
    let weights = Weights {
        embedding: whole(embedding),
        layers,
        norm: scale(&model.norm)?,
        epsilon: epsilon as f32,
        head,
        vocab_size: model.vocab_size(),
    };
    let dtype = match model.norm.output() {
        FloatDType::F64 | FloatDType::Flex32 => FloatDType::F32,
        dtype => dtype,
    };
    let dtype = dtype_to_storage_type(DType::from(dtype));
    match Decoder::new(&client, weights, before, dtype, choice) {
        Ok(decoder) => Some(decoder),
        Err(error) => {
            log::debug!("decoding: {error}; passing tokens through the modules");
            None
        }
    }
}

fn layer_state(state: &ModuleState) -> Option<LayerState> {
    match state {
        ModuleState::Mamba1(state) => Some(LayerState {
            conv: contiguous(state.conv.clone())?,
            ssm: contiguous(state.ssm.clone())?,
        }),
        _ => None,
    }
}

fn layer_weights(norm: &Norm, mixer: &Mamba1) -> Option<LayerWeights> {
    let vector = |it: &Option<burn::module::Param<Tensor<1>>>| match it {
        Some(it) => contiguous(it.val()).map(Some),
        None => Some(None),
    };
    Some(LayerWeights {
        norm: scale(norm)?,
        in_proj: matrix(mixer.in_proj.weight.val())?,
        in_bias: vector(&mixer.in_proj.bias)?,
        conv_weight: contiguous(mixer.conv_weight.val())?,
        conv_bias: vector(&mixer.conv_bias)?,
        x_proj: matrix(mixer.x_proj.weight.val())?,
        dt_proj: matrix(mixer.dt_proj.weight.val())?,
        dt_bias: vector(&mixer.dt_proj.bias)?,
        a: contiguous(-widened(mixer.a_log.val()).exp())?,
        d: contiguous(mixer.d.val())?,
        out_proj: matrix(mixer.out_proj.weight.val())?,
        out_bias: vector(&mixer.out_proj.bias)?,
    })
}

/// The scale of an RMS norm.
fn scale(norm: &Norm) -> Option<TensorBinding> {
    match norm.kind() {
        NormKind::RmsNorm => contiguous(norm.gamma.val()),
        NormKind::LayerNorm => None,
    }
}

fn contiguous<const D: usize>(tensor: Tensor<D>) -> Option<TensorBinding> {
    resolve(tensor).map(whole)
}

/// Of whatever strides.
fn matrix(tensor: Tensor<2>) -> Option<TensorBinding> {
    resolve(tensor).map(|it| untile(it).binding())
}

fn widened<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.cast(FloatDType::F32)
}

/// The buffer of an f32 tensor, with everything that it waits for launched.
fn resolve<const D: usize>(tensor: Tensor<D>) -> Option<CubeTensor> {
    let primitive = widened(tensor).try_into_primitive::<Cube>().ok()?;
    #[cfg(feature = "fusion")]
    let primitive = {
        let client = primitive.client.clone();
        client.resolve_tensor_float::<burn_cubecl::CubeBackend>(primitive)
    };
    Some(primitive)
}
