//! Several vectors at once.

use super::Arithmetic;
use std::ops::{Add, Mul, Sub};

/// Vectors that go through the same operations in lock-step.
///
/// An elementary function is one long chain of dependent instructions, and a machine looks only
/// about a hundred instructions ahead for others to run meanwhile: one after the other, the
/// functions of two vectors hardly overlap.
#[derive(Clone, Copy)]
pub struct Lockstep<A, const N: usize>(pub [A; N]);

// Loops, as closures handed to `std::array` might not be inlined.
macro_rules! each {
    ($first:expr, |$i:ident| $value:expr) => {{
        let mut result = $first;
        for $i in 0..N {
            result.0[$i] = $value;
        }
        result
    }};
}

impl<A: Arithmetic, const N: usize> Add for Lockstep<A, N> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        each!(self, |i| self.0[i] + other.0[i])
    }
}

impl<A: Arithmetic, const N: usize> Sub for Lockstep<A, N> {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        each!(self, |i| self.0[i] - other.0[i])
    }
}

impl<A: Arithmetic, const N: usize> Mul for Lockstep<A, N> {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        each!(self, |i| self.0[i] * other.0[i])
    }
}

impl<A: Arithmetic, const N: usize> Arithmetic for Lockstep<A, N> {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([A::splat(value); N])
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        each!(self, |i| self.0[i].mul_add(factor.0[i], term.0[i]))
    }

    #[inline(always)]
    fn neg_mul_add(self, factor: Self, term: Self) -> Self {
        each!(self, |i| self.0[i].neg_mul_add(factor.0[i], term.0[i]))
    }

    #[inline(always)]
    fn at_most(self, bound: Self) -> Self {
        each!(self, |i| self.0[i].at_most(bound.0[i]))
    }

    #[inline(always)]
    fn at_least(self, bound: Self) -> Self {
        each!(self, |i| self.0[i].at_least(bound.0[i]))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        each!(self, |i| self.0[i].abs())
    }

    #[inline(always)]
    fn select_negative(self, then: Self, otherwise: Self) -> Self {
        each!(self, |i| self.0[i]
            .select_negative(then.0[i], otherwise.0[i]))
    }

    #[inline(always)]
    fn add_exponent(self, shifted: Self) -> Self {
        each!(self, |i| self.0[i].add_exponent(shifted.0[i]))
    }

    #[inline(always)]
    fn split(self) -> (Self, Self) {
        let (mut fractions, mut integers) = (self, self);
        for i in 0..N {
            (fractions.0[i], integers.0[i]) = self.0[i].split();
        }
        (fractions, integers)
    }

    #[inline(always)]
    fn scale(self, integer: Self) -> Self {
        each!(self, |i| self.0[i].scale(integer.0[i]))
    }

    #[inline(always)]
    fn reciprocal(self) -> Self {
        each!(self, |i| self.0[i].reciprocal())
    }
}
