//! Looking up rows of a table, on tensors.

use burn::backend::Dispatch;
use burn::tensor::module::embedding;
use burn::tensor::{DType, Int, Tensor};

use super::extension::MambaOps;
use super::on_cube;

/// [`embedding`], whose gradient on CubeCL devices is a kernel of ours.
pub(crate) fn embed(weight: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<3> {
    if weight.dtype() != DType::F32 || !on_cube(&weight.device()) {
        return embedding(weight, tokens);
    }
    Tensor::from_dispatch(Dispatch::embed(
        weight.into_dispatch(),
        tokens.into_dispatch(),
    ))
}
