//! Two 256-bit registers.
//!
//! SAFETY of every block: a value of this type exists only under `dispatch`, which has detected
//! the features; `read` and `write` pass their contract on.

use super::{Arithmetic, LANES, Vector};
use std::{
    arch::x86_64::*,
    ops::{Add, Mul, Sub},
};

#[derive(Clone, Copy)]
pub struct F32x16(__m256, __m256);

impl Add for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe {
            Self(
                _mm256_add_ps(self.0, other.0),
                _mm256_add_ps(self.1, other.1),
            )
        }
    }
}

impl Sub for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe {
            Self(
                _mm256_sub_ps(self.0, other.0),
                _mm256_sub_ps(self.1, other.1),
            )
        }
    }
}

impl Mul for F32x16 {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe {
            Self(
                _mm256_mul_ps(self.0, other.0),
                _mm256_mul_ps(self.1, other.1),
            )
        }
    }
}

#[inline(always)]
unsafe fn add_exponent(x: __m256, shifted: __m256) -> __m256 {
    unsafe {
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent))
    }
}

impl Arithmetic for F32x16 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        let half = unsafe { _mm256_set1_ps(value) };
        Self(half, half)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, factor.0, term.0),
                _mm256_fmadd_ps(self.1, factor.1, term.1),
            )
        }
    }

    #[inline(always)]
    fn neg_mul_add(self, factor: Self, term: Self) -> Self {
        unsafe {
            Self(
                _mm256_fnmadd_ps(self.0, factor.0, term.0),
                _mm256_fnmadd_ps(self.1, factor.1, term.1),
            )
        }
    }

    // The instruction returns its second operand when one is NaN.
    #[inline(always)]
    fn at_most(self, bound: Self) -> Self {
        unsafe {
            Self(
                _mm256_min_ps(bound.0, self.0),
                _mm256_min_ps(bound.1, self.1),
            )
        }
    }

    #[inline(always)]
    fn at_least(self, bound: Self) -> Self {
        unsafe {
            Self(
                _mm256_max_ps(bound.0, self.0),
                _mm256_max_ps(bound.1, self.1),
            )
        }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(
                _mm256_andnot_ps(sign, self.0),
                _mm256_andnot_ps(sign, self.1),
            )
        }
    }

    #[inline(always)]
    fn select_negative(self, then: Self, otherwise: Self) -> Self {
        unsafe {
            Self(
                _mm256_blendv_ps(otherwise.0, then.0, self.0),
                _mm256_blendv_ps(otherwise.1, then.1, self.1),
            )
        }
    }

    #[inline(always)]
    fn add_exponent(self, shifted: Self) -> Self {
        unsafe {
            Self(
                add_exponent(self.0, shifted.0),
                add_exponent(self.1, shifted.1),
            )
        }
    }

    #[inline(always)]
    fn reciprocal(self) -> Self {
        unsafe {
            let one = _mm256_set1_ps(1.0);
            Self(_mm256_div_ps(one, self.0), _mm256_div_ps(one, self.1))
        }
    }
}

impl Vector for F32x16 {
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(LANES / 2))) }
    }

    #[inline(always)]
    unsafe fn write(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(LANES / 2), self.1);
        }
    }

    // Masked stores are slow on some machines.
    #[inline(always)]
    unsafe fn read_first(from: *const f32, count: usize) -> Self {
        unsafe {
            if count == LANES {
                return Self::read(from);
            }
            let (low, high) = first(count);
            Self(
                _mm256_maskload_ps(from, low),
                _mm256_maskload_ps(from.wrapping_add(LANES / 2), high),
            )
        }
    }

    #[inline(always)]
    unsafe fn write_first(self, to: *mut f32, count: usize) {
        unsafe {
            if count == LANES {
                return self.write(to);
            }
            let (low, high) = first(count);
            _mm256_maskstore_ps(to, low, self.0);
            _mm256_maskstore_ps(to.wrapping_add(LANES / 2), high, self.1);
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let half = _mm256_add_ps(self.0, self.1);
            let quarter = _mm_add_ps(
                _mm256_castps256_ps128(half),
                _mm256_extractf128_ps::<1>(half),
            );
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }

    /// Each quarter by itself; two of them change places.
    #[inline(always)]
    fn transpose(mut rows: [Self; LANES]) -> [Self; LANES] {
        const HALF: usize = LANES / 2;
        unsafe {
            let (mut left, mut right) = ([_mm256_setzero_ps(); HALF], [_mm256_setzero_ps(); HALF]);
            for i in 0..HALF {
                (left[i], right[i]) = (rows[i].0, rows[i].1);
            }
            let (top_left, top_right) = (transpose_quarter(left), transpose_quarter(right));
            for i in 0..HALF {
                (left[i], right[i]) = (rows[HALF + i].0, rows[HALF + i].1);
            }
            let (low_left, low_right) = (transpose_quarter(left), transpose_quarter(right));
            for i in 0..HALF {
                rows[i] = Self(top_left[i], low_left[i]);
                rows[HALF + i] = Self(top_right[i], low_right[i]);
            }
            rows
        }
    }

    #[inline(always)]
    fn sums([x, y, z, w]: [Self; 4]) -> [f32; 4] {
        unsafe {
            sums_of_halves(
                _mm256_add_ps(x.0, x.1),
                _mm256_add_ps(y.0, y.1),
                _mm256_add_ps(z.0, z.1),
                _mm256_add_ps(w.0, w.1),
            )
        }
    }
}

/// The masks of the first `count` lanes, at most all.
#[inline(always)]
unsafe fn first(count: usize) -> (__m256i, __m256i) {
    unsafe {
        let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let count = _mm256_set1_epi32(count as i32);
        let high = _mm256_sub_epi32(count, _mm256_set1_epi32(LANES as i32 / 2));
        (
            _mm256_cmpgt_epi32(count, lane),
            _mm256_cmpgt_epi32(high, lane),
        )
    }
}

/// Rows of eight as columns: squares of four by four in each half of the registers, then the halves.
#[inline(always)]
unsafe fn transpose_quarter(mut rows: [__m256; LANES / 2]) -> [__m256; LANES / 2] {
    unsafe {
        for i in [0, 4] {
            let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
            let low = _mm256_unpacklo_ps(a, b);
            let high = _mm256_unpackhi_ps(a, b);
            let low_after = _mm256_unpacklo_ps(c, d);
            let high_after = _mm256_unpackhi_ps(c, d);
            rows[i] = _mm256_shuffle_ps::<0x44>(low, low_after);
            rows[i + 1] = _mm256_shuffle_ps::<0xee>(low, low_after);
            rows[i + 2] = _mm256_shuffle_ps::<0x44>(high, high_after);
            rows[i + 3] = _mm256_shuffle_ps::<0xee>(high, high_after);
        }
        let mut columns = rows;
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(rows[i], rows[i + 4]);
            columns[i + 4] = _mm256_permute2f128_ps::<0x31>(rows[i], rows[i + 4]);
        }
        columns
    }
}

/// The sums of four vectors whose halves were added.
#[inline(always)]
pub unsafe fn sums_of_halves(x: __m256, y: __m256, z: __m256, w: __m256) -> [f32; 4] {
    unsafe {
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(x, y), _mm256_hadd_ps(z, w));
        let sums = _mm_add_ps(
            _mm256_castps256_ps128(pairs),
            _mm256_extractf128_ps::<1>(pairs),
        );
        let mut array = [0.0; 4];
        _mm_storeu_ps(array.as_mut_ptr(), sums);
        array
    }
}
