//! The pointwise maths of the scan, in f32.

use core::f32::consts::LOG2_E;

use cubecl::prelude::*;

use super::geometry::Geometry;
use crate::pointwise::{divide, exp_below_one, exp2_ptx, sigmoid};

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
    let e = exp_below_one(x, comptime!(geometry.ptx));
    let s = divide(e, 2.0f32 + e, comptime!(geometry.ptx));
    let q = s * s;
    let mut series = q * 0.066_666_67f32 + 0.076_923_08f32;
    series = series * q + 0.090_909_09f32;
    series = series * q + 0.111_111_11f32;
    series = series * q + 0.142_857_15f32;
    series = series * q + 0.2f32;
    series = series * q + 0.333_333_34f32;
    select(x > 0.0f32, x, 0.0f32) + 2.0f32 * s * (series * q + 1.0f32)
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
        sigmoid(delta, comptime!(geometry.ptx))
    } else {
        1.0f32.runtime()
    }
}
