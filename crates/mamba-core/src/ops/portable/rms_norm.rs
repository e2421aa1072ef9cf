//! `y = x / sqrt(mean(x^2) + epsilon) * gamma` over the last axis.

use burn::backend::Backend;
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::Prim;
use crate::ops::extension::NormGrads;

/// `x` as `[rows, d_model]`, `gamma` as `[1, d_model]`, and the factor of each row, `[rows, 1]`.
fn parts<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    epsilon: f64,
) -> (Prim<B>, Prim<B>, Prim<B>) {
    let gamma = Prim::<B>(gamma);
    let [d_model] = gamma.dims();
    let rows = x.shape().num_elements() / d_model;
    let x = Prim::<B>(x).reshape([rows, d_model]);
    let mean = (&x * &x).sum_dim(1).scale(1.0 / d_model as f64);
    (
        x,
        gamma.reshape([1, d_model]),
        mean.shift(epsilon).sqrt().recip(),
    )
}

pub(crate) fn forward<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let shape = x.shape();
    let (x, gamma, factor) = parts::<B>(x, gamma, epsilon);
    B::float_reshape((&(&x * &factor) * &gamma).0, shape)
}

/// With `n = x factor` and `g = grad_y gamma`: `factor (g - n mean(g n))`, and `sum(grad_y n)`.
pub(crate) fn backward<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    epsilon: f64,
    grad_y: FloatTensor<B>,
) -> NormGrads<B> {
    let shape = x.shape();
    let (x, gamma, factor) = parts::<B>(x, gamma, epsilon);
    let [rows, d_model] = x.dims();
    let grad_y = Prim::<B>(grad_y).reshape([rows, d_model]);
    let n = &x * &factor;
    let g = &grad_y * &gamma;
    let mean = (&g * &n).sum_dim(1).scale(1.0 / d_model as f64);
    let grad_x = &(&g - &(&n * &mean)) * &factor;
    NormGrads {
        x: B::float_reshape(grad_x.0, shape),
        gamma: (&grad_y * &n).sum_dim(0).reshape([d_model]).0,
    }
}
