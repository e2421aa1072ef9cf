//! The operations that Burn does not have, each as one function on tensors.
//!
//! | op | what it computes | what survives on the tape for backward |
//! |---|---|---|
//! | [`selective_scan`] | the state-space recurrence of Mamba-1 | its inputs and `d_inner * d_state / 8` bytes a token, `/ 4` on Flex |
//! | [`ssd`] | the state-space recurrence of Mamba-2 | its inputs and `nheads * headdim * d_state * 4 / chunk_size` bytes a token |
//! | [`gated_rms_norm`] | gate and normalisation of Mamba-2 | its inputs |
//! | [`causal_conv1d`] | depthwise convolution over time, SiLU | its inputs |
//! | [`linear_cross_entropy`] | head and loss without the logits | the two gradients, no logits |
//! | [`causal_attention`] | attention without the scores | its inputs and outputs, `4 * heads` bytes a token more |
//! | [`linear`], [`rms_norm`], GELU | what Burn has too, in one pass on the CPU and on GPUs | their inputs |
//!
//! Each takes the path of [`Strategy::Auto`]: fused loops on Flex; on CubeCL devices kernels, and matrix
//! products that are not tuned at first use; portable bodies on NdArray, the plain
//! [`reference`](mod@reference) on any other backend. All of them compute in f32, since a recurrence over
//! thousands of steps drifts in half precision; results are cast back to the dtype of the main input, states
//! stay f32. On CubeCL devices half precisions are read and written as they are, and the factors of
//! products stay in them, with sums in f32.

mod attention;
mod backends;
mod causal_conv1d;
#[cfg(feature = "flex")]
pub mod cpu;
mod decay;
mod embed;
#[cfg_attr(
    feature = "ndarray",
    allow(deprecated, reason = "NdArray, as in `backends`")
)]
pub mod extension;
mod gated_rms_norm;
mod gelu;
mod linear;
mod linear_cross_entropy;
#[cfg(feature = "fusion")]
mod meta;
mod portable;
pub mod reference;
mod rms_norm;
mod selective_scan;
mod split;
mod ssd;

pub use attention::causal_attention;
pub(crate) use attention::has_attention;
#[cfg(feature = "cube")]
pub(crate) use backends::{Behind, decoder};
pub use causal_conv1d::{CausalConv1d, causal_conv1d};
pub(crate) use decay::decay_rates;
pub(crate) use embed::embed;
pub use gated_rms_norm::{GatedRmsNorm, gated_rms_norm};
pub(crate) use gelu::tanh_gelu;
pub use linear::linear;
pub(crate) use linear::{project, project_onto};
pub use linear_cross_entropy::{LinearCrossEntropy, linear_cross_entropy, token_losses};
pub use rms_norm::rms_norm;
pub(crate) use rms_norm::rms_norm_to;
pub use selective_scan::{SelectiveScan, selective_scan};
pub(crate) use split::{halves, thirds};
pub use ssd::{Skip, Ssd, ssd};

use burn::backend::{DispatchDevice, DispatchTensor};
use burn::tensor::{DType, Device, Int, Tensor};
use extension::{OptionalFloat, OptionalInt};

/// Which implementation runs an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// [`Strategy::Fused`] where the device's backend has one, else [`Strategy::Reference`].
    #[default]
    Auto,
    /// The backend's own implementation behind [`extension::MambaOps`].
    Fused,
    /// Plain tensor operations under Burn's autodiff: slow, memory-hungry, obviously right.
    Reference,
}

impl Strategy {
    /// What [`Strategy::Auto`] stands for on `device`; the others stand for themselves.
    pub fn resolve(self, device: &Device) -> Self {
        match self {
            Self::Auto if has_ops(device.clone().without_autodiff().as_dispatch()) => Self::Fused,
            Self::Auto => Self::Reference,
            strategy => strategy,
        }
    }
}

/// Whether our CPU loops beat the backend's own operations: on Flex, which zeroes an output before
/// it computes it, copies it, and walks a norm in six passes.
fn on_flex(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[allow(unreachable_patterns)] // which backends exist is another crate's features
        _ => false,
    }
}

/// Whether `device` is one of a CubeCL backend, where `mamba_kernels` runs.
pub(crate) fn on_cube(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)] // as in `on_flex`
        _ => false,
    }
}

/// Whether the backend of `device` is one that [`extension::MambaOps`] is routed to.
fn has_ops(device: &DispatchDevice) -> bool {
    match device {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)] // which backends exist is another crate's features
        _ => false,
    }
}

fn optional_float<const D: usize>(
    tensor: Option<Tensor<D>>,
    dtype: DType,
) -> OptionalFloat<burn::backend::Dispatch> {
    tensor.map(|tensor| primitive_of(tensor, dtype)).into()
}

fn optional_int<const D: usize>(
    tensor: Option<Tensor<D, Int>>,
) -> OptionalInt<burn::backend::Dispatch> {
    match tensor {
        Some(tensor) => OptionalInt::Present(tensor.into_dispatch()),
        None => OptionalInt::Absent,
    }
}

/// The type in which the seam takes a sequence: a half precision stays where our kernels read it.
fn sequence_dtype<const D: usize>(tensor: &Tensor<D>) -> DType {
    match tensor.dtype() {
        half @ (DType::F16 | DType::BF16) if on_cube(&tensor.device()) => half,
        _ => DType::F32,
    }
}

/// The f32 primitive of a float tensor.
fn float_primitive<const D: usize>(tensor: Tensor<D>) -> DispatchTensor {
    primitive_of(tensor, DType::F32)
}

fn primitive_of<const D: usize>(tensor: Tensor<D>, dtype: DType) -> DispatchTensor {
    tensor.cast(dtype).into_dispatch()
}
