//! `-e^x` in place: decay rates from their logarithms, which every step needs.

use super::simd::{Kernel, LANES, Lockstep, Vector, dispatch, math::exp};

/// Vectors in lock-step, as an exponential waits for itself.
const TOGETHER: usize = 4;

/// Makes `-e^x` of every value, on the calling thread.
pub fn negative_exp(values: &mut [f32]) {
    dispatch(NegativeExp(values));
}

struct NegativeExp<'a>(&'a mut [f32]);

impl Kernel for NegativeExp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for values in self.0.chunks_mut(TOGETHER * LANES) {
            let mut x = Lockstep([V::zero(); TOGETHER]);
            for (x, values) in x.0.iter_mut().zip(values.chunks(LANES)) {
                *x = V::load_padded(values);
            }
            let y = Lockstep([V::zero(); TOGETHER]) - exp(x);
            for (y, values) in y.0.iter().zip(values.chunks_mut(LANES)) {
                y.store_cut(values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, widen};
    use super::*;

    #[test]
    fn rates_of_any_number_equal_the_definition() {
        for len in [0, 1, 16, 63, 64, 65, 200] {
            let mut values: Vec<f32> = noise(len, 1).iter().map(|x| 4.0 * x).collect();
            let want: Vec<f64> = widen(&values).iter().map(|x| -x.exp()).collect();
            negative_exp(&mut values);
            assert_close("rates", &values, &want, 4e-7);
        }
    }
}
