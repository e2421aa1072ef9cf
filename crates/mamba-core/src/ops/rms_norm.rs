//! Root mean square normalisation, on tensors.

use burn::backend::Dispatch;
use burn::tensor::{DType, FloatDType, Tensor, assert_shape};

use super::extension::MambaOps;
use super::{on_cube, on_flex};

/// `x / sqrt(mean(x^2) + epsilon) * gamma` over the last axis.
///
/// # Shapes
///
/// - x: `[.., d_model]`
/// - gamma: `[d_model]`
/// - output: `[.., d_model]`
///
/// # Panics
///
/// If the last axis of `x` is not as long as `gamma`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let out = x.dtype().into();
    rms_norm_to(x, gamma, epsilon, out)
}

/// [`rms_norm`] with a result of type `out`, rounded once.
pub(crate) fn rms_norm_to<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    epsilon: f64,
    out: FloatDType,
) -> Tensor<D> {
    let [d_model] = gamma.dims();
    assert_shape!(x, [.., d_model]);
    let device = x.device();
    let ours = on_cube(&device) || on_flex(&device) && out == FloatDType::F32;
    if D > 1 && x.dtype() == DType::F32 && gamma.dtype() == DType::F32 && ours {
        return Tensor::from_dispatch(Dispatch::rms_norm(
            x.into_dispatch(),
            gamma.into_dispatch(),
            epsilon,
            out,
        ));
    }
    let rms = (x.clone().square().mean_dim(D - 1) + epsilon).sqrt();
    (x / rms * gamma.unsqueeze()).cast(out)
}
