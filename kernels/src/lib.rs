//! The operations of state-space models, below any deep-learning framework.
//!
//! The package knows tensors as plain buffers with a documented layout; it does not know Burn.
//! `mamba-core` wires it into Burn's backends.
//!
//! - `oracle` (feature of the same name): each operation as host loops in f64, values and gradients,
//!   written to be read. Every other implementation is tested against it.
//!
//! - `selective_scan`, `ssd`, `causal_conv1d`, `rms_norm`, `gated_rms_norm`, `cross_entropy` and `embedding` (feature `cube`): GPU kernels in CubeCL. A
//!   launcher takes a client of any runtime and bindings of its buffers.
//!
//! - `decode` (feature `cube`): a whole model that reads prompts in one pass and then a token a step.
//!
//! - `matmul` (feature `cube`): products on Hopper's warpgroup instructions, else by `cubek-matmul`, with the routine chosen by
//!   size.
//!
//! # Notation
//!
//! | Symbol | Name | Meaning |
//! |---|---|---|
//! | B | `batch` | sequences computed side by side |
//! | L | `seq_len` | positions of a sequence |
//! | D | `d_inner` | channels of the scan, `expand * d_model` |
//! | N | `d_state` | state entries of a channel |
//! | W | `width` | taps of the causal convolution |
//!
//! Tensors are row-major with the channel last: entry `(i, t, j)` of a `[batch, seq_len, d_inner]`
//! tensor lies at `(i * seq_len + t) * d_inner + j`.

#![warn(missing_docs)]

#[cfg(feature = "oracle")]
pub mod oracle;

#[cfg(feature = "cube")]
mod bits;
#[cfg(feature = "cube")]
pub mod causal_conv1d;
#[cfg(feature = "cube")]
pub mod cross_entropy;
#[cfg(feature = "cube")]
pub mod decode;
#[cfg(feature = "cube")]
pub mod embedding;
#[cfg(feature = "cube")]
mod error;
#[cfg(feature = "cube")]
pub mod gated_rms_norm;
#[cfg(feature = "cube")]
pub mod matmul;
#[cfg(feature = "cube")]
mod pointwise;
#[cfg(feature = "cube")]
pub mod rms_norm;
#[cfg(feature = "cube")]
pub mod selective_scan;
#[cfg(feature = "cube")]
pub mod ssd;
#[cfg(feature = "cube")]
mod sums;
#[cfg(feature = "cube")]
mod tensors;

#[cfg(feature = "cube")]
pub use error::KernelError;
