//! In which type a model computes.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Device, FloatDType, Tensor};
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

    /// Whether `device` has this type and rounds to the nearest value where it converts to it. Some drivers cut off instead:
    /// NVIDIA's for Vulkan do so for bf16. Our kernels round there all the same, Burn's operations cannot. Found out by one
    /// small computation, and remembered.
    pub fn is_rounded(self, device: &Device) -> bool {
        static ROUNDS: Mutex<Vec<(Device, bool)>> = Mutex::new(Vec::new());
        if self == Self::F32 || !self.is_supported(device) {
            return self == Self::F32;
        }
        let mut known = ROUNDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, rounds)) = known.iter().find(|(it, _)| it == device) {
            return *rounds;
        }
        let device = device.clone().without_autodiff();
        let rounds = rounds(self.dtype(), &device);
        known.push((device, rounds));
        rounds
    }

    /// The one in which `device` trains fastest: bf16 on GPUs that have it and round to it.
    pub fn fastest(device: &Device) -> Self {
        match crate::ops::on_cube(device) && Self::Bf16.is_rounded(device) {
            true => Self::Bf16,
            false => Self::F32,
        }
    }
}

/// Whether `device` rounds to a type of 8 bits of mantissa, and of two neighbours to the even one.
fn rounds(dtype: FloatDType, device: &Device) -> bool {
    /// What bf16's values above 1 are apart.
    const UNIT: f32 = 1.0 / 128.0;
    let units = [0.25, 0.5, 0.75, 1.5, -0.75_f32];
    let nearest = [0.0, 0.0, 1.0, 2.0, -1.0_f32];
    let value = |units: f32| units.signum() + units * UNIT;
    let tensor = Tensor::<1>::from_data(units.map(value), (device, DType::F32));
    // Read as it is kept there: a conversion back might be folded into the first.
    let data = tensor.cast(dtype).into_data();
    data.iter::<f32>().eq(nearest.map(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "flex")]
    #[test]
    fn the_cpu_rounds_but_trains_in_f32() {
        let device = Device::flex();
        assert!(Precision::F32.is_rounded(&device));
        assert_eq!(
            Precision::Bf16.is_rounded(&device),
            Precision::Bf16.is_supported(&device)
        );
        assert_eq!(Precision::fastest(&device), Precision::F32);
        // F16 has another unit, so that the same values are not rounded to whole ones of bf16's.
        assert!(!rounds(FloatDType::F16, &device));
    }
}
