//! How layers start.

use burn::module::Initializer;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Device;

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

/// The same layer with its weights multiplied by `factor`.
pub(crate) fn rescale(mut linear: Linear, factor: f64) -> Linear {
    linear.weight = linear.weight.map(|weight| {
        let require_grad = weight.is_require_grad();
        // The product must be a leaf again, or the optimizer would find no gradient on it.
        (weight * factor).detach().set_require_grad(require_grad)
    });
    linear
}
