//! In which type a model computes.

use burn::tensor::{Device, FloatDType};
use serde::{Deserialize, Serialize};

/// In which type a model computes. Parameters, the residual stream, norms and the states of mixers are f32
/// in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything in f32.
    #[default]
    F32,
    /// Products and activations of the layers and of the head's loss in bf16, with sums in f32.
    Bf16,
}

impl Precision {
    /// The type of the activations.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }

    /// Whether `device` can compute so.
    pub fn is_supported(self, device: &Device) -> bool {
        device.supports_dtype(self.dtype())
    }

    /// The one in which `device` trains fastest: bf16 on GPUs that have it.
    pub fn fastest(device: &Device) -> Self {
        match crate::ops::on_cube(device) && Self::Bf16.is_supported(device) {
            true => Self::Bf16,
            false => Self::F32,
        }
    }
}
