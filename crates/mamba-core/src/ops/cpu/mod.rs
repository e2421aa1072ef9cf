//! Fused kernels for the CPU on plain `f32` slices: no tensor library above them.
//!
//! The README beside this file says what each kernel owns, saves, recomputes and moves.

mod rows;
pub mod selective_scan;
pub mod simd;

pub use rows::Rows;
