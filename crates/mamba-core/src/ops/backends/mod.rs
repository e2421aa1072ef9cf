//! One file a backend: what it runs for each op.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;

#[cfg(feature = "cube")]
pub(crate) use cube::{Behind, decoder};

// No kernels: the trait's portable bodies.
#[cfg(feature = "ndarray")]
#[allow(
    deprecated,
    reason = "Burn points to Flex; those who cannot move yet still have it"
)]
impl super::extension::MambaOps for burn::backend::NdArray {}
