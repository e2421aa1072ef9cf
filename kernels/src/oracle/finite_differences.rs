//! What the tests of gradients share: test values and central differences.

/// Distinct, reproducible values in `[low, high)` (the SplitMix64 sequence of `seed`).
pub(super) fn uniform(seed: u64, len: usize, low: f64, high: f64) -> Vec<f64> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = state;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^= bits >> 31;
            low + (high - low) * (bits >> 11) as f64 / (1u64 << 53) as f64
        })
        .collect()
}

/// The scalar that the tests differentiate: a weighted sum of an output.
pub(super) fn dot(values: &[f64], weights: &[f64]) -> f64 {
    assert_eq!(values.len(), weights.len());
    values
        .iter()
        .zip(weights)
        .map(|(value, weight)| value * weight)
        .sum()
}

/// Asserts that `gradient` holds the derivatives of `loss` with respect to each entry of `input`.
#[track_caller]
pub(super) fn assert_gradient(
    name: &str,
    input: &[f64],
    gradient: &[f64],
    loss: impl Fn(&[f64]) -> f64,
) {
    // Central differences err by step^2 times the third derivative, and by rounding over step.
    const STEP: f64 = 1e-5;
    const TOLERANCE: f64 = 1e-8;

    assert_eq!(
        input.len(),
        gradient.len(),
        "{name}: one derivative for each entry"
    );
    let mut shifted = input.to_vec();
    for (index, &derivative) in gradient.iter().enumerate() {
        shifted[index] = input[index] + STEP;
        let above = loss(&shifted);
        shifted[index] = input[index] - STEP;
        let below = loss(&shifted);
        shifted[index] = input[index];

        let expected = (above - below) / (2.0 * STEP);
        let error = (derivative - expected).abs();
        assert!(
            error <= TOLERANCE * (1.0 + expected.abs()),
            "{name}[{index}]: gradient {derivative}, finite difference {expected}"
        );
    }
}
