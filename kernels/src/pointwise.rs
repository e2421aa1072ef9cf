//! Pointwise maths of all kernels, in f32.
//!
//! `ptx` says whether the kernel is compiled by NVRTC, which takes inline PTX: the exponential of
//! CUDA C++ is eight instructions around the one that computes it.

use core::f32::consts::LOG2_E;

use cubecl::prelude::*;

/// Whether the compiler behind `client` takes inline PTX.
pub(crate) fn takes_ptx(client: &Client) -> bool {
    cfg!(feature = "cuda-cpp") && client.name() == "cuda"
}

/// `2^x` in one instruction of an NVIDIA card, to two units in the last place.
#[cube]
#[allow(unused_variables)] // the assembly reads x
pub(crate) fn exp2_ptx(x: f32) -> f32 {
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

#[cube]
pub(crate) fn exp(x: f32, #[comptime] ptx: bool) -> f32 {
    if ptx {
        exp2_ptx(x * comptime!(LOG2_E))
    } else {
        x.exp()
    }
}

/// `exp(-|x|)`.
#[cube]
fn exp_below_one(x: f32, #[comptime] ptx: bool) -> f32 {
    if ptx {
        exp2_ptx(x.abs() * comptime!(-LOG2_E))
    } else {
        (-x.abs()).exp()
    }
}

#[cube]
fn divide(x: f32, y: f32, #[comptime] ptx: bool) -> f32 {
    if ptx { x * reciprocal_ptx(y) } else { x / y }
}

/// `1 / (1 + exp(-x))`, without an infinity on the way.
#[cube]
pub(crate) fn sigmoid(x: f32, #[comptime] ptx: bool) -> f32 {
    let e = exp_below_one(x, ptx);
    divide(select(x < 0.0f32, e, 1.0f32), 1.0f32 + e, ptx)
}

/// `ln(1 + exp(x))` to the last bits of f32 everywhere: `max(x, 0) + ln(1 + e)` with
/// `e = exp(-|x|)`, and `ln(1 + e) = 2 atanh(e / (2 + e))`, whose argument is at most 1/3. Backends
/// differ in the precision of their logarithm near 1, where small time steps lie. Above 20 the
/// rest is below half a unit in the last place: the threshold of PyTorch needs no branch.
#[cube]
pub(crate) fn softplus(x: f32, #[comptime] ptx: bool) -> f32 {
    let e = exp_below_one(x, ptx);
    let s = divide(e, 2.0f32 + e, ptx);
    let q = s * s;
    let mut series = q * 0.066_666_67f32 + 0.076_923_08f32;
    series = series * q + 0.090_909_09f32;
    series = series * q + 0.111_111_11f32;
    series = series * q + 0.142_857_15f32;
    series = series * q + 0.2f32;
    series = series * q + 0.333_333_34f32;
    select(x > 0.0f32, x, 0.0f32) + 2.0f32 * s * (series * q + 1.0f32)
}
