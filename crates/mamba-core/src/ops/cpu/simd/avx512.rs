//! One 512-bit register.
//!
//! SAFETY of every block: a value of this type exists only under `dispatch`, which has detected
//! the features; `read` and `write` pass their contract on.

use super::{Arithmetic, LANES, Vector, avx2::sums_of_halves};
use std::{
    arch::x86_64::*,
    ops::{Add, Mul, Sub},
};

#[derive(Clone, Copy)]
pub struct F32x16(__m512);

impl F32x16 {
    #[inline(always)]
    unsafe fn add_halves(self) -> __m256 {
        unsafe {
            _mm256_add_ps(
                _mm512_castps512_ps256(self.0),
                _mm512_extractf32x8_ps::<1>(self.0),
            )
        }
    }
}

impl Add for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
}

impl Sub for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
}

impl Mul for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
}

impl Arithmetic for F32x16 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
    }

    #[inline(always)]
    fn neg_mul_add(self, factor: Self, term: Self) -> Self {
        Self(unsafe { _mm512_fnmadd_ps(self.0, factor.0, term.0) })
    }

    // The instruction returns its second operand when one is NaN.
    #[inline(always)]
    fn at_most(self, bound: Self) -> Self {
        Self(unsafe { _mm512_min_ps(bound.0, self.0) })
    }

    #[inline(always)]
    fn at_least(self, bound: Self) -> Self {
        Self(unsafe { _mm512_max_ps(bound.0, self.0) })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn select_negative(self, then: Self, otherwise: Self) -> Self {
        Self(unsafe {
            let negative = _mm512_movepi32_mask(_mm512_castps_si512(self.0));
            _mm512_mask_blend_ps(negative, otherwise.0, then.0)
        })
    }

    #[inline(always)]
    fn add_exponent(self, shifted: Self) -> Self {
        Self(unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted.0));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), exponent))
        })
    }

    /// The estimate has 14 good bits; one Newton step doubles them.
    #[inline(always)]
    fn reciprocal(self) -> Self {
        let estimate = Self(unsafe { _mm512_rcp14_ps(self.0) });
        let error = self.neg_mul_add(estimate, Self::splat(1.0));
        estimate.mul_add(error, estimate)
    }

    #[inline(always)]
    fn split(self) -> (Self, Self) {
        let fraction = Self(unsafe { _mm512_reduce_ps::<8>(self.0) });
        (fraction, self - fraction)
    }

    /// The instruction clamps as well.
    #[inline(always)]
    fn scale(self, integer: Self) -> Self {
        Self(unsafe { _mm512_scalef_ps(self.0, integer.0) })
    }
}

impl Vector for F32x16 {
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn write(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    // A mask costs nothing, where two ways with a branch between them would.
    #[inline(always)]
    unsafe fn read_first(from: *const f32, count: usize) -> Self {
        Self(unsafe { _mm512_maskz_loadu_ps(first(count), from) })
    }

    #[inline(always)]
    unsafe fn write_first(self, to: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, first(count), self.0) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    /// Squares of four by four in each quarter of the registers, then the quarters.
    #[inline(always)]
    fn transpose(mut rows: [Self; LANES]) -> [Self; LANES] {
        unsafe {
            for i in (0..LANES).step_by(4) {
                let [a, b, c, d] = [rows[i].0, rows[i + 1].0, rows[i + 2].0, rows[i + 3].0];
                let low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let low_after = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let high_after = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                rows[i] = Self(_mm512_castpd_ps(_mm512_unpacklo_pd(low, low_after)));
                rows[i + 1] = Self(_mm512_castpd_ps(_mm512_unpackhi_pd(low, low_after)));
                rows[i + 2] = Self(_mm512_castpd_ps(_mm512_unpacklo_pd(high, high_after)));
                rows[i + 3] = Self(_mm512_castpd_ps(_mm512_unpackhi_pd(high, high_after)));
            }
            let mut columns = rows;
            for i in 0..4 {
                let [a, b, c, d] = [rows[i].0, rows[i + 4].0, rows[i + 8].0, rows[i + 12].0];
                let even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let even_after = _mm512_shuffle_f32x4::<0x88>(c, d);
                let odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let odd_after = _mm512_shuffle_f32x4::<0xdd>(c, d);
                columns[i] = Self(_mm512_shuffle_f32x4::<0x88>(even, even_after));
                columns[i + 4] = Self(_mm512_shuffle_f32x4::<0x88>(odd, odd_after));
                columns[i + 8] = Self(_mm512_shuffle_f32x4::<0xdd>(even, even_after));
                columns[i + 12] = Self(_mm512_shuffle_f32x4::<0xdd>(odd, odd_after));
            }
            columns
        }
    }

    #[inline(always)]
    fn sums([x, y, z, w]: [Self; 4]) -> [f32; 4] {
        unsafe {
            sums_of_halves(
                x.add_halves(),
                y.add_halves(),
                z.add_halves(),
                w.add_halves(),
            )
        }
    }
}

/// The mask of the first `count` lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count) - 1) as __mmask16
}
