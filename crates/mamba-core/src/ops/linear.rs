//! Linear layers whose bias and residual are added where the product is.

use burn::backend::Dispatch;
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::extension::MambaOps;
use super::{on_cube, on_flex, optional_float};

/// `x weight + bias` over the last axis: [`burn::tensor::module::linear`], through our own loops on
/// Flex, and on CubeCL devices through products that Burn neither tunes for minutes nor rounds to TF32.
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
    let device = x.device();
    if D == 1 || !all_f32(&x, &weight, &bias) || !(on_flex(&device) || on_cube(&device)) {
        return burn::tensor::module::linear(x, weight, bias);
    }
    fused(x, weight, bias, None)
}

fn fused<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<D>>,
) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::fused_linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        optional_float(bias),
        optional_float(residual),
    ))
}

/// [`linear`] with the parameters of a layer.
pub(crate) fn project<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    linear(x, layer.weight.val(), layer.bias.as_ref().map(Param::val))
}

/// [`project`] onto a residual stream, which is f32: in one pass on Flex.
pub(crate) fn project_onto<const D: usize>(
    residual: Tensor<D>,
    layer: &Linear,
    x: Tensor<D>,
) -> Tensor<D> {
    let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().map(Param::val));
    if D == 1 || !all_f32(&x, &weight, &bias) || !on_flex(&x.device()) {
        return residual + linear(x, weight, bias).cast(DType::F32);
    }
    fused(x, weight, bias, Some(residual))
}

fn all_f32<const D: usize>(x: &Tensor<D>, weight: &Tensor<2>, bias: &Option<Tensor<1>>) -> bool {
    [x.dtype(), weight.dtype()]
        .into_iter()
        .chain(bias.as_ref().map(Tensor::dtype))
        .all(|dtype| dtype == DType::F32)
}
