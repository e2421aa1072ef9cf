//! Layer normalisation and RMS normalisation behind one module.

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::tensor::module::layer_norm;
use burn::tensor::{DType, Device, FloatDType, Tensor, assert_shape};
use serde::{Deserialize, Serialize};

use crate::ops::rms_norm_to;

/// Which normalisation a [`Norm`] applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * gamma + beta`, as in GPT-2.
    LayerNorm,
    /// `x / sqrt(mean(x^2) + epsilon) * gamma`, as in Mamba and Llama.
    #[default]
    RmsNorm,
}

/// Configuration to create a [`Norm`] with [`init`](NormConfig::init).
#[derive(Config, Debug)]
pub struct NormConfig {
    /// The size of the normalised axis.
    pub d_model: usize,
    /// Which normalisation. Default: `NormKind::RmsNorm`
    #[config(default = "NormKind::RmsNorm")]
    pub kind: NormKind,
    /// Added to the variance or mean square before the root. Default: 1e-5
    #[config(default = 1e-5)]
    pub epsilon: f64,
}

impl NormConfig {
    /// Initialises a [`Norm`]: `gamma` ones, `beta` zeros.
    ///
    /// # Panics
    ///
    /// Panics if `epsilon` is not positive.
    pub fn init(&self, device: &Device) -> Norm {
        assert!(
            self.epsilon > 0.0,
            "NormConfig::init: epsilon must be positive, got {}",
            self.epsilon
        );

        Norm {
            gamma: Initializer::Ones.init([self.d_model], device),
            beta: match self.kind {
                NormKind::LayerNorm => Some(Initializer::Zeros.init([self.d_model], device)),
                NormKind::RmsNorm => None,
            },
            epsilon: self.epsilon,
            kind: self.kind,
            output: None,
        }
    }
}

/// Normalises the last axis of a tensor, by [`NormKind`]:
///
/// - `LayerNorm`: `y = (x - mean(x)) / sqrt(var(x) + epsilon) * gamma + beta`
/// - `RmsNorm`: `y = x / sqrt(mean(x^2) + epsilon) * gamma`
///
/// Where:
/// - `gamma` is the learnable scale, `beta` the learnable shift of `LayerNorm`
/// - `mean` and the biased `var` run over the last axis
///
/// burn-nn's own modules leave `bf16` statistics in `bf16` (and `RmsNorm` divides in it), and want
/// input and weights of one type. This one computes in `f32` whatever both are and answers in the
/// type of the weights, or in the one that [`Norm::with_output`] sets, so that an `f32` residual stream can
/// feed a `bf16` mixer.
///
/// Should be created using [`NormConfig`].
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Norm {
    /// The learnable scale, `[d_model]`.
    pub gamma: Param<Tensor<1>>,
    /// The learnable shift, `[d_model]`; `LayerNorm` only.
    pub beta: Option<Param<Tensor<1>>>,
    /// Added to the variance or mean square before the root.
    pub epsilon: f64,
    #[module(skip)]
    kind: NormKind,
    #[module(skip)]
    output: Option<FloatDType>,
}

impl Norm {
    /// The same with outputs of type `output`.
    pub fn with_output(mut self, output: FloatDType) -> Self {
        self.output = Some(output);
        self
    }

    /// Applies the normalisation. The output has the type of the weights, or the one that was set.
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
        let gamma = self.gamma.val();
        let [d_model] = gamma.dims();
        assert_shape!(x, [.., d_model]);

        let output = self.output();
        let (x, gamma) = (widen(x), widen(gamma));
        match self.kind {
            NormKind::LayerNorm => {
                let beta = self.beta.as_ref().map(|beta| widen(beta.val()));
                layer_norm(x, gamma, beta, self.epsilon).cast(output)
            }
            NormKind::RmsNorm => rms_norm_to(x, gamma, self.epsilon, output),
        }
    }

    /// The type of the outputs.
    pub(crate) fn output(&self) -> FloatDType {
        self.output
            .unwrap_or_else(|| self.gamma.val().dtype().into())
    }

    /// Which normalisation this is.
    pub fn kind(&self) -> NormKind {
        self.kind
    }
}

/// 16-bit floats as `f32`; wider ones as they are.
fn widen<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F64 | DType::F32 => tensor,
        _ => tensor.cast(FloatDType::F32),
    }
}

impl ModuleDisplay for Norm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_model] = self.gamma.dims();
        content
            .add_debug_attribute("kind", &self.kind)
            .add("d_model", &d_model)
            .add("epsilon", &self.epsilon)
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    fn norm_by_hand(x: &[f32], kind: NormKind, epsilon: f64) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = match kind {
            NormKind::LayerNorm => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
            NormKind::RmsNorm => 0.0,
        };
        let var = x
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / n;
        x.iter()
            .map(|&v| (f64::from(v) - mean) / (var + epsilon).sqrt())
            .collect()
    }

    #[test]
    fn both_kinds_match_the_formula_along_the_last_axis() {
        let device = Device::flex();
        let x = Tensor::<3>::random([2, 3, 7], Distribution::Normal(0.5, 2.0), &device);
        let rows = x.to_data().try_to_vec::<f32>().unwrap();

        for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
            let norm = NormConfig::new(7)
                .with_kind(kind)
                .with_epsilon(1e-3)
                .init(&device);
            let expected: Vec<f64> = rows
                .chunks(7)
                .flat_map(|row| norm_by_hand(row, kind, 1e-3))
                .collect();
            let expected = Tensor::<1>::from_floats(
                expected
                    .iter()
                    .map(|&v| v as f32)
                    .collect::<Vec<_>>()
                    .as_slice(),
                &device,
            )
            .reshape([2, 3, 7]);
            norm.forward(x.clone())
                .to_data()
                .assert_approx_eq::<f32>(&expected.to_data(), Tolerance::absolute(1e-5));
        }
    }

    #[test]
    fn sixteen_bit_inputs_are_normalised_in_f32() {
        let device = Device::flex();
        // 300^2 overflows f16: only wider statistics give a finite answer.
        let x = Tensor::<2>::full([1, 4], 300.0, &device).cast(FloatDType::F16);
        let norm = NormConfig::new(4).init(&device);
        let y = norm.forward(x);

        assert_eq!(y.dtype(), DType::F32);
        y.to_data()
            .assert_approx_eq::<f32>(&[[1.0f32; 4]].into(), Tolerance::absolute(1e-5));
    }

    #[test]
    fn display_names_the_kind_and_counts_parameters() {
        let norm = NormConfig::new(6)
            .with_kind(NormKind::LayerNorm)
            .init(&Device::flex());
        assert_eq!(
            format!("{norm}"),
            "Norm {kind: LayerNorm, d_model: 6, epsilon: 0.00001, params: 12}"
        );
    }
}
