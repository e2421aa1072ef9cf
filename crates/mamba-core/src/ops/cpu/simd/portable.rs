//! Plain arrays, for the compiler to vectorise with the baseline of the target (NEON on aarch64,
//! SSE2 on x86-64).

use super::{Arithmetic, LANES, Vector};
use std::{
    array::from_fn,
    ops::{Add, Mul, Sub},
};

#[derive(Clone, Copy)]
pub struct F32x16([f32; LANES]);

impl F32x16 {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(from_fn(|lane| f(self.0[lane])))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

impl Add for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |x, y| x + y)
    }
}

impl Sub for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |x, y| x - y)
    }
}

impl Mul for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |x, y| x * y)
    }
}

/// `f32::mul_add` is a library call where the baseline has no fused instruction.
#[inline(always)]
fn multiply_add(x: f32, factor: f32, term: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        x.mul_add(factor, term)
    } else {
        x * factor + term
    }
}

impl Arithmetic for F32x16 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(from_fn(|lane| {
            multiply_add(self.0[lane], factor.0[lane], term.0[lane])
        }))
    }

    #[inline(always)]
    fn neg_mul_add(self, factor: Self, term: Self) -> Self {
        Self(from_fn(|lane| {
            multiply_add(-self.0[lane], factor.0[lane], term.0[lane])
        }))
    }

    #[inline(always)]
    fn at_most(self, bound: Self) -> Self {
        self.zip(bound, |x, bound| if bound < x { bound } else { x })
    }

    #[inline(always)]
    fn at_least(self, bound: Self) -> Self {
        self.zip(bound, |x, bound| if bound > x { bound } else { x })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    fn select_negative(self, then: Self, otherwise: Self) -> Self {
        Self(from_fn(|lane| {
            if self.0[lane].is_sign_negative() {
                then.0[lane]
            } else {
                otherwise.0[lane]
            }
        }))
    }

    #[inline(always)]
    fn add_exponent(self, shifted: Self) -> Self {
        self.zip(shifted, |x, shifted| {
            f32::from_bits(x.to_bits().wrapping_add(shifted.to_bits() << 23))
        })
    }

    #[inline(always)]
    fn reciprocal(self) -> Self {
        self.map(|x| 1.0 / x)
    }
}

impl Vector for F32x16 {
    // Of a machine with 32 registers of 128 bits.
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn write(self, to: *mut f32) {
        unsafe { to.cast::<[f32; LANES]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn read_first(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; LANES];
        unsafe { lanes.as_mut_ptr().copy_from_nonoverlapping(from, count) };
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn write_first(self, to: *mut f32, count: usize) {
        unsafe { to.copy_from_nonoverlapping(self.0.as_ptr(), count) };
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let halves: [f32; 8] = from_fn(|lane| self.0[lane] + self.0[lane + 8]);
        let quarters: [f32; 4] = from_fn(|lane| halves[lane] + halves[lane + 4]);
        (quarters[0] + quarters[2]) + (quarters[1] + quarters[3])
    }

    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        from_fn(|column| Self(from_fn(|lane| rows[lane].0[column])))
    }

    #[inline(always)]
    fn sums(vectors: [Self; 4]) -> [f32; 4] {
        vectors.map(Self::sum)
    }
}
