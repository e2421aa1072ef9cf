//! Fused kernels for the CPU on plain `f32` slices: no tensor library above them.
//!
//! The README beside this file says what each kernel owns, saves, recomputes and moves.

#![allow(
    clippy::needless_range_loop,
    reason = "lanes and states index several arrays at once"
)]

pub mod attention;
pub mod causal_conv1d;
pub mod decay;
pub mod gated_rms_norm;
pub mod gelu;
mod linear;
pub mod linear_cross_entropy;
mod matrix;
pub mod rms_norm;
mod row;
mod rows;
pub mod selective_scan;
pub mod simd;
pub mod ssd;
mod team;

pub use linear::{Added, linear};
pub use matrix::Matrix;
pub use rows::Rows;

#[cfg(test)]
mod testing;
