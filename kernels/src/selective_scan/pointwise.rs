//! The pointwise maths of the kernels, in f32.

use core::f32::consts::LOG2_E;

use cubecl::prelude::*;

use super::geometry::Geometry;

/// `2^x` in one instruction of an NVIDIA card, to two units in the last place.
#[cube]
#[allow(unused_variables)] // the assembly reads x
fn exp2_ptx(x: f32) -> f32 {
    let out: f32;
    gpu_asm!("ex2.approx.ftz.f32 {}, {};", out(_) out, in(_) x, options(pure, nomem));
    out
}

/// `1 / x` in one instruction of an NVIDIA card, to one unit in the last place.
#[cube]
#[allow(unused_variables)] // the assembly reads x
fn reciprocal_ptx(x: f32) -> f32 {
    let out: f32;
    gpu_asm!("rcp.approx.ftz.f32 {}, {};", out(_) out, in(_) x, options(pure, nomem));
    out
}

/// `exp(-|x|)`.
#[cube]
fn exp_below_one(x: f32, #[comptime] geometry: Geometry) -> f32 {
    if comptime!(geometry.ptx) {
        exp2_ptx(x.abs() * comptime!(-LOG2_E))
    } else {
        (-x.abs()).exp()
    }
}

#[cube]
fn divide(x: f32, y: f32, #[comptime] geometry: Geometry) -> f32 {
    if comptime!(geometry.ptx) {
        x * reciprocal_ptx(y)
    } else {
        x / y
    }
}

/// `A` as [`decay_over`] takes it: in units of the exponential that the device has.
#[cube]
pub(super) fn scale_rates<V: Size>(
    rates: Vector<f32, V>,
    #[comptime] geometry: Geometry,
) -> Vector<f32, V> {
    if comptime!(geometry.ptx) {
        rates * Vector::new(LOG2_E)
    } else {
        rates
    }
}

/// `exp(dt A)`.
#[cube]
pub(super) fn decay_over<V: Size>(
    exponents: Vector<f32, V>,
    dt: f32,
    #[comptime] geometry: Geometry,
) -> Vector<f32, V> {
    let exponents = exponents * Vector::new(dt);
    if comptime!(geometry.ptx) {
        let mut decay = Vector::<f32, V>::empty();
        #[unroll]
        for j in 0..comptime!(geometry.width) {
            decay.insert(j, exp2_ptx(exponents.extract(j)));
        }
        decay
    } else {
        exponents.exp()
    }
}

/// `ln(1 + exp(x))` to the last bits of f32 everywhere: `max(x, 0) + ln(1 + e)` with
/// `e = exp(-|x|)`, and `ln(1 + e) = 2 atanh(e / (2 + e))`, whose argument is at most 1/3. Backends
/// differ in the precision of their logarithm near 1, where small time steps lie. Above 20 the
/// rest is below half a unit in the last place: the threshold of PyTorch needs no branch.
#[cube]
fn softplus(x: f32, #[comptime] geometry: Geometry) -> f32 {
    let e = exp_below_one(x, geometry);
    let s = divide(e, 2.0f32 + e, geometry);
    let q = s * s;
    let mut series = q * 0.066_666_67f32 + 0.076_923_08f32;
    series = series * q + 0.090_909_09f32;
    series = series * q + 0.111_111_11f32;
    series = series * q + 0.142_857_15f32;
    series = series * q + 0.2f32;
    series = series * q + 0.333_333_34f32;
    select(x > 0.0f32, x, 0.0f32) + 2.0f32 * s * (series * q + 1.0f32)
}

/// `1 / (1 + exp(-x))`, without an infinity on the way.
#[cube]
pub(super) fn sigmoid(x: f32, #[comptime] geometry: Geometry) -> f32 {
    let e = exp_below_one(x, geometry);
    divide(select(x < 0.0f32, e, 1.0f32), 1.0f32 + e, geometry)
}

/// The time step of a biased `delta`.
#[cube]
pub(super) fn time_step(delta: f32, #[comptime] geometry: Geometry) -> f32 {
    if comptime!(geometry.softplus) {
        softplus(delta, geometry)
    } else {
        delta
    }
}

/// The derivative of [`time_step`].
#[cube]
pub(super) fn time_step_slope(delta: f32, #[comptime] geometry: Geometry) -> f32 {
    if comptime!(geometry.softplus) {
        sigmoid(delta, geometry)
    } else {
        1.0f32.runtime()
    }
}
