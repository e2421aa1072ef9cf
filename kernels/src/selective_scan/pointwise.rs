//! The pointwise maths of the scan, in f32.

use core::f32::consts::LOG2_E;

use cubecl::frontend::polyfills::SimplePowOp;
use cubecl::prelude::*;

use super::geometry::Geometry;
use crate::pointwise::{exp2_ptx, sigmoid, softplus};

/// `A` as [`decay_over`] takes it: in units of the exponential that the device has.
#[cube]
pub(super) fn scale_rates<V: Size>(
    rates: Vector<f32, V>,
    #[comptime] geometry: Geometry,
) -> Vector<f32, V> {
    if comptime!(geometry.ptx || geometry.spirv) {
        rates * Vector::new(LOG2_E)
    } else {
        rates
    }
}

/// In the place of a decay, which is never negative: nothing of the state passes. Zero would not do, since
/// a state may be NaN.
pub(super) const DROPPED: f32 = -1.0;

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
    } else if comptime!(geometry.spirv) {
        power_of_two::<V>(exponents)
    } else {
        exponents.exp()
    }
}

/// `2^x`, as a power: SPIR-V has an instruction for it that CubeCL does not know, and drivers find it.
#[cube]
#[allow(unused_variables)] // the expansion reads x
fn power_of_two<V: Size>(x: Vector<f32, V>) -> Vector<f32, V> {
    let base = Vector::<f32, V>::new(2.0f32);
    intrinsic!(|scope| {
        let base = base.read_value(scope);
        let exponent = x.read_value(scope);
        let power = SimplePowOp::new(scope.ctx_mut(), base, exponent);
        scope.register_with_result(&power).into()
    })
}

/// The time step of a biased `delta`.
#[cube]
pub(super) fn time_step(delta: f32, #[comptime] geometry: Geometry) -> f32 {
    if comptime!(geometry.softplus) {
        softplus(delta, comptime!(geometry.ptx))
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
