//! Sixteen `f32` lanes, written once as kernels generic over [`Vector`] and compiled once per
//! instruction set.
//!
//! [`dispatch`] picks the widest set of the machine at run time. A kernel's `run` is
//! `#[inline(always)]`, so that it lands whole inside the function that carries
//! `#[target_feature]`: only there do the intrinsics below become single instructions. For the
//! same reason kernels handle vectors in loops, not in closures handed to iterators.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lockstep;
pub mod math;
mod portable;

pub use lockstep::Lockstep;

use std::ops::{Add, Mul, Sub};

/// Lanes of a [`Vector`] on every instruction set: narrower registers are used in groups, so that
/// layouts do not depend on the machine.
pub const LANES: usize = 16;

/// One vector in memory, aligned to a cache line.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Lanes(pub [f32; LANES]);

impl Lanes {
    /// All lanes zero.
    pub const ZERO: Self = Self([0.0; LANES]);

    /// The values of consecutive vectors.
    #[inline(always)]
    pub fn values(lanes: &[Self]) -> &[f32] {
        // SAFETY: a vector is an array of as many values, and its alignment is its size.
        unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), lanes.len() * LANES) }
    }

    /// As [`values`](Self::values), to change them.
    #[inline(always)]
    pub fn values_mut(lanes: &mut [Self]) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len() * LANES) }
    }
}

/// What the elementary functions need of vectors. Operations act lane by lane.
pub trait Arithmetic: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// `value` in every lane.
    fn splat(value: f32) -> Self;

    /// `self * factor + term`, in one rounding where the machine has a fused instruction.
    fn mul_add(self, factor: Self, term: Self) -> Self;

    /// `term - self * factor`, in one rounding where the machine has a fused instruction.
    fn neg_mul_add(self, factor: Self, term: Self) -> Self;

    /// The smaller of `self` and `bound`; a NaN in `self` stays.
    fn at_most(self, bound: Self) -> Self;

    /// The larger of `self` and `bound`; a NaN in `self` stays.
    fn at_least(self, bound: Self) -> Self;

    /// The absolute value.
    fn abs(self) -> Self;

    /// `then` in the lanes where the sign bit of `self` is set, `otherwise` in the others.
    fn select_negative(self, then: Self, otherwise: Self) -> Self;

    /// Adds to each exponent the integer that stands in the low nine bits of `shifted`: a product
    /// with a power of two, as long as the result is a normal number.
    fn add_exponent(self, shifted: Self) -> Self;

    /// The first half of [`math::exp2`]: a fraction in `[-1/2, 1/2]`, and the integer part in the
    /// form that [`scale`](Self::scale) takes.
    #[inline(always)]
    fn split(self) -> (Self, Self) {
        math::split_by_rounding(self)
    }

    /// The second half of [`math::exp2`]: `self` times two to the integer part.
    #[inline(always)]
    fn scale(self, integer: Self) -> Self {
        self.add_exponent(integer)
    }

    /// `1 / self` within 1 ulp, for values in `[1, 4]`.
    fn reciprocal(self) -> Self;

    /// All lanes zero.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }
}

/// Sixteen `f32` lanes in registers.
///
/// Values of an instruction set's type exist only inside [`dispatch`], which has checked that the
/// machine has it; that is what makes the intrinsics of the implementations sound.
pub trait Vector: Arithmetic {
    /// How many vectors of this type a machine's registers hold.
    const REGISTERS: usize;

    /// Reads [`LANES`] values at any alignment.
    ///
    /// # Safety
    /// `from` must be valid for that read.
    unsafe fn read(from: *const f32) -> Self;

    /// Writes [`LANES`] values at any alignment.
    ///
    /// # Safety
    /// `to` must be valid for that write.
    unsafe fn write(self, to: *mut f32);

    /// Reads the first `count` values, at most [`LANES`], at any alignment; the other lanes are zero.
    ///
    /// # Safety
    /// `from` must be valid for that read.
    unsafe fn read_first(from: *const f32, count: usize) -> Self;

    /// Writes the first `count` values, at most [`LANES`], at any alignment.
    ///
    /// # Safety
    /// `to` must be valid for that write.
    unsafe fn write_first(self, to: *mut f32, count: usize);

    /// The sum of the lanes, always in the same order.
    fn sum(self) -> f32;

    /// [`sum`](Self::sum) of four vectors.
    fn sums(vectors: [Self; 4]) -> [f32; 4];

    /// Rows become columns: lane `j` of vector `i` goes to lane `i` of vector `j`.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];

    /// Reads one vector.
    #[inline(always)]
    fn load(from: &Lanes) -> Self {
        Self::load_array(&from.0)
    }

    /// Writes one vector.
    #[inline(always)]
    fn store(self, to: &mut Lanes) {
        self.store_array(&mut to.0);
    }

    /// Reads one vector.
    #[inline(always)]
    fn load_array(from: &[f32; LANES]) -> Self {
        // SAFETY: a reference to as many values.
        unsafe { Self::read(from.as_ptr()) }
    }

    /// Writes one vector.
    #[inline(always)]
    fn store_array(self, to: &mut [f32; LANES]) {
        // SAFETY: a reference to as many values.
        unsafe { self.write(to.as_mut_ptr()) }
    }

    /// Reads the first [`LANES`] values of `from`; lanes past its end are zero.
    #[inline(always)]
    fn load_padded(from: &[f32]) -> Self {
        // SAFETY: the slice has as many values.
        unsafe { Self::read_first(from.as_ptr(), from.len().min(LANES)) }
    }

    /// Writes to the first [`LANES`] values of `to`; lanes past its end are dropped.
    #[inline(always)]
    fn store_cut(self, to: &mut [f32]) {
        // SAFETY: the slice has as many values.
        unsafe { self.write_first(to.as_mut_ptr(), to.len().min(LANES)) }
    }
}

/// Asks for the cache line at `address`, which will be read or written after a while, to come to the
/// second-level cache. An address without memory is let be.
#[inline(always)]
pub fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint; it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Work generic over the vector type. Implementations mark `run` `#[inline(always)]`, and so every
/// function that handles vectors beneath it.
pub trait Kernel {
    /// What the work returns.
    type Output;

    /// Does the work with vectors of type `V`.
    fn run<V: Vector>(self) -> Self::Output;
}

/// Runs `kernel` with the widest instruction set that this machine has.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(test)]
    if let Some(set) = tests::FORCED.get() {
        return tests::run_on(set, kernel);
    }
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: the features that the function is compiled for were just detected.
            return unsafe { run_avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { run_avx2(kernel) };
        }
    }
    kernel.run::<portable::F32x16>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx512::F32x16>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx2::F32x16>()
}

#[cfg(test)]
pub(super) mod tests;
