use crate::init::{linear, rescale};
use crate::ops::{project, tanh_gelu};
use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::nn::Linear;
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor, assert_shape};
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_1_SQRT_2;

/// The nonlinearity of an [`Mlp`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x Φ(x)` with the tanh approximation of `Φ`, as in GPT-2.
    #[default]
    Gelu,
    /// `x Φ(x)` with the error function, as in GPT-NeoX.
    GeluExact,
    /// `silu(gate) * up`, as in Llama.
    #[serde(rename = "swiglu", alias = "swi_glu")]
    SwiGlu,
}

impl Activation {
    fn is_gated(self) -> bool {
        matches!(self, Self::SwiGlu)
    }
}

/// Configuration to create an [`Mlp`] with [`init`](MlpConfig::init).
#[derive(Config, Debug)]
pub struct MlpConfig {
    /// Width of the input and output.
    pub d_model: usize,
    /// Width between the layers. Default: `4 * d_model`, or `8/3 * d_model` rounded up to a multiple
    /// of 8 for SwiGLU, whose three matrices then weigh as much as the other two
    pub d_hidden: Option<usize>,
    /// The nonlinearity. Default: `Activation::Gelu`
    #[config(default = "Activation::Gelu")]
    pub activation: Activation,
    /// Whether both layers have a bias. Default: false
    #[config(default = false)]
    pub bias: bool,
}

impl MlpConfig {
    /// Width between the layers.
    pub fn d_hidden(&self) -> usize {
        self.d_hidden.unwrap_or_else(|| {
            if self.activation.is_gated() {
                (8 * self.d_model).div_ceil(3).next_multiple_of(8)
            } else {
                4 * self.d_model
            }
        })
    }

    /// Initialises an [`Mlp`]: weights `N(0, 0.02)`, biases zero.
    pub fn init(&self, device: &Device) -> Mlp {
        let d_hidden = self.d_hidden();
        let d_in = if self.activation.is_gated() {
            2 * d_hidden
        } else {
            d_hidden
        };
        Mlp {
            fc_in: linear(self.d_model, d_in, self.bias, device),
            fc_out: linear(d_hidden, self.d_model, self.bias, device),
            activation: self.activation,
        }
    }
}

/// The position-wise half of a transformer block.
///
/// - `Gelu`, `GeluExact`: `y = gelu(x W_in + b_in) W_out + b_out`
/// - `SwiGlu`: `[gate | up] = x W_in + b_in`, `y = (silu(gate) * up) W_out + b_out`
///
/// Should be created using [`MlpConfig`].
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Mlp {
    /// `[d_model, d_hidden]`, or `[d_model, 2 * d_hidden]` for SwiGLU: gate, then up.
    pub fc_in: Linear,
    /// `[d_hidden, d_model]`
    pub fc_out: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// Applies the MLP to each position.
    ///
    /// # Shapes
    ///
    /// - input: `[..., d_model]`
    /// - output: `[..., d_model]`
    ///
    /// # Panics
    ///
    /// Panics if the last axis of `x` is not `d_model`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let [d_model, _] = self.fc_in.weight.dims();
        assert_shape!(x, [.., d_model]);

        let hidden = project(&self.fc_in, x);
        let hidden = match self.activation {
            Activation::Gelu => tanh_gelu(hidden),
            Activation::GeluExact => gelu_erf(hidden),
            Activation::SwiGlu => {
                let [d_hidden, _] = self.fc_out.weight.dims();
                let gate = hidden.clone().narrow(D - 1, 0, d_hidden);
                let up = hidden.narrow(D - 1, d_hidden, d_hidden);
                silu(gate) * up
            }
        };
        project(&self.fc_out, hidden)
    }

    /// Multiplies the weights that write to the residual stream by `factor`.
    ///
    /// GPT-2 divides them by the root of the number of residual additions in the model.
    pub fn rescale_residual(mut self, factor: f64) -> Self {
        self.fc_out = rescale(self.fc_out, factor);
        self
    }
}

/// `x/2 * (1 + erf(x / sqrt(2)))`.
///
/// Burn's `gelu` has this value, and on most backends the gradient of the form with tanh.
fn gelu_erf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * ((x * FRAC_1_SQRT_2).erf() * 0.5 + 0.5)
}

impl ModuleDisplay for Mlp {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_hidden, d_model] = self.fc_out.weight.dims();
        content
            .add("d_model", &d_model)
            .add("d_hidden", &d_hidden)
            .add_debug_attribute("activation", &self.activation)
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::{gelu, gelu_approximate};
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn default_widths_follow_the_activation() {
        let swiglu = MlpConfig::new(128).with_activation(Activation::SwiGlu);
        assert_eq!(MlpConfig::new(128).d_hidden(), 512);
        assert_eq!(swiglu.d_hidden(), 344);
        assert_eq!(swiglu.with_d_hidden(Some(352)).d_hidden(), 352);
    }

    #[test]
    fn gelu_tanh_is_burns_approximation_also_far_from_zero() {
        let device = Device::flex();
        let x = Tensor::<1>::from_floats([-50.0, -5.0, -1.0, 0.0, 0.3, 2.0, 60.0], &device);
        tanh_gelu(x.clone())
            .to_data()
            .assert_approx_eq::<f32>(&gelu_approximate(x).to_data(), Tolerance::absolute(2e-6));
    }

    #[test]
    fn gelu_erf_is_burns_with_its_own_gradient() {
        let device = Device::flex().autodiff();
        let inputs = [-50.0, -5.0, -1.0, 0.0, 0.3, 2.0, 60.0f32];
        let x = Tensor::<1>::from_floats(inputs, &device).require_grad();
        let y = gelu_erf(x.clone());
        y.to_data()
            .assert_approx_eq::<f32>(&gelu(x.clone()).to_data(), Tolerance::absolute(2e-6));
        let gradient = x.grad(&y.sum().backward()).unwrap();
        // Phi(x) + x phi(x)
        let want = [
            0.0,
            -7.146_4e-6,
            -0.083_315_5,
            0.5,
            0.732_327_8,
            1.085_232,
            1.0f32,
        ];
        gradient
            .to_data()
            .assert_approx_eq::<f32>(&want.into(), Tolerance::absolute(2e-6));
    }

    #[test]
    fn swiglu_gates_with_the_first_half() {
        let device = Device::flex();
        let mlp = MlpConfig::new(4)
            .with_d_hidden(Some(3))
            .with_activation(Activation::SwiGlu)
            .with_bias(true)
            .init(&device);
        let x = Tensor::<2>::random([5, 4], Distribution::Normal(0.0, 20.0), &device);

        let gate = x.clone().matmul(mlp.fc_in.weight.val().narrow(1, 0, 3));
        let up = x.clone().matmul(mlp.fc_in.weight.val().narrow(1, 3, 3));
        let expected =
            (gate.clone() / (gate.neg().exp() + 1.0) * up).matmul(mlp.fc_out.weight.val());
        mlp.forward(x)
            .to_data()
            .assert_approx_eq::<f32>(&expected.to_data(), Tolerance::absolute(1e-5));
    }

    #[test]
    fn rescaling_touches_only_the_output_weights_and_leaves_them_trainable() {
        let device = Device::flex().autodiff();
        let mlp = MlpConfig::new(4).init(&device);
        let (fc_in, fc_out) = (mlp.fc_in.weight.to_data(), mlp.fc_out.weight.val());
        let mlp = mlp.rescale_residual(0.5);

        mlp.fc_in.weight.to_data().assert_eq(&fc_in, true);
        mlp.fc_out
            .weight
            .to_data()
            .assert_eq(&(fc_out * 0.5).to_data(), true);
        let grads = mlp
            .forward(Tensor::<2>::ones([1, 4], &device))
            .sum()
            .backward();
        assert!(mlp.fc_out.weight.grad(&grads).is_some());
    }

    #[test]
    fn display_shows_the_sizes() {
        let mlp = MlpConfig::new(8).with_bias(true).init(&Device::flex());
        assert_eq!(
            format!("{mlp}"),
            "Mlp {d_model: 8, d_hidden: 32, activation: Gelu, params: 552}"
        );
    }
}
