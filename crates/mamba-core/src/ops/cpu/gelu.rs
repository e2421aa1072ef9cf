//! GELU in the form with tanh, as in GPT-2, value by value.

use super::{
    rows::{Output, check_len},
    simd::{
        Kernel, LANES, Vector, dispatch,
        math::{gelu, gelu_derivative},
    },
};
use rayon::prelude::*;

/// Values of a task: 64 KiB, so that a task is not over before the next one is found.
const AT_ONCE: usize = 1 << 14;

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
pub fn forward(x: &[f32]) -> Vec<f32> {
    map([x], Forward)
}

/// The gradient of `x`, given that of the result.
///
/// # Panics
/// If the two are not of one length.
pub fn backward(x: &[f32], grad_y: &[f32]) -> Vec<f32> {
    check_len("gelu", "grad_y", grad_y, x.len());
    map([x, grad_y], Backward)
}

/// What becomes of the values at one place.
trait Pointwise<const N: usize>: Copy + Sync {
    fn at<V: Vector>(self, values: [V; N]) -> V;
}

#[derive(Clone, Copy)]
struct Forward;

impl Pointwise<1> for Forward {
    #[inline(always)]
    fn at<V: Vector>(self, [x]: [V; 1]) -> V {
        gelu(x)
    }
}

#[derive(Clone, Copy)]
struct Backward;

impl Pointwise<2> for Backward {
    #[inline(always)]
    fn at<V: Vector>(self, [x, grad_y]: [V; 2]) -> V {
        grad_y * gelu_derivative(x)
    }
}

fn map<const N: usize>(inputs: [&[f32]; N], work: impl Pointwise<N>) -> Vec<f32> {
    let len = inputs[0].len();
    let mut y = Output::new(len, 1);
    let sink = y.columns();
    (0..len.div_ceil(AT_ONCE)).into_par_iter().for_each(|task| {
        let part = task * AT_ONCE..len.min((task + 1) * AT_ONCE);
        dispatch(Part {
            inputs: inputs.map(|it| &it[part.clone()]),
            to: sink.block(&part, &(0..1)),
            work,
        });
    });
    // SAFETY: the parts cover the output, and each task writes all of its part.
    unsafe { y.finish() }
}

struct Part<'a, const N: usize, W> {
    inputs: [&'a [f32]; N],
    /// As many values, this task's alone.
    to: *mut f32,
    work: W,
}

impl<const N: usize, W: Pointwise<N>> Kernel for Part<'_, N, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let len = self.inputs[0].len();
        for first in (0..len).step_by(LANES) {
            let places = first..len.min(first + LANES);
            let mut values = [V::zero(); N];
            for i in 0..N {
                values[i] = V::load_padded(&self.inputs[i][places.clone()]);
            }
            let y = self.work.at(values);
            // SAFETY: places of this task's part.
            unsafe { y.write_first(self.to.add(first), places.len()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn exact(x: f64) -> f64 {
        let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / 2.0 * (1.0 + z.tanh())
    }

    #[test]
    fn values_and_gradients_equal_the_definition() {
        let mut x = noise(3 * AT_ONCE + 7, 1);
        x.iter_mut().for_each(|x| *x *= 6.0);
        x[..6].copy_from_slice(&[0.0, -0.0, 1e4, -1e4, 30.0, -30.0]);
        let want: Vec<f64> = widen(&x).into_iter().map(exact).collect();
        let got = forward(&x);
        for ((x, got), want) in x.iter().zip(&got).zip(&want) {
            let error = (f64::from(*got) - want).abs();
            assert!(
                error <= 2e-6 * want.abs().max(1e-3),
                "{got} for {want} at {x}"
            );
        }
        let weights = noise(x.len(), 2);
        let slope = |x: f64| (exact(x + 1e-5) - exact(x - 1e-5)) / 2e-5;
        let want: Vec<f64> = widen(&x).into_iter().map(slope).collect();
        let want: Vec<f64> = want
            .iter()
            .zip(&weights)
            .map(|(a, b)| a * f64::from(*b))
            .collect();
        assert_close("gelu", &backward(&x, &weights), &want, 2e-6);
    }

    #[test]
    fn what_is_not_finite_stays() {
        let y = forward(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        assert!(y[0].is_nan() && y[1] == f32::INFINITY);
        let grads = backward(&[f32::NAN, 1e20, -1e20, 0.0], &[1.0, 1.0, 1.0, f32::NAN]);
        assert!(grads[0].is_nan() && grads[3].is_nan());
        assert!(grads[1] == 1.0 && grads[2].abs() < 1e-30, "{grads:?}");
    }
}
