//! What needs the decay between each pair of positions, and passes over whole matrices of a head.

use super::super::super::simd::{Kernel, LANES, Lanes, Vector, dispatch};
use super::super::CHECKPOINT_INTERVAL;
use super::super::padded::Padded;
use super::super::positions::{PerPosition, Positions, from_lane};

/// Given `x_s . grad_y_t`: the gradients of scores, what pairs of positions have to do with those of
/// decays, and scores times decays in place of what was given.
pub struct Weigh<'a> {
    pub positions: &'a Positions,
    pub scores: &'a Padded,
    pub len: usize,
    /// `x_s . grad_y_t`, then the weights.
    pub weights: &'a mut Padded,
    /// Gradients of the scores, added to.
    pub grad_scores: &'a mut Padded,
    /// At `t`, the sum over all pairs of a position before `t` with one not before it.
    pub across: &'a mut PerPosition,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    /// A pair's gradient by the logarithm of its decay counts for each step between the two. Sums
    /// are taken over the earlier position first, lane by lane, as differences of sums would cancel.
    #[inline(always)]
    fn run<V: Vector>(self) {
        const VECTORS: usize = CHECKPOINT_INTERVAL / LANES;
        let mut so_far = [Lanes::ZERO; VECTORS];
        let across = self.across.values_mut();
        across.fill(0.0);
        for first in (0..self.len).step_by(4) {
            let mut sums = [V::zero(); 4];
            for i in 0..4 {
                let s = first + i;
                let dt = V::splat(self.positions.dt.values()[s]);
                let scores = self.scores.row(s);
                let weights = self.weights.row_mut(s);
                let grad_scores = self.grad_scores.row_mut(s);
                for vector in s / LANES..self.len / LANES {
                    let decay = self.positions.decays_from::<V>(s, vector);
                    let score = V::load(&scores[vector]);
                    let grad = V::load(&weights[vector]) * dt * decay;
                    (score * decay).store(&mut weights[vector]);
                    (V::load(&grad_scores[vector]) + grad).store(&mut grad_scores[vector]);
                    let mut sum = grad.mul_add(score, V::load(&so_far[vector]));
                    sum.store(&mut so_far[vector]);
                    if vector == s / LANES {
                        sum = from_lane::<V>(s % LANES + 1, sum, V::zero());
                    }
                    sums[i] = sums[i] + sum;
                }
            }
            let sums = V::sums(sums);
            for i in 0..4 {
                if let Some(across) = across.get_mut(first + i + 1) {
                    *across = sums[i];
                }
            }
        }
    }
}

/// The scalar product of two matrices.
pub fn dot(x: &Padded, y: &Padded) -> f32 {
    dispatch(Dot(x.vectors_of_all(), y.vectors_of_all()))
}

struct Dot<'a>(&'a [Lanes], &'a [Lanes]);

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let mut sums = [V::zero(); 4];
        for (i, (x, y)) in self.0.iter().zip(self.1).enumerate() {
            sums[i % 4] = V::load(x).mul_add(V::load(y), sums[i % 4]);
        }
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
    }
}
