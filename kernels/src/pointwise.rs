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

/// `exp(-|x|)`.
#[cube]
pub(crate) fn exp_below_one(x: f32, #[comptime] ptx: bool) -> f32 {
    if ptx {
        exp2_ptx(x.abs() * comptime!(-LOG2_E))
    } else {
        (-x.abs()).exp()
    }
}

#[cube]
pub(crate) fn divide(x: f32, y: f32, #[comptime] ptx: bool) -> f32 {
    if ptx { x * reciprocal_ptx(y) } else { x / y }
}

/// `1 / (1 + exp(-x))`, without an infinity on the way.
#[cube]
pub(crate) fn sigmoid(x: f32, #[comptime] ptx: bool) -> f32 {
    let e = exp_below_one(x, ptx);
    divide(select(x < 0.0f32, e, 1.0f32), 1.0f32 + e, ptx)
}
