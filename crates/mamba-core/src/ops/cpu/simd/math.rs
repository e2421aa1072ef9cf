//! Elementary functions on vectors.
//!
//! All are range reductions with a minimax polynomial, within 3 ulp where the result is a normal
//! number (the tests measure it). They let the NaN through that arithmetic makes. One with bits in the
//! low nine of its mantissa, which only foreign data can hold, may leave [`exp2`], [`exp_nonpositive`]
//! and [`sigmoid`] as a number: telling it apart would take another instruction a value.

use super::Arithmetic;
use std::f32::consts::LOG2_E;

/// Adding it rounds a small float to an integer, which then stands in the low mantissa bits.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// `2^x`, the scan's exponential: `exp(dt * a)` costs no product with `log2(e)` when `a` was scaled
/// once beforehand.
///
/// Exactly 1 at 0, infinite from 128, zero from -127 downwards (with AVX-512, from -150); between
/// there and -126 the error is below the smallest normal number.
#[inline(always)]
#[expect(
    clippy::approx_constant,
    reason = "a minimax coefficient near ln 2, not ln 2"
)]
pub fn exp2<A: Arithmetic>(x: A) -> A {
    let (fraction, integer) = x.split();
    // The constant term is exactly one, so that the polynomial's error leaves slow decays alone.
    A::splat(0.001_326_472_7)
        .mul_add(fraction, A::splat(0.009_671_513))
        .mul_add(fraction, A::splat(0.055_507_336))
        .mul_add(fraction, A::splat(0.240_222_42))
        .mul_add(fraction, A::splat(0.693_147))
        .mul_add(fraction, A::splat(1.0))
        .scale(integer)
}

/// [`Arithmetic::split`] on any machine; the integer stands in the low bits of a large float.
#[inline(always)]
pub(super) fn split_by_rounding<A: Arithmetic>(x: A) -> (A, A) {
    let x = x.at_least(A::splat(-127.0)).at_most(A::splat(128.0));
    let shifted = x + A::splat(ROUND);
    (x - (shifted - A::splat(ROUND)), shifted)
}

/// `e^x` for any `x`, with gradual underflow.
#[inline(always)]
pub fn exp<A: Arithmetic>(x: A) -> A {
    // Past these bounds the result is 0 or infinite; NaN passes both comparisons.
    let x = x.at_least(A::splat(-104.5)).at_most(A::splat(89.0));
    let shifted = x.mul_add(A::splat(LOG2_E), A::splat(ROUND));
    let exponent = shifted - A::splat(ROUND);
    let power = exp_reduced(x, exponent);

    // Two products, as 2^exponent itself may be no normal number.
    let half = exponent.mul_add(A::splat(0.5), A::splat(ROUND));
    let rest = (exponent - (half - A::splat(ROUND))) + A::splat(ROUND);
    let one = A::splat(1.0);
    power * one.add_exponent(half) * one.add_exponent(rest)
}

/// `e^x` for `x <= 0`, the cheaper half of [`exp`]. It stops falling at the smallest normal number:
/// zero would need a test, and subnormal factors make products slow.
#[inline(always)]
pub fn exp_nonpositive<A: Arithmetic>(x: A) -> A {
    let x = x.at_least(A::splat(-87.336_54)); // ln(f32::MIN_POSITIVE)
    let shifted = x.mul_add(A::splat(LOG2_E), A::splat(ROUND));
    exp_reduced(x, shifted - A::splat(ROUND)).add_exponent(shifted)
}

/// `e^(x - exponent * ln 2)`, where `exponent` is the integer nearest to `x / ln 2`.
#[inline(always)]
#[expect(
    clippy::excessive_precision,
    reason = "all digits of a float with nine bits"
)]
fn exp_reduced<A: Arithmetic>(x: A, exponent: A) -> A {
    // ln 2 in two parts; the first has few enough bits for its product to be exact.
    let r = exponent.neg_mul_add(A::splat(0.693_359_375), x);
    let r = exponent.neg_mul_add(A::splat(-2.121_944_4e-4), r);
    let tail = A::splat(0.001_386_378_7)
        .mul_add(r, A::splat(0.008_367_476))
        .mul_add(r, A::splat(0.041_667_238))
        .mul_add(r, A::splat(0.166_665_35))
        .mul_add(r, A::splat(0.5));
    (r * r).mul_add(tail, r) + A::splat(1.0)
}

/// `ln(1 + w)` for `0 <= w <= 1`, as `2 artanh(w / (2 + w))`: no cancellation near 0.
#[inline(always)]
fn ln_1p_unit<A: Arithmetic>(w: A) -> A {
    let s = w * (w + A::splat(2.0)).reciprocal();
    let square = s * s;
    let tail = A::splat(0.140_122_3)
        .mul_add(square, A::splat(0.139_995_71))
        .mul_add(square, A::splat(0.200_108_5))
        .mul_add(square, A::splat(0.333_332_06));
    let double = s + s;
    (double * square).mul_add(tail, double)
}

/// `ln(1 + e^x)`, as `max(x, 0) + ln(1 + e^-|x|)`.
///
/// Past PyTorch's threshold of 20 the second term is below half an ulp of the first, so that the
/// result is `x` there without a test.
#[inline(always)]
pub fn softplus<A: Arithmetic>(x: A) -> A {
    ln_1p_unit(exp_nonpositive(A::zero() - x.abs())) + x.at_least(A::zero())
}

/// [`softplus`] and its derivative, from one exponential.
#[inline(always)]
pub fn softplus_with_derivative<A: Arithmetic>(x: A) -> (A, A) {
    let e = exp_nonpositive(A::zero() - x.abs());
    let (derivative, _) = sigmoids(x, e);
    (ln_1p_unit(e) + x.at_least(A::zero()), derivative)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<A: Arithmetic>(x: A) -> A {
    sigmoids(x, exp_nonpositive(A::zero() - x.abs())).0
}

/// The sigmoids of `x` and of `-x`, given `e^-|x|`: the denominator stays in `[1, 2]`, and their
/// sum is 1 without the cancellation of `1 - s`.
#[inline(always)]
fn sigmoids<A: Arithmetic>(x: A, e: A) -> (A, A) {
    let large = (e + A::splat(1.0)).reciprocal();
    let small = e * large;
    (
        x.select_negative(small, large),
        x.select_negative(large, small),
    )
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu<A: Arithmetic>(x: A) -> A {
    x * sigmoid(x)
}

/// [`silu`] and its derivative `s * (1 + x * (1 - s))` with `s = sigmoid(x)`.
#[inline(always)]
pub fn silu_with_derivative<A: Arithmetic>(x: A) -> (A, A) {
    let (s, complement) = sigmoids(x, exp_nonpositive(A::zero() - x.abs()));
    (x * s, s.mul_add(x * complement, s))
}

/// The argument of the sigmoid in [`gelu`] by `x`: `2 sqrt(2 / pi) (1 + 0.044715 x^2)`.
const GELU: [f32; 2] = [1.595_769, 0.071_354_814];

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, as `x sigmoid(2 sqrt(2 / pi) ..)`.
#[inline(always)]
pub fn gelu<A: Arithmetic>(x: A) -> A {
    let slope = (x * x).mul_add(A::splat(GELU[1]), A::splat(GELU[0]));
    x * sigmoid(x * slope)
}

/// The derivative of [`gelu`].
#[inline(always)]
pub fn gelu_derivative<A: Arithmetic>(x: A) -> A {
    let square = x * x;
    let z = x * square.mul_add(A::splat(GELU[1]), A::splat(GELU[0]));
    // The cubic's derivative; beyond these bounds the factor before it is zero, and it may not be infinite.
    let bounded = square.at_most(A::splat(1e4));
    let slope = bounded.mul_add(A::splat(3.0 * GELU[1]), A::splat(GELU[0]));
    let (s, complement) = sigmoids(z, exp_nonpositive(A::zero() - z.abs()));
    let bent = x.at_most(A::splat(100.0)).at_least(A::splat(-100.0)) * slope;
    s.mul_add(complement * bent, s)
}

/// The factor that turns an argument of `e^x` into one of [`exp2`].
pub const TO_EXP2: f32 = LOG2_E;
