//! How layers start.

use std::ops::RangeInclusive;

use burn::module::{Initializer, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor, TensorData};

/// Standard deviation of GPT-2's initial weights.
const INIT_STD: f64 = 0.02;

/// A linear layer initialised as in GPT-2: weights `N(0, 0.02)`, bias zero.
pub(crate) fn linear(d_input: usize, d_output: usize, bias: bool, device: &Device) -> Linear {
    let mut linear = LinearConfig::new(d_input, d_output)
        .with_bias(false)
        .with_initializer(Initializer::Normal {
            mean: 0.0,
            std: INIT_STD,
        })
        .init(device);
    linear.bias = bias.then(|| Initializer::Zeros.init([d_output], device));
    linear
}

/// A linear layer that starts like PyTorch's, with a bias of zero as the official models have it.
pub(crate) fn torch_linear(d_input: usize, d_output: usize, bias: bool, device: &Device) -> Linear {
    let linear = LinearConfig::new(d_input, d_output)
        .with_bias(false)
        .init(device);
    Linear {
        bias: bias.then(|| Initializer::Zeros.init([d_output], device)),
        ..linear
    }
}

/// Biases such that their softplus is log-uniform in `range`, and at least `floor`.
pub(crate) fn inverse_softplus_of_time_steps(
    len: usize,
    range: RangeInclusive<f64>,
    floor: f64,
    device: &Device,
) -> Param<Tensor<1>> {
    let (low, high) = (range.start().ln(), range.end().ln());
    let uniform = Tensor::<1>::random([len], Distribution::Uniform(0.0, 1.0), device);
    let dt = (uniform * (high - low) + low).exp().clamp_min(floor);
    // The inverse of softplus: dt + ln(1 - exp(-dt)), in f64 since exp(-dt) is close to 1.
    let bias: Vec<f32> = dt
        .into_data()
        .iter::<f64>()
        .map(|dt| (dt + (-(-dt).exp_m1()).ln()) as f32)
        .collect();
    Param::from_tensor(Tensor::from_data(TensorData::new(bias, [len]), device))
}

/// The same layer with its weights multiplied by `factor`.
pub(crate) fn rescale(mut linear: Linear, factor: f64) -> Linear {
    linear.weight = linear.weight.map(|weight| {
        let require_grad = weight.is_require_grad();
        // The product must be a leaf again, or the optimizer would find no gradient on it.
        (weight * factor).detach().set_require_grad(require_grad)
    });
    linear
}
