//! The embedding's gradient on the kernel of `mamba_kernels`.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::{FloatTensorOps, IntTensorOps, ModuleOps};
use burn::tensor::{DType, FloatDType};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use mamba_kernels::embedding::{EmbeddingUpstream, MAX_POSITIONS, embedding_backward};

use super::{launched, matrix, whole};

/// Burn's own adds position after position; ours a row's positions, as long as they are not many.
pub(super) fn backward(weight: CubeTensor, tokens: CubeTensor, grad: CubeTensor) -> CubeTensor {
    let positions = tokens.shape().num_elements();
    if positions > MAX_POSITIONS || weight.dtype != DType::F32 || grad.dtype != DType::F32 {
        return CubeBackend::embedding_backward(weight, grad, tokens);
    }
    let grad_weight = CubeBackend::float_zeros(weight.shape(), &weight.device(), FloatDType::F32);
    let flat = CubeBackend::int_reshape(tokens.clone(), [positions].into());
    let result = embedding_backward(
        &weight.client,
        EmbeddingUpstream {
            index_dtype: dtype_to_storage_type(tokens.dtype),
            tokens: whole(flat),
            grad: matrix(grad.clone()),
        },
        grad_weight.clone().binding(),
    );
    match launched("embedding backward", result) {
        true => grad_weight,
        false => CubeBackend::embedding_backward(weight, grad, tokens),
    }
}
