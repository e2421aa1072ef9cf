//! Between fixtures and tensors.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::fixtures::{Array, Fixture};
use crate::tolerances::{Tolerance, assert_close};

/// A fixture's tensor on a device.
pub fn float<const D: usize>(array: &Array<f32>, device: &Device) -> Tensor<D> {
    Tensor::from_data(
        TensorData::new(array.values.clone(), array.shape.clone()),
        device,
    )
}

/// A fixture's integers on a device.
pub fn int<const D: usize>(array: &Array<i64>, device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(
        TensorData::new(array.values.clone(), array.shape.clone()),
        device,
    )
}

/// The values of a tensor as f32.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Asserts that `got` is close to the entry `key` of a fixture.
#[track_caller]
pub fn assert_fixture<const D: usize>(
    name: &str,
    fixture: &Fixture,
    key: &str,
    got: Tensor<D>,
    tolerance: Tolerance,
) {
    let want = fixture.floats(key);
    assert_eq!(
        got.dims().as_slice(),
        want.shape.as_slice(),
        "{name}: shape of {key}"
    );
    assert_close(&format!("{name}: {key}"), &values(got), want, tolerance);
}

/// Asserts that two tensors are close.
#[track_caller]
pub fn assert_same<const D: usize>(
    name: &str,
    got: Tensor<D>,
    want: Tensor<D>,
    tolerance: Tolerance,
) {
    assert_eq!(got.dims(), want.dims(), "{name}: shapes");
    let shape = want.dims();
    assert_close(
        name,
        &values(got),
        &Array::new(&shape, values(want)),
        tolerance,
    );
}

/// Distinct, reproducible numbers between -1 and 1.
pub fn numbers<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let numbers: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}
