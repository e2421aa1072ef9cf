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

/// The values of a tensor, its tape left out, in double precision.
pub fn doubles<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    values(tensor.clone().inner())
        .into_iter()
        .map(f64::from)
        .collect()
}

/// Asserts that `got` is close to what the oracle gave.
#[track_caller]
pub fn check<const D: usize>(name: &str, got: Tensor<D>, want: &[f64], tolerance: Tolerance) {
    let want = want.iter().map(|value| *value as f32).collect();
    let want = Array::new(&got.dims(), want);
    assert_close(name, &values(got), &want, tolerance);
}

/// Sequence numbers with runs of unequal length, one of them of length 1.
pub fn runs(batch: usize, seq_len: usize) -> Vec<i64> {
    let run = |t: usize| (t >= seq_len / 3) as i64 + (t > seq_len / 3) as i64;
    (0..batch).flat_map(|_| (0..seq_len).map(run)).collect()
}

/// Sequence numbers on a device.
pub fn sequence_tensor(ids: &[i64], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}
