//! Shared by the kernels' tests.

/// Deterministic values in `[-1, 1)`.
pub fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// The same values in f64.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// The scalar product that turns outputs and their gradients into one loss.
pub fn dot(values: &[f64], weights: &[f32]) -> f64 {
    values
        .iter()
        .zip(weights)
        .map(|(value, &weight)| value * f64::from(weight))
        .sum()
}

/// Compares all values with a tolerance relative to the largest of them.
pub fn assert_close(name: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let scale = expected
        .iter()
        .fold(1e-3, |scale: f64, value| scale.max(value.abs()));
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs() / scale;
        assert!(
            error <= tolerance,
            "{name}[{i}]: got {got}, expected {expected}"
        );
    }
}

/// Compares `got`, the gradient of `loss` by input `input`, with central differences at a sample
/// of its places.
pub fn assert_gradient<const N: usize>(
    name: &str,
    got: &[f32],
    values: &mut [Vec<f64>; N],
    input: usize,
    loss: impl Fn(&[Vec<f64>; N]) -> f64,
) {
    assert_eq!(got.len(), values[input].len(), "{name}");
    let scale = got.iter().fold(1e-2_f32, |scale, g| scale.max(g.abs()));
    let stride = (got.len() / 5).max(1);
    for i in (0..got.len())
        .step_by(stride)
        .chain(got.len().checked_sub(1))
    {
        let value = values[input][i];
        let step = 1e-5;
        values[input][i] = value + step;
        let above = loss(values);
        values[input][i] = value - step;
        let below = loss(values);
        values[input][i] = value;
        let expected = (above - below) / (2.0 * step);
        let error = (f64::from(got[i]) - expected).abs() / f64::from(scale);
        assert!(
            error < 1e-5,
            "{name}[{i}]: got {}, expected {expected}",
            got[i]
        );
    }
}
