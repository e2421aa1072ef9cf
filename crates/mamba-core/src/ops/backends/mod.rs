//! One file a backend: what it runs for each op.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;

// No kernels: the trait's portable bodies.
#[cfg(feature = "ndarray")]
impl super::extension::MambaOps for burn::backend::NdArray {}
