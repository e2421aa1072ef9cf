//! The passes over one slab of logits: `[classes, tokens]`, one token a lane.

use super::super::simd::{Kernel, LANES, Lanes, Vector, math::exp_nonpositive};

/// Vectors that go down the classes together.
const STRIP: usize = 4;

/// Replaces each logit by `exp(logit - max)`, with the largest logit of its token in this slab, and
/// writes these maxima and the sums of the exponentials.
pub struct Exponentials<'a> {
    /// `[classes, tokens]`; the tokens are a multiple of [`LANES`].
    pub logits: &'a mut [f32],
    /// `[tokens]`.
    pub max: &'a mut [f32],
    /// `[tokens]`.
    pub sum: &'a mut [f32],
}

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let tokens = self.max.len();
        let strips = tokens - tokens % (STRIP * LANES);
        for first in (0..strips).step_by(STRIP * LANES) {
            self.strip::<V, STRIP>(first);
        }
        for first in (strips..tokens).step_by(LANES) {
            self.strip::<V, 1>(first);
        }
    }
}

impl Exponentials<'_> {
    #[inline(always)]
    fn strip<V: Vector, const N: usize>(&mut self, first: usize) {
        let tokens = self.max.len();
        let mut max = [V::splat(f32::NEG_INFINITY); N];
        for row in self.logits.chunks_exact(tokens) {
            let (row, _) = row[first..first + N * LANES].as_chunks();
            for i in 0..N {
                max[i] = V::load_array(&row[i]).at_least(max[i]);
            }
        }
        let mut sum = [V::zero(); N];
        for row in self.logits.chunks_exact_mut(tokens) {
            let (row, _) = row[first..first + N * LANES].as_chunks_mut();
            for i in 0..N {
                let value = exp_nonpositive(V::load_array(&row[i]) - max[i]);
                value.store_array(&mut row[i]);
                sum[i] = sum[i] + value;
            }
        }
        for i in 0..N {
            max[i].store_cut(&mut self.max[first + i * LANES..]);
            sum[i].store_cut(&mut self.sum[first + i * LANES..]);
        }
    }
}

/// Multiplies the column of each token by its factor.
pub struct Scale<'a> {
    /// `[classes, tokens]`.
    pub values: &'a mut [f32],
    /// The factors, [`LANES`] tokens each.
    pub factors: &'a [Lanes],
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for row in self.values.chunks_exact_mut(self.factors.len() * LANES) {
            let (row, _) = row.as_chunks_mut();
            for (value, factor) in row.iter_mut().zip(self.factors) {
                (V::load_array(value) * V::load(factor)).store_array(value);
            }
        }
    }
}
