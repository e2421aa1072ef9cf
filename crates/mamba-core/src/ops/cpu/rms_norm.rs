//! `y = x / sqrt(mean(x^2) + epsilon) * gamma` over rows.
//!
//! A task owns a tile of rows, each read twice while it is in the first-level cache. The gradient
//! of `gamma` is summed per tile, then over the tiles in order.

use super::{
    rows::{Columns, Output, Rows},
    simd::{Kernel, LANES, Vector, dispatch},
};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a task.
const TILE: usize = 64;

/// What [`forward`] reads.
#[derive(Clone, Copy, Debug)]
pub struct NormInputs<'a> {
    /// `[rows, gamma.len()]`
    pub x: Rows<'a>,
    /// Rows of `x`.
    pub rows: usize,
    /// The learnable scale; its length is the size of the normalised axis, at least 1.
    pub gamma: &'a [f32],
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What [`backward`] returns.
#[derive(Clone, Debug)]
pub struct NormGrads {
    /// `[rows, gamma.len()]`
    pub x: Vec<f32>,
    /// `[gamma.len()]`
    pub gamma: Vec<f32>,
}

impl NormInputs<'_> {
    fn check(&self) {
        assert!(!self.gamma.is_empty(), "rms_norm: gamma must not be empty");
        self.x.check("rms_norm", "x", self.rows, self.gamma.len());
    }

    fn tile(&self, tile: usize) -> Range<usize> {
        tile * TILE..self.rows.min((tile + 1) * TILE)
    }

    /// `1 / sqrt(mean(x^2) + epsilon)`
    #[inline(always)]
    fn scale<V: Vector>(&self, x: &[f32]) -> f32 {
        // Two sums, so that one addition need not wait for the last.
        let mut sums = [V::zero(); 2];
        for (i, x) in x.chunks(LANES).enumerate() {
            let x = V::load_padded(x);
            sums[i % 2] = x.mul_add(x, sums[i % 2]);
        }
        let mean = (sums[0] + sums[1]).sum() / x.len() as f32;
        1.0 / (mean + self.epsilon).sqrt()
    }
}

/// The normalised rows, `[rows, gamma.len()]`.
///
/// # Panics
/// If `x` does not hold its rows, or `gamma` is empty.
pub fn forward(inputs: &NormInputs) -> Vec<f32> {
    inputs.check();
    let d_model = inputs.gamma.len();
    let mut y = Output::new(inputs.rows, d_model);
    let sink = y.columns();
    (0..inputs.rows.div_ceil(TILE))
        .into_par_iter()
        .for_each(|tile| {
            dispatch(Forward {
                inputs,
                rows: inputs.tile(tile),
                y: &sink,
            });
        });
    // SAFETY: the tiles cover all rows, and each task writes all of its rows.
    unsafe { y.finish() }
}

struct Forward<'a> {
    inputs: &'a NormInputs<'a>,
    rows: Range<usize>,
    y: &'a Columns<'a>,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let NormInputs { x, gamma, .. } = *self.inputs;
        for row in self.rows.clone() {
            let x = x.get(row, 0..gamma.len());
            let scale = V::splat(self.inputs.scale::<V>(x));
            for first in (0..gamma.len()).step_by(LANES) {
                let columns = first..gamma.len().min(first + LANES);
                let x = V::load_padded(&x[columns.clone()]);
                let y = x * scale * V::load_padded(&gamma[columns.clone()]);
                // SAFETY: tiles have no row in common.
                unsafe { self.y.write(row, &columns, y) };
            }
        }
    }
}

/// Gradients of `x` and `gamma`, given that of `y` (`[rows, gamma.len()]`).
///
/// The result is the same, bit by bit, on every run and for any number of threads.
///
/// # Panics
/// If `x` or `grad_y` does not hold its rows, or `gamma` is empty.
pub fn backward(inputs: &NormInputs, grad_y: Rows) -> NormGrads {
    inputs.check();
    let d_model = inputs.gamma.len();
    grad_y.check("rms_norm", "grad_y", inputs.rows, d_model);
    let mut x = Output::new(inputs.rows, d_model);
    let sink = x.columns();
    let mut parts = vec![0.0; inputs.rows.div_ceil(TILE) * d_model];
    parts
        .par_chunks_mut(d_model)
        .enumerate()
        .for_each(|(tile, grad_gamma)| {
            dispatch(Backward {
                inputs,
                grad_y,
                rows: inputs.tile(tile),
                grad_x: &sink,
                grad_gamma,
            });
        });
    let mut gamma = vec![0.0; d_model];
    for part in parts.chunks_exact(d_model) {
        for (sum, value) in gamma.iter_mut().zip(part) {
            *sum += value;
        }
    }
    NormGrads {
        // SAFETY: as in `forward`.
        x: unsafe { x.finish() },
        gamma,
    }
}

struct Backward<'a> {
    inputs: &'a NormInputs<'a>,
    grad_y: Rows<'a>,
    rows: Range<usize>,
    grad_x: &'a Columns<'a>,
    grad_gamma: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    /// With `n = x scale` and `g = grad_y gamma`: `grad_gamma = sum(grad_y n)`, and
    /// `grad_x = scale (g - n mean(g n))`.
    #[inline(always)]
    fn run<V: Vector>(self) {
        let NormInputs { x, gamma, .. } = *self.inputs;
        let width = gamma.len();
        for row in self.rows.clone() {
            let (x, grad_y) = (x.get(row, 0..width), self.grad_y.get(row, 0..width));
            let factor = self.inputs.scale::<V>(x);
            let scale = V::splat(factor);
            let mut sum = V::zero();
            for first in (0..width).step_by(LANES) {
                let columns = first..width.min(first + LANES);
                let n = V::load_padded(&x[columns.clone()]) * scale;
                let n_grad = n * V::load_padded(&grad_y[columns.clone()]);
                sum = n_grad.mul_add(V::load_padded(&gamma[columns.clone()]), sum);
                let total = &mut self.grad_gamma[columns];
                (V::load_padded(total) + n_grad).store_cut(total);
            }
            let mean = V::splat(sum.sum() / width as f32);
            for first in (0..width).step_by(LANES) {
                let columns = first..width.min(first + LANES);
                let n = V::load_padded(&x[columns.clone()]) * scale;
                let grad_y = V::load_padded(&grad_y[columns.clone()]);
                let g = grad_y * V::load_padded(&gamma[columns.clone()]);
                let grad = n.neg_mul_add(mean, g) * scale;
                // SAFETY: tiles have no row in common.
                unsafe { self.grad_x.write(row, &columns, grad) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const EPSILON: f32 = 1e-3;

    fn exact([x, gamma]: &[Vec<f64>; 2]) -> Vec<f64> {
        x.chunks(gamma.len())
            .flat_map(|row| {
                let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
                let scale = 1.0 / (square + f64::from(EPSILON)).sqrt();
                row.iter()
                    .zip(gamma)
                    .map(move |(x, gamma)| x * scale * gamma)
            })
            .collect()
    }

    #[test]
    fn values_and_gradients_equal_the_definition() {
        for [rows, width] in [[1, 1], [3, 16], [TILE + 5, 33], [7, 128]] {
            // Rows inside wider ones, as a slice of a projection has them.
            let stride = width + 3;
            let wide = noise(rows * stride, 1);
            let (gamma, grad_y) = (noise(width, 2), noise(rows * width, 3));
            let x: Vec<f32> = wide
                .chunks(stride)
                .flat_map(|row| row[..width].to_vec())
                .collect();
            let inputs = NormInputs {
                x: Rows {
                    data: &wide,
                    row_stride: stride,
                },
                rows,
                gamma: &gamma,
                epsilon: EPSILON,
            };
            let mut values = [widen(&x), widen(&gamma)];
            let name = format!("{rows} x {width}");
            assert_close(&name, &forward(&inputs), &exact(&values), 1e-6);
            let grads = backward(&inputs, Rows::contiguous(&grad_y, width));
            let loss = |values: &[Vec<f64>; 2]| dot(&exact(values), &grad_y);
            assert_gradient(&name, &grads.x, &mut values, 0, loss);
            assert_gradient(&name, &grads.gamma, &mut values, 1, loss);
        }
    }

    #[test]
    #[should_panic(expected = "grad_y needs 8 values, got 7")]
    fn a_short_gradient_is_refused() {
        let inputs = NormInputs {
            x: Rows::contiguous(&[1.0; 8], 4),
            rows: 2,
            gamma: &[1.0; 4],
            epsilon: EPSILON,
        };
        backward(&inputs, Rows::contiguous(&[1.0; 7], 4));
    }
}
