//! Reference implementations: plain loops over host slices, in f64, without dependencies.
//!
//! Clarity comes before speed: no blocking, no parallel scan, no recomputation. Each operation has
//! one function for its values and one, ending in `_backward`, for the gradients of every input.
//! Optional inputs are `Option`s and so are their gradients: `None` in, `None` out.
//!
//! # Panics
//!
//! All functions panic if a slice's length does not match the dimensions given beside it.

mod causal_conv1d;
#[cfg(test)]
mod finite_differences;
mod gated_rms_norm;
mod linear_cross_entropy;
mod pointwise;
mod rms_norm;
mod runs;
mod selective_scan;
mod ssd;

pub use causal_conv1d::{
    CausalConv1dGradients, CausalConv1dInputs, CausalConv1dOutput, causal_conv1d,
    causal_conv1d_backward,
};
pub use gated_rms_norm::{
    GatedRmsNormGradients, GatedRmsNormInputs, gated_rms_norm, gated_rms_norm_backward,
};
pub use linear_cross_entropy::{
    LinearCrossEntropyGradients, LinearCrossEntropyInputs, linear_cross_entropy,
    linear_cross_entropy_backward,
};
pub use pointwise::{SOFTPLUS_THRESHOLD, sigmoid, silu, silu_slope, softplus, softplus_slope};
pub use rms_norm::{RmsNormGradients, RmsNormInputs, rms_norm, rms_norm_backward};
pub use selective_scan::{
    SelectiveScanGradients, SelectiveScanInputs, SelectiveScanOutput, selective_scan,
    selective_scan_backward,
};
pub use ssd::{SsdGradients, SsdInputs, SsdOutput, ssd, ssd_backward, ssd_quadratic};

/// Panics unless `slice` holds one value for each entry of a tensor of `shape`.
fn assert_len<T>(function: &str, name: &str, slice: &[T], shape: &[usize]) {
    let expected: usize = shape.iter().product();
    assert!(
        slice.len() == expected,
        "{function}: {name} must hold {expected} values for shape {shape:?}, got {}",
        slice.len()
    );
}

/// [`assert_len`] for an optional input.
fn assert_optional_len<T>(function: &str, name: &str, slice: Option<&[T]>, shape: &[usize]) {
    if let Some(slice) = slice {
        assert_len(function, name, slice, shape);
    }
}

fn dot_product(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(l, r)| l * r).sum()
}
