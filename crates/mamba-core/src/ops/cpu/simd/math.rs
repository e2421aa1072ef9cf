//! Elementary functions on vectors.
//!
//! All are range reductions with a minimax polynomial, within 3 ulp where the result is a normal
//! number (the tests measure it), and let NaN through.

use super::Vector;
use std::f32::consts::LOG2_E;

/// Adding it rounds a small float to an integer, which then stands in the low mantissa bits.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// `2^x`, the scan's exponential: `exp(dt * a)` costs no product with `log2(e)` when `a` was scaled
/// once beforehand.
///
/// Exactly 1 at 0, infinite from 128, zero from -127 downwards (with AVX-512, from -150); between
/// there and -126 the error is below the smallest normal number.
#[inline(always)]
pub fn exp2<V: Vector>(x: V) -> V {
    let [power] = exp2_each([x]);
    power
}

/// [`exp2`] of several vectors in lock-step: each is one long chain of dependent instructions, and
/// a machine sees only so many of them ahead.
#[inline(always)]
pub fn exp2_each<V: Vector, const N: usize>(x: [V; N]) -> [V; N] {
    let mut fraction = x;
    let mut integer = x;
    for i in 0..N {
        (fraction[i], integer[i]) = x[i].split();
    }
    // The constant term is exactly one, so that the polynomial's error leaves slow decays alone.
    let mut power = [V::splat(0.001_326_472_7); N];
    for coefficient in [0.009_671_513, 0.055_507_336, 0.240_222_42, 0.693_147, 1.0] {
        for i in 0..N {
            power[i] = power[i].mul_add(fraction[i], V::splat(coefficient));
        }
    }
    for i in 0..N {
        power[i] = power[i].scale(integer[i]);
    }
    power
}

/// [`Vector::split`] on any machine; the integer stands in the low bits of a large float.
#[inline(always)]
pub(super) fn split_by_rounding<V: Vector>(x: V) -> (V, V) {
    let x = x.at_least(V::splat(-127.0)).at_most(V::splat(128.0));
    let shifted = x + V::splat(ROUND);
    (x - (shifted - V::splat(ROUND)), shifted)
}

/// `e^x` for any `x`, with gradual underflow.
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    // Past these bounds the result is 0 or infinite; NaN passes both comparisons.
    let x = x.at_least(V::splat(-104.5)).at_most(V::splat(89.0));
    let shifted = x.mul_add(V::splat(LOG2_E), V::splat(ROUND));
    let exponent = shifted - V::splat(ROUND);
    let power = exp_reduced(x, exponent);

    // Two products, as 2^exponent itself may be no normal number.
    let half = exponent.mul_add(V::splat(0.5), V::splat(ROUND));
    let rest = (exponent - (half - V::splat(ROUND))) + V::splat(ROUND);
    let one = V::splat(1.0);
    power * one.add_exponent(half) * one.add_exponent(rest)
}

/// `e^x` for `x <= 0`, the cheaper half of [`exp`]. It stops falling at the smallest normal number:
/// zero would need a test, and subnormal factors make products slow.
#[inline(always)]
pub fn exp_nonpositive<V: Vector>(x: V) -> V {
    let x = x.at_least(V::splat(-87.336_54)); // ln(f32::MIN_POSITIVE)
    let shifted = x.mul_add(V::splat(LOG2_E), V::splat(ROUND));
    exp_reduced(x, shifted - V::splat(ROUND)).add_exponent(shifted)
}

/// `e^(x - exponent * ln 2)`, where `exponent` is the integer nearest to `x / ln 2`.
#[inline(always)]
fn exp_reduced<V: Vector>(x: V, exponent: V) -> V {
    // ln 2 in two parts; the first has few enough bits for its product to be exact.
    let r = exponent.neg_mul_add(V::splat(0.693_359_375), x);
    let r = exponent.neg_mul_add(V::splat(-2.121_944_4e-4), r);
    let tail = V::splat(0.001_386_378_7)
        .mul_add(r, V::splat(0.008_367_476))
        .mul_add(r, V::splat(0.041_667_238))
        .mul_add(r, V::splat(0.166_665_35))
        .mul_add(r, V::splat(0.5));
    (r * r).mul_add(tail, r) + V::splat(1.0)
}

/// `ln(1 + w)` for `0 <= w <= 1`, as `2 artanh(w / (2 + w))`: no cancellation near 0.
#[inline(always)]
fn ln_1p_unit<V: Vector>(w: V) -> V {
    let s = w * (w + V::splat(2.0)).reciprocal();
    let square = s * s;
    let tail = V::splat(0.140_122_29)
        .mul_add(square, V::splat(0.139_995_71))
        .mul_add(square, V::splat(0.200_108_5))
        .mul_add(square, V::splat(0.333_332_06));
    let double = s + s;
    (double * square).mul_add(tail, double)
}

/// `ln(1 + e^x)`, as `max(x, 0) + ln(1 + e^-|x|)`.
///
/// Past PyTorch's threshold of 20 the second term is below half an ulp of the first, so that the
/// result is `x` there without a test.
#[inline(always)]
pub fn softplus<V: Vector>(x: V) -> V {
    ln_1p_unit(exp_nonpositive(V::zero() - x.abs())) + x.at_least(V::zero())
}

/// [`softplus`] and its derivative, from one exponential.
#[inline(always)]
pub fn softplus_with_derivative<V: Vector>(x: V) -> (V, V) {
    let e = exp_nonpositive(V::zero() - x.abs());
    let (derivative, _) = sigmoids(x, e);
    (ln_1p_unit(e) + x.at_least(V::zero()), derivative)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<V: Vector>(x: V) -> V {
    sigmoids(x, exp_nonpositive(V::zero() - x.abs())).0
}

/// The sigmoids of `x` and of `-x`, given `e^-|x|`: the denominator stays in `[1, 2]`, and their
/// sum is 1 without the cancellation of `1 - s`.
#[inline(always)]
fn sigmoids<V: Vector>(x: V, e: V) -> (V, V) {
    let large = (e + V::splat(1.0)).reciprocal();
    let small = e * large;
    (
        x.select_negative(small, large),
        x.select_negative(large, small),
    )
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu<V: Vector>(x: V) -> V {
    x * sigmoid(x)
}

/// [`silu`] and its derivative `s * (1 + x * (1 - s))` with `s = sigmoid(x)`.
#[inline(always)]
pub fn silu_with_derivative<V: Vector>(x: V) -> (V, V) {
    let (s, complement) = sigmoids(x, exp_nonpositive(V::zero() - x.abs()));
    (x * s, s.mul_add(x * complement, s))
}

/// The factor that turns an argument of `e^x` into one of [`exp2`].
pub const TO_EXP2: f32 = LOG2_E;
