use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Device, FloatDType, Int, Tensor, assert_shape, s};

/// Configuration to create a [`RotaryEmbedding`] with [`init`](RotaryEmbeddingConfig::init).
#[derive(Config, Debug)]
pub struct RotaryEmbeddingConfig {
    /// How many leading channels of a head are rotated; even.
    pub rotary_dim: usize,
    /// Base of the geometric series of wave lengths. Default: 10000
    #[config(default = 10000.0)]
    pub base: f64,
    /// Rotate neighbours `(2i, 2i + 1)` (GPT-J) instead of halves (GPT-NeoX, Llama). Default: false
    #[config(default = false)]
    pub interleaved: bool,
}

impl RotaryEmbeddingConfig {
    /// Initialises a [`RotaryEmbedding`]; it has no parameters.
    ///
    /// # Panics
    ///
    /// Panics if `rotary_dim` is zero or odd, or `base` is not positive.
    pub fn init(&self, device: &Device) -> RotaryEmbedding {
        assert!(
            self.rotary_dim > 0 && self.rotary_dim.is_multiple_of(2),
            "RotaryEmbeddingConfig::init: rotary_dim must be even and positive, got {}",
            self.rotary_dim
        );
        assert!(
            self.base > 0.0,
            "RotaryEmbeddingConfig::init: base must be positive, got {}",
            self.base
        );

        let inv_freq: Vec<f32> = (0..self.rotary_dim / 2)
            .map(|i| self.base.powf(-2.0 * i as f64 / self.rotary_dim as f64) as f32)
            .collect();

        RotaryEmbedding {
            inv_freq: Tensor::from_floats(inv_freq.as_slice(), device),
            interleaved: self.interleaved,
        }
    }
}

/// Rotary position embedding: turns pairs of channels by an angle that grows with the position.
///
/// ```text
/// angle_i = position * base^(-2i / rotary_dim)
/// y_a = x_a * cos(angle_i) - x_b * sin(angle_i)
/// y_b = x_b * cos(angle_i) + x_a * sin(angle_i)
/// ```
///
/// Where:
/// - `(a, b)` is `(i, i + rotary_dim / 2)`, or `(2i, 2i + 1)` if interleaved
/// - channels from `rotary_dim` on are left as they are
///
/// From [RoFormer](https://arxiv.org/abs/2104.09864). burn-nn's `RotaryEncoding` knows only the
/// interleaved form over whole heads, at consecutive positions below a fixed maximum.
///
/// Should be created using [`RotaryEmbeddingConfig`].
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct RotaryEmbedding {
    /// Angle per position of each pair, `[rotary_dim / 2]`, radians.
    inv_freq: Tensor<1>,
    interleaved: bool,
}

impl RotaryEmbedding {
    /// Rotates the leading `rotary_dim` channels of every head.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, seq_len, heads, head_dim]`
    /// - positions: `[batch or 1, seq_len]`
    /// - output: `[batch, seq_len, heads, head_dim]`
    ///
    /// # Panics
    ///
    /// Panics if `head_dim` is below `rotary_dim` or `positions` has another length.
    pub fn forward(&self, x: Tensor<4>, positions: Tensor<2, Int>) -> Tensor<4> {
        let [batch, seq_len, heads, head_dim] = x.dims();
        assert_shape!(positions, [_, seq_len]);
        let rotary_dim = self.rotary_dim();
        assert!(
            rotary_dim <= head_dim,
            "RotaryEmbedding::forward: head_dim must be >= rotary_dim {rotary_dim}, got {head_dim}"
        );

        let (pairs, axis) = if self.interleaved {
            ([batch, seq_len, heads, rotary_dim / 2, 2], 4)
        } else {
            ([batch, seq_len, heads, 2, rotary_dim / 2], 3)
        };
        let (cos, sin) = self.cos_sin(positions, x.dtype().into());
        let (cos, sin) = (cos.unsqueeze_dim::<5>(axis), sin.unsqueeze_dim::<5>(axis));

        let rotated = x.clone().slice(s![.., .., .., ..rotary_dim]).reshape(pairs);
        let a = rotated.clone().narrow(axis, 0, 1);
        let b = rotated.narrow(axis, 1, 1);
        let rotated = Tensor::cat(
            vec![
                a.clone() * cos.clone() - b.clone() * sin.clone(),
                b * cos + a * sin,
            ],
            axis,
        )
        .reshape([batch, seq_len, heads, rotary_dim]);

        if rotary_dim == head_dim {
            return rotated;
        }
        Tensor::cat(vec![rotated, x.slice(s![.., .., .., rotary_dim..])], 3)
    }

    /// The number of leading channels that are rotated.
    pub fn rotary_dim(&self) -> usize {
        2 * self.inv_freq.dims()[0]
    }

    /// Cosines and sines, each `[batch or 1, seq_len, 1, rotary_dim / 2]`.
    fn cos_sin(&self, positions: Tensor<2, Int>, dtype: FloatDType) -> (Tensor<4>, Tensor<4>) {
        let [batch, seq_len] = positions.dims();
        // In f32 even for a 16-bit model, where positions above a few hundred are not exact.
        let angle = positions
            .float()
            .cast(FloatDType::F32)
            .reshape([batch, seq_len, 1, 1])
            * self.inv_freq.clone().unsqueeze();
        (angle.clone().cos().cast(dtype), angle.sin().cast(dtype))
    }
}

impl ModuleDisplay for RotaryEmbedding {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("rotary_dim", &self.rotary_dim())
            .add("interleaved", &self.interleaved)
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    /// One head at one position, in f64.
    fn rotate_by_hand(x: &[f32], rotary_dim: usize, interleaved: bool, position: f64) -> Vec<f32> {
        let mut y = x.to_vec();
        for i in 0..rotary_dim / 2 {
            let angle = position * 10000f64.powf(-2.0 * i as f64 / rotary_dim as f64);
            let (a, b) = if interleaved {
                (2 * i, 2 * i + 1)
            } else {
                (i, i + rotary_dim / 2)
            };
            let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
            y[a] = (xa * angle.cos() - xb * angle.sin()) as f32;
            y[b] = (xb * angle.cos() + xa * angle.sin()) as f32;
        }
        y
    }

    #[test]
    fn matches_the_formula_in_all_forms() {
        let device = Device::flex();
        let [batch, seq_len, heads, head_dim] = [2, 3, 2, 10];
        let x = Tensor::<4>::random(
            [batch, seq_len, heads, head_dim],
            Distribution::Default,
            &device,
        );
        let values = x.to_data().try_to_vec::<f32>().unwrap();
        let positions = [[0, 1, 2], [7, 300, 0]];

        for (rotary_dim, interleaved) in [(10, false), (10, true), (6, false), (6, true)] {
            let rotary = RotaryEmbeddingConfig::new(rotary_dim)
                .with_interleaved(interleaved)
                .init(&device);
            let y = rotary.forward(x.clone(), Tensor::from_ints(positions, &device));

            let expected: Vec<f32> = values
                .chunks(head_dim)
                .enumerate()
                .flat_map(|(row, head)| {
                    let (b, t) = (row / (seq_len * heads), row / heads % seq_len);
                    rotate_by_hand(head, rotary_dim, interleaved, f64::from(positions[b][t]))
                })
                .collect();
            let expected = Tensor::<1>::from_floats(expected.as_slice(), &device)
                .reshape([batch, seq_len, heads, head_dim]);
            y.to_data()
                .assert_approx_eq::<f32>(&expected.to_data(), Tolerance::absolute(2e-5));
        }
    }

    #[test]
    #[should_panic(expected = "rotary_dim must be even and positive, got 5")]
    fn an_odd_rotary_dim_is_refused() {
        RotaryEmbeddingConfig::new(5).init(&Device::flex());
    }
}
