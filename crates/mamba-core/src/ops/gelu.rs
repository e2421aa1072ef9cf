//! GELU, on tensors.

use std::f64::consts::{FRAC_2_SQRT_PI, SQRT_2};

use burn::backend::Dispatch;
use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Tensor};

use super::extension::MambaOps;
use super::on_flex;

/// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`, by `(1 + tanh(z)) / 2 = sigmoid(2z)`: one pass on Flex, and elsewhere
/// operations that Burn fuses. Burn's `gelu_approximate` takes a power and two more passes over the tensor, and its gradient
/// more still.
pub(crate) fn tanh_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    const SLOPE: f64 = SQRT_2 * FRAC_2_SQRT_PI;
    if x.dtype() == DType::F32 && on_flex(&x.device()) {
        return Tensor::from_dispatch(Dispatch::tanh_gelu(x.into_dispatch()));
    }
    let slope = x.clone().square() * (0.044715 * SLOPE) + SLOPE;
    x.clone() * sigmoid(x * slope)
}
