use burn::backend::Dispatch;
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::extension::{MambaOps, OptionalFloat};
use super::{on_flex, optional_float};

/// `x weight + bias` over the last axis: [`burn::tensor::module::linear`], through our own
/// loops where they are faster.
///
/// # Shapes
///
/// - x: `[.., d_input]`
/// - weight: `[d_input, d_output]`
/// - bias: `[d_output]`
/// - output: `[.., d_output]`
///
/// # Panics
///
/// If the shapes do not fit each other.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let f32_only = x.dtype() == DType::F32
        && weight.dtype() == DType::F32
        && bias.as_ref().is_none_or(|bias| bias.dtype() == DType::F32);
    if D == 1 || !f32_only || !on_flex(&x.device()) {
        return burn::tensor::module::linear(x, weight, bias);
    }
    let bias: OptionalFloat<Dispatch> = optional_float(bias);
    Tensor::from_dispatch(Dispatch::fused_linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias,
    ))
}

/// [`linear`] with the parameters of a layer.
pub(crate) fn project<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    linear(x, layer.weight.val(), layer.bias.as_ref().map(Param::val))
}
