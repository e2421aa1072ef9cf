//! Linear layers on the products of `mamba_kernels`, which need no tuning and round nothing to TF32.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::tensor::FloatDType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::prelude::TensorBinding;
use burn_cubecl::tensor::CubeTensor;
use mamba_kernels::KernelError;
use mamba_kernels::matmul::{Elements, matmul, matmul_onto};

use super::{empty, empty_of, launched, matrix, whole};
use crate::ops::portable::{add_residual, cast};

fn transposed(mut matrix: TensorBinding) -> TensorBinding {
    matrix.shape.swap(0, 1);
    matrix.strides.swap(0, 1);
    matrix
}

/// A weight, read in place if it is contiguous or the transpose of what is.
fn factor(weight: CubeTensor) -> TensorBinding {
    match weight.meta.strides()[0] {
        1 => transposed(whole(CubeBackend::float_transpose(weight))),
        _ => whole(weight),
    }
}

fn elements(factor: &CubeTensor, out: &CubeTensor) -> Elements {
    Elements {
        factors: dtype_to_storage_type(factor.dtype),
        out: dtype_to_storage_type(out.dtype),
    }
}

pub(super) fn forward(
    x: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    out: FloatDType,
) -> CubeTensor {
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    shape[last] = weight.shape()[1];
    let y = empty_of(&x, shape, out.into());
    let result = matmul(
        &x.client,
        matrix(x.clone()),
        factor(weight.clone()),
        matrix(y.clone()),
        elements(&x, &y),
    );
    if !launched("linear", result) {
        return cast::<CubeBackend>(CubeBackend::linear(x, weight, bias), out);
    }
    let Some(bias) = bias else { return y };
    let mut row = vec![1; last];
    row.push(bias.shape()[0]);
    let bias = cast::<CubeBackend>(CubeBackend::float_reshape(bias, row.into()), out);
    CubeBackend::float_add(y, bias)
}

/// [`forward`] and `residual`, which is of type `out`: in one launch where there is one.
pub(super) fn forward_onto(
    x: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
    out: FloatDType,
) -> CubeTensor {
    if let (Some(residual), None, FloatDType::F32) = (&residual, &bias, out) {
        let y = empty(&x, residual.shape());
        let result = matmul_onto(
            &x.client,
            matrix(x.clone()),
            factor(weight.clone()),
            matrix(residual.clone()),
            matrix(y.clone()),
            dtype_to_storage_type(x.dtype),
        );
        if onto("linear", result) {
            return y;
        }
    }
    add_residual::<CubeBackend>(forward(x, weight, bias, out), residual.into())
}

/// Adds the weight's gradient to `sum`, in place where one launch does both.
pub(super) fn weight_backward_onto(
    sum: CubeTensor,
    x: CubeTensor,
    grad_y: CubeTensor,
) -> CubeTensor {
    let result = matmul_onto(
        &x.client,
        transposed(matrix(x.clone())),
        matrix(grad_y.clone()),
        whole(sum.clone()),
        whole(sum.clone()),
        dtype_to_storage_type(x.dtype),
    );
    match onto("linear backward", result) {
        true => sum,
        false => CubeBackend::float_add(sum, weight_backward(x, grad_y)),
    }
}

/// [`launched`] of what not every device has.
fn onto(op: &str, result: Result<(), KernelError>) -> bool {
    match result {
        Err(KernelError::NotCovered(_)) => false,
        result => launched(op, result),
    }
}

pub(super) fn weight_backward(x: CubeTensor, grad_y: CubeTensor) -> CubeTensor {
    let columns = |tensor: &CubeTensor| tensor.shape()[tensor.shape().num_dims() - 1];
    let grad = empty(&x, [columns(&x), columns(&grad_y)].into());
    let result = matmul(
        &x.client,
        transposed(matrix(x.clone())),
        matrix(grad_y.clone()),
        grad.clone().binding(),
        elements(&x, &grad),
    );
    match launched("linear backward", result) {
        true => grad,
        false => cast::<CubeBackend>(
            CubeBackend::linear_weight_backward(x, grad_y),
            FloatDType::F32,
        ),
    }
}
