//! RMS norm with a gate, over groups of columns: `rms(x silu(z)) gamma` or `rms(x) gamma silu(z)`,
//! where `rms(x) = x / sqrt(mean(x^2) + epsilon)` within a group.
//!
//! A task owns a tile of rows, each group of which is read twice while it is in the first-level
//! cache; forward keeps the gated values in between. The gradient of `gamma` is summed per tile,
//! then over the tiles in order.

use super::{
    rows::{Columns, Output, Rows},
    simd::{
        Kernel, LANES, Lanes, Vector, dispatch,
        math::{silu, silu_with_derivative},
    },
};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a task.
const TILE: usize = 64;

/// What [`forward`] reads.
#[derive(Clone, Copy, Debug)]
pub struct GatedNormInputs<'a> {
    /// `[rows, gamma.len()]`
    pub x: Rows<'a>,
    /// `[rows, gamma.len()]`, the gate before SiLU.
    pub z: Rows<'a>,
    /// Rows of `x`.
    pub rows: usize,
    /// The learnable scale; its length is at least 1.
    pub gamma: &'a [f32],
    /// Columns that are normalised together, a divisor of `gamma.len()`.
    pub group_size: usize,
    /// Whether the gate comes after the norm, as `rms(x) gamma silu(z)`.
    pub norm_before_gate: bool,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What [`backward`] returns.
#[derive(Clone, Debug)]
pub struct GatedNormGrads {
    /// `[rows, gamma.len()]`
    pub x: Vec<f32>,
    /// `[rows, gamma.len()]`
    pub z: Vec<f32>,
    /// `[gamma.len()]`
    pub gamma: Vec<f32>,
}

impl GatedNormInputs<'_> {
    fn check(&self, op: &str) {
        let width = self.gamma.len();
        assert!(width >= 1, "{op}: gamma must not be empty");
        assert!(
            self.group_size >= 1 && width.is_multiple_of(self.group_size),
            "{op}: group_size must divide {width}, got {}",
            self.group_size
        );
        self.x.check(op, "x", self.rows, width);
        self.z.check(op, "z", self.rows, width);
    }

    fn tile(&self, tile: usize) -> Range<usize> {
        tile * TILE..self.rows.min((tile + 1) * TILE)
    }

    /// `1 / sqrt(mean + epsilon)`, given the sum of squares in two parts.
    #[inline(always)]
    fn scale<V: Vector>(&self, squares: [V; 2]) -> f32 {
        let mean = (squares[0] + squares[1]).sum() / self.group_size as f32;
        1.0 / (mean + self.epsilon).sqrt()
    }
}

/// Columns of vector `vector` of the group that begins at `first`.
#[inline(always)]
fn columns(first: usize, group_size: usize, vector: usize) -> Range<usize> {
    let start = first + vector * LANES;
    start..(first + group_size).min(start + LANES)
}

/// The gated and normalised rows, `[rows, gamma.len()]`.
///
/// # Panics
/// If `x` or `z` does not hold its rows, `gamma` is empty, or `group_size` does not divide its
/// length.
pub fn forward(inputs: &GatedNormInputs) -> Vec<f32> {
    inputs.check("gated_rms_norm");
    let mut y = Output::new(inputs.rows, inputs.gamma.len());
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
    inputs: &'a GatedNormInputs<'a>,
    rows: Range<usize>,
    y: &'a Columns<'a>,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let GatedNormInputs {
            x,
            z,
            gamma,
            group_size,
            norm_before_gate,
            ..
        } = *self.inputs;
        let vectors = group_size.div_ceil(LANES);
        let mut normed = vec![Lanes::ZERO; vectors];
        for row in self.rows.clone() {
            for first in (0..gamma.len()).step_by(group_size) {
                // Two sums, so that one addition need not wait for the last.
                let mut squares = [V::zero(); 2];
                for (vector, normed) in normed.iter_mut().enumerate() {
                    let columns = columns(first, group_size, vector);
                    let mut x = V::load_padded(x.get(row, columns.clone()));
                    if !norm_before_gate {
                        x = x * silu(V::load_padded(z.get(row, columns)));
                    }
                    x.store(normed);
                    squares[vector % 2] = x.mul_add(x, squares[vector % 2]);
                }
                let scale = V::splat(self.inputs.scale(squares));
                for (vector, normed) in normed.iter().enumerate() {
                    let columns = columns(first, group_size, vector);
                    let mut y = V::load(normed) * scale * V::load_padded(&gamma[columns.clone()]);
                    if norm_before_gate {
                        y = y * silu(V::load_padded(z.get(row, columns.clone())));
                    }
                    // SAFETY: tiles have no row in common.
                    unsafe { self.y.write(row, &columns, y) };
                }
            }
        }
    }
}

/// Gradients of `x`, `z` and `gamma`, given that of `y` (`[rows, gamma.len()]`).
///
/// The result is the same, bit by bit, on every run and for any number of threads.
///
/// # Panics
/// As [`forward`], and if `grad_y` does not hold its rows.
pub fn backward(inputs: &GatedNormInputs, grad_y: Rows) -> GatedNormGrads {
    const OP: &str = "gated_rms_norm backward";
    inputs.check(OP);
    let width = inputs.gamma.len();
    grad_y.check(OP, "grad_y", inputs.rows, width);
    let (mut x, mut z) = (
        Output::new(inputs.rows, width),
        Output::new(inputs.rows, width),
    );
    let sinks = [x.columns(), z.columns()];
    let mut parts = vec![0.0; inputs.rows.div_ceil(TILE) * width];
    parts
        .par_chunks_mut(width)
        .enumerate()
        .for_each(|(tile, grad_gamma)| {
            dispatch(Backward {
                inputs,
                grad_y,
                rows: inputs.tile(tile),
                sinks: &sinks,
                grad_gamma,
            });
        });
    let mut gamma = vec![0.0; width];
    for part in parts.chunks_exact(width) {
        for (sum, value) in gamma.iter_mut().zip(part) {
            *sum += value;
        }
    }
    // SAFETY: as in `forward`.
    unsafe {
        GatedNormGrads {
            x: x.finish(),
            z: z.finish(),
            gamma,
        }
    }
}

struct Backward<'a> {
    inputs: &'a GatedNormInputs<'a>,
    grad_y: Rows<'a>,
    rows: Range<usize>,
    /// Gradients of `x` and `z`.
    sinks: &'a [Columns<'a>; 2],
    grad_gamma: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    /// With `v` what is normalised, `n = v scale` and `g` the gradient of `n`, that of `v` is
    /// `scale (g - n mean(g n))`.
    #[inline(always)]
    fn run<V: Vector>(self) {
        let GatedNormInputs {
            x,
            z,
            gamma,
            group_size,
            norm_before_gate,
            ..
        } = *self.inputs;
        let [to_x, to_z] = self.sinks;
        let one = V::splat(1.0);
        let mut gates = vec![[Lanes::ZERO; 2]; group_size.div_ceil(LANES)];
        for row in self.rows.clone() {
            for first in (0..gamma.len()).step_by(group_size) {
                let (mut squares, mut products) = ([V::zero(); 2], V::zero());
                for (vector, gates) in gates.iter_mut().enumerate() {
                    let columns = columns(first, group_size, vector);
                    let (gate, slope) =
                        silu_with_derivative(V::load_padded(z.get(row, columns.clone())));
                    gate.store(&mut gates[0]);
                    slope.store(&mut gates[1]);
                    let x = V::load_padded(x.get(row, columns.clone()));
                    let g = V::load_padded(self.grad_y.get(row, columns.clone()))
                        * V::load_padded(&gamma[columns]);
                    let (v, g) = if norm_before_gate {
                        (x, g * gate)
                    } else {
                        (x * gate, g)
                    };
                    squares[vector % 2] = v.mul_add(v, squares[vector % 2]);
                    products = v.mul_add(g, products);
                }
                let factor = self.inputs.scale(squares);
                let mean = V::splat(products.sum() * factor / group_size as f32);
                let scale = V::splat(factor);
                for (vector, [gate, slope]) in gates.iter().enumerate() {
                    let columns = columns(first, group_size, vector);
                    let (gate, slope) = (V::load(gate), V::load(slope));
                    let x = V::load_padded(x.get(row, columns.clone()));
                    let gamma = V::load_padded(&gamma[columns.clone()]);
                    let grad_y = V::load_padded(self.grad_y.get(row, columns.clone()));
                    let (inside, outside) = if norm_before_gate {
                        (one, gate)
                    } else {
                        (gate, one)
                    };
                    let n = x * inside * scale;
                    let grad_n = grad_y * outside;
                    let grad_v = n.neg_mul_add(mean, grad_n * gamma) * scale;
                    let grad_gate = if norm_before_gate {
                        grad_y * gamma * n
                    } else {
                        grad_v * x
                    };
                    let total = &mut self.grad_gamma[columns.clone()];
                    grad_n.mul_add(n, V::load_padded(total)).store_cut(total);
                    // SAFETY: tiles have no row in common.
                    unsafe {
                        to_x.write(row, &columns, grad_v * inside);
                        to_z.write(row, &columns, grad_gate * slope);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{simd::tests::with_each_set, testing::*};
    use super::*;

    const EPSILON: f32 = 1e-3;

    fn exact([x, z, gamma]: &[Vec<f64>; 3], group_size: usize, after: bool) -> Vec<f64> {
        let gate: Vec<f64> = z.iter().map(|z| z / (1.0 + (-z).exp())).collect();
        let groups = x.chunks(group_size).zip(gate.chunks(group_size));
        let mut y = Vec::new();
        for (i, (x, gate)) in groups.enumerate() {
            let gated = |j: usize| if after { x[j] } else { x[j] * gate[j] };
            let square = (0..group_size).map(|j| gated(j).powi(2)).sum::<f64>();
            let scale = 1.0 / (square / group_size as f64 + f64::from(EPSILON)).sqrt();
            for j in 0..group_size {
                let outside = if after { gate[j] } else { 1.0 };
                let gamma = gamma[(i * group_size + j) % gamma.len()];
                y.push(gated(j) * scale * gamma * outside);
            }
        }
        y
    }

    /// Rows inside wider ones, as a slice of a projection has them.
    fn widened(values: &[f32], width: usize) -> Vec<f32> {
        let padding = [f32::NAN; 3];
        let rows = values.chunks(width);
        rows.flat_map(|row| row.iter().chain(&padding).copied())
            .collect()
    }

    #[test]
    fn values_and_gradients_equal_the_definition_on_every_instruction_set() {
        for ([rows, width, group_size], after) in [
            [1, 1, 1],
            [3, 16, 16],
            [TILE + 5, 66, 33],
            [7, 128, 32],
            [2, 20, 4],
        ]
        .into_iter()
        .flat_map(|sizes| [(sizes, false), (sizes, true)])
        {
            let (x, z) = (noise(rows * width, 1), noise(rows * width, 2));
            let (gamma, grad_y) = (noise(width, 3), noise(rows * width, 4));
            let wide = [widened(&x, width), widened(&z, width)];
            let [wide_x, wide_z] = wide.each_ref().map(|data| Rows {
                data,
                row_stride: width + 3,
            });
            let inputs = GatedNormInputs {
                x: wide_x,
                z: wide_z,
                rows,
                gamma: &gamma,
                group_size,
                norm_before_gate: after,
                epsilon: EPSILON,
            };
            let mut values = [widen(&x), widen(&z), widen(&gamma)];
            let results = with_each_set(|| {
                let grad_y = Rows::contiguous(&grad_y, width);
                (forward(&inputs), backward(&inputs, grad_y))
            });
            for (set, (y, grads)) in results {
                let name = format!("{rows} x {width} / {group_size}, {after}, {set:?}");
                assert_close(&name, &y, &exact(&values, group_size, after), 1e-6);
                let loss = |values: &[Vec<f64>; 3]| dot(&exact(values, group_size, after), &grad_y);
                for (input, grad) in [grads.x, grads.z, grads.gamma].iter().enumerate() {
                    assert_gradient(&name, grad, &mut values, input, loss);
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let (rows, width) = (3 * TILE + 7, 40);
        let (x, z, grad_y) = (
            noise(rows * width, 1),
            noise(rows * width, 2),
            noise(rows * width, 3),
        );
        let inputs = GatedNormInputs {
            x: Rows::contiguous(&x, width),
            z: Rows::contiguous(&z, width),
            rows,
            gamma: &noise(width, 4),
            group_size: 20,
            norm_before_gate: false,
            epsilon: EPSILON,
        };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let grads = backward(&inputs, Rows::contiguous(&grad_y, width));
                (forward(&inputs), grads.x, grads.z, grads.gamma)
            })
        };
        assert_eq!(on(1), on(2));
    }

    #[test]
    #[should_panic(expected = "group_size must divide 4, got 3")]
    fn groups_that_do_not_fit_are_refused() {
        let rows = Rows::contiguous(&[1.0; 8], 4);
        forward(&GatedNormInputs {
            x: rows,
            z: rows,
            rows: 2,
            gamma: &[1.0; 4],
            group_size: 3,
            norm_before_gate: false,
            epsilon: EPSILON,
        });
    }
}
