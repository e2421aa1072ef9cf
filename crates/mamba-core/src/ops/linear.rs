//! Linear layers whose bias and residual are added where the product is.

use burn::backend::Dispatch;
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::extension::MambaOps;
use super::{on_cube, on_flex, optional_float, primitive_of};

/// `x weight + bias` over the last axis in the type of `x`: [`burn::tensor::module::linear`], through our
/// own loops on Flex, and on CubeCL devices through products that Burn neither tunes for minutes nor rounds
/// to TF32. Half precisions are added up in f32; gradients of the weight are rounded only to its own type.
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
    let dtype = x.dtype();
    let (weight, bias) = (weight.cast(dtype), bias.map(|bias| bias.cast(dtype)));
    if !is_ours(&x) {
        return burn::tensor::module::linear(x, weight, bias);
    }
    fused(x, weight, bias, None, dtype)
}

fn fused<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<D>>,
    out: DType,
) -> Tensor<D> {
    let dtype = x.dtype();
    Tensor::from_dispatch(Dispatch::fused_linear(
        x.into_dispatch(),
        primitive_of(weight, dtype),
        optional_float(bias, dtype),
        optional_float(residual, out),
        out.into(),
    ))
}

/// [`linear`] with the parameters of a layer.
pub(crate) fn project<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    linear(x, layer.weight.val(), layer.bias.as_ref().map(Param::val))
}

/// [`project`] onto a residual stream, which is f32: what is added to it is not rounded to less.
pub(crate) fn project_onto<const D: usize>(
    residual: Tensor<D>,
    layer: &Linear,
    x: Tensor<D>,
) -> Tensor<D> {
    if !is_ours(&x) {
        return residual + project(layer, x).cast(DType::F32);
    }
    let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().map(Param::val));
    fused(x, weight, bias, Some(residual), DType::F32)
}

/// Whether the product with `x` is one of ours: on Flex in f32, on CubeCL in half precisions, too.
fn is_ours<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    D > 1
        && match x.dtype() {
            DType::F32 => on_flex(&device) || on_cube(&device),
            DType::F16 | DType::BF16 => on_cube(&device),
            _ => false,
        }
}
