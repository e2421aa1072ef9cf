//! How far an implementation may be from the truth: the constants of each operation and dtype, and
//! the assertion that applies them.
//!
//! A loosened constant says why.

use crate::fixtures::Array;

/// An entry passes if `|got - want| <= absolute + relative * |want|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Share of the expected magnitude.
    pub relative: f64,
    /// What is allowed beside it, for entries near zero.
    pub absolute: f64,
}

impl Tolerance {
    const fn new(relative: f64, absolute: f64) -> Self {
        Self { relative, absolute }
    }
}

/// The f64 oracle against fixtures: half a unit in the last place of f32, in which they are saved.
pub const ORACLE: Tolerance = Tolerance::new(6e-8, 1e-12);

// PyTorch in f32 stays within (1e-5, 1e-6) of the fixtures of every operation and block, values and
// gradients alike; their entries reach 45, after sums over 130 positions. What is beyond leaves room
// for another order of sums and another `exp`.

/// Values of the selective scan in f32: `y` and the final state. CPUs stay within 2e-6; on a GPU an
/// `exp` may be off by 3 + 2|x| units in the last place, and an entry near zero is what is left of
/// states that reach 45.
pub const SELECTIVE_SCAN_F32: Tolerance = Tolerance::new(1e-5, 8e-6);
/// Gradients of the selective scan in f32.
pub const SELECTIVE_SCAN_F32_GRADIENT: Tolerance = Tolerance::new(2e-5, 5e-6);

/// Values of the causal convolution in f32: `y` and the final window.
pub const CAUSAL_CONV1D_F32: Tolerance = Tolerance::new(2e-6, 1e-6);
/// Gradients of the causal convolution in f32.
pub const CAUSAL_CONV1D_F32_GRADIENT: Tolerance = Tolerance::new(5e-6, 2e-6);

/// The fused linear layer and cross-entropy in f32.
pub const LINEAR_CROSS_ENTROPY_F32: Tolerance = Tolerance::new(2e-6, 1e-6);
/// Gradients of the fused linear layer and cross-entropy in f32.
pub const LINEAR_CROSS_ENTROPY_F32_GRADIENT: Tolerance = Tolerance::new(5e-6, 2e-7);

/// Attention and its gradients beside the reference: sums of a few dozen products, in another order.
pub const ATTENTION_F32: Tolerance = Tolerance::new(1e-5, 1e-5);

/// Linear layers and norms in f32, values and gradients, against Burn's: sums of up to 2100 products.
pub const LAYER_F32: Tolerance = Tolerance::new(1e-5, 2e-5);

/// Values of the SSD recurrence in f32: `y` and the final state. Products of chunks add up in another order than a
/// recurrence does, and their decays are exponentials of sums of up to 130 time steps.
pub const SSD_F32: Tolerance = Tolerance::new(2e-5, 1e-5);
/// Gradients of the SSD recurrence in f32; that of a time step is what is left of sums over its chunk.
pub const SSD_F32_GRADIENT: Tolerance = Tolerance::new(5e-5, 3e-5);

/// Values of a whole Mamba-1 or Mamba-2 block in f32: output and both final states.
pub const MIXER_F32: Tolerance = Tolerance::new(2e-5, 5e-6);
/// Gradients of a whole Mamba-1 or Mamba-2 block in f32.
pub const MIXER_F32_GRADIENT: Tolerance = Tolerance::new(5e-5, 1e-5);

/// Logits and loss of a small language model in f32, against fixtures that are themselves in f32.
pub const LANGUAGE_MODEL_F32: Tolerance = Tolerance::new(5e-5, 2e-5);
/// Gradients of a small language model in f32, against fixtures that are themselves in f32.
pub const LANGUAGE_MODEL_F32_GRADIENT: Tolerance = Tolerance::new(2e-4, 5e-5);

/// The entry that exceeds its tolerance the most.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// Its position on each axis.
    pub index: Vec<usize>,
    /// The value under test.
    pub got: f64,
    /// The true value.
    pub want: f64,
    /// Its error as a multiple of the allowed one; infinite where a value is not finite.
    pub excess: f64,
    /// How many entries exceed their tolerance.
    pub count: usize,
}

/// The worst entry of `got` that exceeds the tolerance, or `None` if all are close.
///
/// An entry that is NaN or infinite on either side exceeds every tolerance.
///
/// # Panics
///
/// Panics if `got` and `want` differ in length.
pub fn worst_mismatch<T>(got: &[T], want: &Array<f32>, tolerance: Tolerance) -> Option<Mismatch>
where
    T: Copy + Into<f64>,
{
    assert_eq!(
        got.len(),
        want.values.len(),
        "as many values as the expected {:?}",
        want.shape
    );
    let mut worst: Option<Mismatch> = None;
    let mut count = 0;
    for (offset, (&got, &want_value)) in got.iter().zip(&want.values).enumerate() {
        let (got, want_value) = (got.into(), f64::from(want_value));
        let allowed = tolerance.absolute + tolerance.relative * want_value.abs();
        let error = (got - want_value).abs();
        if error <= allowed && want_value.is_finite() {
            continue;
        }
        count += 1;
        let excess = if error.is_finite() {
            error / allowed
        } else {
            f64::INFINITY
        };
        if worst.as_ref().is_none_or(|worst| excess > worst.excess) {
            let index = unravel(offset, &want.shape);
            worst = Some(Mismatch {
                index,
                got,
                want: want_value,
                excess,
                count,
            });
        }
    }
    worst.map(|worst| Mismatch { count, ..worst })
}

/// Asserts that every entry of `got` is close to the one of `want`.
///
/// # Panics
///
/// Panics if one is not, or the lengths differ; the message names the worst entry.
#[track_caller]
pub fn assert_close<T>(name: &str, got: &[T], want: &Array<f32>, tolerance: Tolerance)
where
    T: Copy + Into<f64>,
{
    assert!(
        got.len() == want.values.len(),
        "{name}: expected {} values for shape {:?}, got {}",
        want.values.len(),
        want.shape,
        got.len()
    );
    if let Some(Mismatch {
        index,
        got: got_value,
        want: want_value,
        excess,
        count,
    }) = worst_mismatch(got, want, tolerance)
    {
        panic!(
            "{name}: {count} of {} values are off; the worst, at {index:?}, is {got_value:e} \
             instead of {want_value:e}, {excess:.3} times the allowed error ({tolerance:?})",
            got.len()
        );
    }
}

/// The position on each axis of the entry at `offset`.
fn unravel(mut offset: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (position, &size) in index.iter_mut().zip(shape).rev() {
        *position = offset % size;
        offset /= size;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance::new(0.0, 0.1);

    fn zeros() -> Array<f32> {
        Array::new(&[2, 3], vec![0.0; 6])
    }

    #[test]
    fn the_worst_entry_is_reported_with_its_indices() {
        let got = [0.0, 0.2, 0.0, 0.05, 0.4, 0.3];
        let worst = worst_mismatch(&got, &zeros(), TOLERANCE).expect("three entries are off");
        assert_eq!(worst.index, [1, 1]);
        assert_eq!(worst.got, 0.4);
        assert_eq!(worst.count, 3);
    }

    #[test]
    fn a_nan_never_passes() {
        let mut got = [0.0; 6];
        got[4] = f64::NAN;
        let loose = Tolerance::new(0.0, f64::MAX);
        let worst = worst_mismatch(&got, &zeros(), loose).expect("a NaN is off");
        assert_eq!(worst.index, [1, 1]);

        let mut want = zeros();
        want.values[5] = f32::NAN;
        assert!(worst_mismatch(&[f32::NAN; 6], &want, loose).is_some());
        assert!(worst_mismatch(&[0.0; 6], &want, loose).is_some());
    }

    #[test]
    fn an_infinity_never_passes() {
        let want = Array::new(&[], vec![f32::INFINITY]);
        assert!(worst_mismatch(&[f32::INFINITY], &want, TOLERANCE).is_some());
        let want = Array::new(&[], vec![0.0]);
        assert!(worst_mismatch(&[f32::INFINITY], &want, TOLERANCE).is_some());
    }

    #[test]
    fn relative_and_absolute_parts_add_up() {
        let want = Array::new(&[1], vec![100.0]);
        let tolerance = Tolerance::new(0.01, 0.5);
        assert_eq!(worst_mismatch(&[101.4], &want, tolerance), None);
        assert!(worst_mismatch(&[101.6], &want, tolerance).is_some());
    }

    #[test]
    #[should_panic(expected = "y: expected 6 values for shape [2, 3], got 5")]
    fn a_missing_value_fails() {
        assert_close("y", &[0.0; 5], &zeros(), TOLERANCE);
    }

    #[test]
    #[should_panic(expected = "y: 1 of 6 values are off; the worst, at [0, 2]")]
    fn the_message_names_the_entry() {
        assert_close("y", &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0], &zeros(), TOLERANCE);
    }
}
