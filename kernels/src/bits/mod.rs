//! What a driver may take liberties with, by bits where it may.
//!
//! SPIR-V leaves open how f32 becomes bf16, and whether there is NaN at all. NVIDIA's driver for Vulkan cuts lower bits off where
//! it should round to the nearest, takes `0 x` for 0, and either of `x < y` and `!(x >= y)` for the other. Integers leave it no
//! choice. CUDA and HIP convert and compare as IEEE 754 has it: what is compiled for them contains nothing of this.
//!
//! f16 is left to the driver: NVIDIA's rounds it.

#[cfg(all(test, feature = "runtime"))]
mod tests;

use cubecl::frontend::comptime::device_properties;
use cubecl::frontend::elem_type_of;
use cubecl::ir::{DeviceProperties, FloatKind};
use cubecl::prelude::*;

/// Bits of an f32.
const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;
const QUIET: u32 = 0x0040_0000;
const SIGN: u32 = 0x8000_0000;

/// The bits of an f32 that bf16 has.
const UPPER: u32 = 0xffff_0000;

/// Just below half a unit of what bf16 keeps.
const BELOW_HALF: u32 = 0x7fff;

/// Whether a conversion to `kind` may cut off what it should round: bf16 through wgpu.
pub(crate) fn may_cut(device: &DeviceProperties, kind: ElemType) -> bool {
    kind == ElemType::Float(FloatKind::BF16) && through_wgpu(device)
}

/// Whether NaN may be taken for impossible: through wgpu, and by Metal's compiler.
fn may_ignore_nan(device: &DeviceProperties) -> bool {
    through_wgpu(device) || device.identity.fingerprint.starts_with("msl_")
}

/// Whatever compiles their kernels, wgpu gives all its devices such names.
fn through_wgpu(device: &DeviceProperties) -> bool {
    device.identity.fingerprint.starts_with("spirv_")
}

/// The nearest `F`, of two the even one.
#[cube]
pub(crate) fn round_to<F: Float>(value: f32) -> F {
    let device = device_properties();
    let kind = elem_type_of::<F>();
    if comptime!(may_cut(&device, kind)) {
        F::cast_from(nearest_bf16::<Const<1>>(Vector::new(value)).extract(0usize))
    } else {
        F::cast_from(value)
    }
}

/// [`round_to`] of each component.
#[cube]
pub(crate) fn round_all<F: Float, N: Size>(values: Vector<f32, N>) -> Vector<F, N> {
    let device = device_properties();
    let kind = elem_type_of::<F>();
    if comptime!(may_cut(&device, kind)) {
        Vector::cast_from(nearest_bf16::<N>(values))
    } else {
        Vector::cast_from(values)
    }
}

/// The nearest values that bf16 can hold: converting them is exact, however a device does it.
#[cube]
fn nearest_bf16<N: Size>(values: Vector<f32, N>) -> Vector<f32, N> {
    let bits = Vector::<u32, N>::reinterpret(values);
    // Half a unit is rounded up where the bit above it is odd. What overflows is an infinity's bits.
    let odd = (bits >> Vector::new(16u32)) & Vector::new(1u32);
    let rounded = bits + Vector::new(BELOW_HALF) + odd;
    let magnitude = bits & Vector::new(MAGNITUDE);
    let nan = magnitude.greater_than(&Vector::new(INFINITY));
    let kept = select_many(nan, bits | Vector::new(QUIET), rounded);
    Vector::reinterpret(kept & Vector::new(UPPER))
}

/// Whether `value` is zero, which NaN is not.
#[cube]
pub(crate) fn is_zero(value: f32) -> bool {
    let device = device_properties();
    if comptime!(may_ignore_nan(&device)) {
        is_zero_by_bits(value)
    } else {
        value == 0.0f32
    }
}

#[cube]
fn is_zero_by_bits(value: f32) -> bool {
    (u32::reinterpret(value) & MAGNITUDE) == 0u32
}

/// Whether `value` is below zero, which NaN is not.
#[cube]
pub(crate) fn is_negative(value: f32) -> bool {
    let device = device_properties();
    if comptime!(may_ignore_nan(&device)) {
        is_negative_by_bits(value)
    } else {
        value < 0.0f32
    }
}

#[cube]
fn is_negative_by_bits(value: f32) -> bool {
    let bits = u32::reinterpret(value);
    // The others with that sign are -0 and NaN.
    bits > SIGN && bits <= comptime!(SIGN | INFINITY)
}

/// Zero, but NaN where `value` is NaN or an infinity.
#[cube]
pub(crate) fn flaw(value: f32) -> f32 {
    let device = device_properties();
    if comptime!(may_ignore_nan(&device)) {
        flaw_by_bits(value)
    } else {
        #[allow(clippy::eq_op)] // not zero where the value is not finite
        let flaw = value - value;
        flaw
    }
}

#[cube]
fn flaw_by_bits(value: f32) -> f32 {
    let bits = u32::reinterpret(value);
    let special = (bits & INFINITY) == INFINITY;
    f32::reinterpret(select(special, bits | QUIET, 0u32))
}

/// `value` in the range `least ..= most`; NaN stays NaN.
#[cube]
pub(crate) fn limit(value: f32, least: f32, most: f32) -> f32 {
    let device = device_properties();
    if comptime!(may_ignore_nan(&device)) {
        limit_by_bits(value, least, most)
    } else {
        // Unlike a minimum, a comparison lets NaN through.
        let value = select(value < least, least, value);
        select(value > most, most, value)
    }
}

#[cube]
fn limit_by_bits(value: f32, least: f32, most: f32) -> f32 {
    let limited = select(value < least, least, value);
    let limited = select(limited > most, most, limited);
    select(is_nan_by_bits(value), value, limited)
}

/// Whether [`limit`] leaves no trace of `value`: it is below `least` or above `most`, which NaN is not.
#[cube]
pub(crate) fn is_beyond(value: f32, least: f32, most: f32) -> bool {
    let device = device_properties();
    if comptime!(may_ignore_nan(&device)) {
        is_beyond_by_bits(value, least, most)
    } else {
        value < least || value > most
    }
}

#[cube]
fn is_beyond_by_bits(value: f32, least: f32, most: f32) -> bool {
    (value < least || value > most) && !is_nan_by_bits(value)
}

#[cube]
fn is_nan_by_bits(value: f32) -> bool {
    (u32::reinterpret(value) & MAGNITUDE) > INFINITY
}

/// Zero. Where NaN may be taken for impossible, one that a compiler cannot tell from other numbers, given a `length` that
/// the host passes: what it multiplies is computed then, not taken for zero.
#[cube]
pub(crate) fn opaque_zero(length: u32) -> f32 {
    let device = device_properties();
    if comptime!(may_ignore_nan(&device)) {
        opaque_zero_by_bits(length)
    } else {
        0.0f32.runtime()
    }
}

#[cube]
fn opaque_zero_by_bits(length: u32) -> f32 {
    // Zero with either sign.
    f32::reinterpret(length & SIGN)
}
