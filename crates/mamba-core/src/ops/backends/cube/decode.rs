//! A language model of Mamba-1 and Mamba-2 layers as the kernels that decode it.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, FloatDType, Tensor};
use burn_cubecl::kernel::untile;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{Cube, cubecl};
use cubecl::prelude::TensorBinding;
use mamba_kernels::decode::{
    Before, Choice, Decoder, GatedNormWeights, LayerState, LayerWeights, Mamba1Weights,
    Mamba2Weights, MixerWeights, Weights,
};

use super::{dtype_to_storage_type, whole};
use crate::block::Mixer;
use crate::language_model::LanguageModel;
use crate::mamba1::Mamba1;
use crate::mamba2::{Mamba2, NORM_EPSILON};
use crate::norm::{Norm, NormKind};
use crate::state::{LanguageModelState, LayerState as ModuleState};

/// What sequences begin behind.
pub(crate) enum Behind<'a> {
    /// Nothing, so many of them.
    Nothing(usize),
    /// What has left this.
    State(&'a LanguageModelState),
}

/// The model behind what is given, where kernels decode it: RMS norms of one kind and layers of Mamba-1 and Mamba-2
/// without positions, on a CubeCL device, one sequence or few.
pub(crate) fn decoder(model: &LanguageModel, behind: Behind, choice: Choice) -> Option<Decoder> {
    let epsilon = model.norm.epsilon;
    let alike = |norm: &Norm| norm.epsilon == epsilon && norm.output() == model.norm.output();
    let plain = model.positions.is_none() && !model.has_parallel_layers();
    if !plain || !model.layers.iter().all(|layer| alike(&layer.norm)) {
        return None;
    }
    let layers = model.layers.iter().map(|layer| match &layer.mixer {
        Mixer::Mamba1(mixer) => mamba1_weights(&layer.norm, mixer),
        Mixer::Mamba2(mixer) => mamba2_weights(&layer.norm, mixer),
        Mixer::Attention(_) | Mixer::Mlp(_) => None,
    });
    let layers = layers.collect::<Option<Vec<_>>>()?;
    let before = match behind {
        Behind::State(state) => Before::States(
            state
                .layers
                .iter()
                .map(layer_state)
                .collect::<Option<Vec<_>>>()?,
        ),
        Behind::Nothing(batch) => Before::Nothing { batch },
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
    let (conv, ssm) = match state {
        ModuleState::Mamba1(state) => (state.conv.clone(), contiguous(state.ssm.clone())?),
        ModuleState::Mamba2(state) => (state.conv.clone(), contiguous(state.ssm.clone())?),
        ModuleState::Attention(_) | ModuleState::Stateless => return None,
    };
    Some(LayerState {
        conv: contiguous(conv)?,
        ssm,
    })
}

/// Nothing of a mixer that normalises its time step, B and C.
fn mamba1_weights(norm: &Norm, mixer: &Mamba1) -> Option<LayerWeights> {
    if mixer.dt_bc_rms_epsilon.is_some() {
        return None;
    }
    let own = Mamba1Weights {
        x_proj: matrix(mixer.x_proj.weight.val())?,
        dt_proj: matrix(mixer.dt_proj.weight.val())?,
        dt_bias: vector(&mixer.dt_proj.bias)?,
        a: rates(&mixer.a_log)?,
        d: contiguous(mixer.d.val())?,
    };
    layer_weights(
        norm,
        [&mixer.in_proj, &mixer.out_proj],
        (&mixer.conv_weight, &mixer.conv_bias),
        MixerWeights::Mamba1(own),
    )
}

/// Nothing of a mixer with an MLP beside the recurrence.
fn mamba2_weights(norm: &Norm, mixer: &Mamba2) -> Option<LayerWeights> {
    let [d_inner, _] = mixer.out_proj.weight.dims();
    if d_inner != mixer.d_ssm() {
        return None;
    }
    let gated = match &mixer.norm_weight {
        Some(gamma) => Some(GatedNormWeights {
            gamma: contiguous(gamma.val())?,
            epsilon: NORM_EPSILON as f32,
            norm_before_gate: mixer.norm_before_gate,
        }),
        None => None,
    };
    let [least, most] = mixer.dt_limit;
    let own = Mamba2Weights {
        headdim: mixer.headdim,
        ngroups: mixer.ngroups,
        dt_bias: Some(contiguous(mixer.dt_bias.val())?),
        dt_limit: (least as f32, most as f32),
        a: rates(&mixer.a_log)?,
        d: contiguous(mixer.d.val())?,
        norm: gated,
    };
    layer_weights(
        norm,
        [&mixer.in_proj, &mixer.out_proj],
        (&mixer.conv_weight, &mixer.conv_bias),
        MixerWeights::Mamba2(own),
    )
}

type Filters<'a> = (&'a Param<Tensor<2>>, &'a Option<Param<Tensor<1>>>);

fn layer_weights(
    norm: &Norm,
    [in_proj, out_proj]: [&Linear; 2],
    (conv_weight, conv_bias): Filters,
    mixer: MixerWeights,
) -> Option<LayerWeights> {
    Some(LayerWeights {
        norm: scale(norm)?,
        in_proj: matrix(in_proj.weight.val())?,
        in_bias: vector(&in_proj.bias)?,
        conv_weight: contiguous(conv_weight.val())?,
        conv_bias: vector(conv_bias)?,
        mixer,
        out_proj: matrix(out_proj.weight.val())?,
        out_bias: vector(&out_proj.bias)?,
    })
}

/// A bias, if there is one: the outer absence is that of a buffer.
fn vector(bias: &Option<Param<Tensor<1>>>) -> Option<Option<TensorBinding>> {
    match bias {
        Some(bias) => contiguous(bias.val()).map(Some),
        None => Some(None),
    }
}

/// `A` of its logarithm.
fn rates<const D: usize>(a_log: &Param<Tensor<D>>) -> Option<TensorBinding> {
    contiguous(-widened(a_log.val()).exp())
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
