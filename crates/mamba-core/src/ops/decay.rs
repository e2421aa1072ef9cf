//! Decay rates of recurrences from their logarithms, on tensors.

use burn::tensor::Tensor;

/// `-exp(a_log)`. On Flex without gradients in one vectorised pass: Burn's two go value by value, which takes
/// longer than a step of Mamba-1's recurrence.
pub(crate) fn decay_rates<const D: usize>(a_log: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    {
        use burn::tensor::{DType, TensorData};

        let device = a_log.device();
        if a_log.dtype() == DType::F32 && super::on_flex(&device) && !device.is_autodiff() {
            let shape = a_log.shape();
            if let Ok(mut values) = a_log.clone().into_data().try_into_vec::<f32>() {
                super::cpu::decay::negative_exp(&mut values);
                return Tensor::from_data(TensorData::new::<f32, _>(values, shape), &device);
            }
        }
    }
    -a_log.exp()
}
