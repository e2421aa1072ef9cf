//! One file a backend: what it runs for each op.

mod autodiff;
#[cfg(feature = "flex")]
mod flex;

// No kernels: the trait's portable bodies.
#[cfg(feature = "ndarray")]
impl super::extension::MambaOps for burn::backend::NdArray {}
#[cfg(feature = "cube")]
impl super::extension::MambaOps for burn_cubecl::CubeBackend {}
