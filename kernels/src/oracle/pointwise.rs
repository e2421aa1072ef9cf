/// Above this argument [`softplus`] is the identity, as in PyTorch.
pub const SOFTPLUS_THRESHOLD: f64 = 20.0;

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + exp(x))`, and `x` itself above [`SOFTPLUS_THRESHOLD`].
pub fn softplus(x: f64) -> f64 {
    if x > SOFTPLUS_THRESHOLD {
        x
    } else {
        x.exp().ln_1p()
    }
}

/// The derivative of [`softplus`] at `x`.
pub fn softplus_slope(x: f64) -> f64 {
    if x > SOFTPLUS_THRESHOLD {
        1.0
    } else {
        sigmoid(x)
    }
}

/// `x * sigmoid(x)`.
pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// The derivative of [`silu`] at `x`.
pub fn silu_slope(x: f64) -> f64 {
    let gate = sigmoid(x);
    gate * (1.0 + x * (1.0 - gate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_the_derivatives() {
        let step = 1e-6;
        for x in [-30.0, -3.0, -0.5, 0.0, 0.1, 2.0, 19.0, 21.0, 700.0] {
            for (function, slope) in [
                (softplus as fn(f64) -> f64, softplus_slope as fn(f64) -> f64),
                (silu, silu_slope),
            ] {
                let difference = (function(x + step) - function(x - step)) / (2.0 * step);
                assert!(
                    (difference - slope(x)).abs() < 1e-6,
                    "at {x}: {difference} != {}",
                    slope(x)
                );
            }
        }
    }

    #[test]
    fn softplus_is_the_identity_only_above_its_threshold() {
        assert_eq!(
            softplus(SOFTPLUS_THRESHOLD + 1e-9),
            SOFTPLUS_THRESHOLD + 1e-9
        );
        assert!(softplus(SOFTPLUS_THRESHOLD) > SOFTPLUS_THRESHOLD);
        assert_eq!(softplus_slope(SOFTPLUS_THRESHOLD + 1e-9), 1.0);
    }

    #[test]
    fn extremes_stay_finite() {
        for x in [-1e4, 1e4] {
            for value in [softplus(x), softplus_slope(x), silu(x), silu_slope(x)] {
                assert!(value.is_finite(), "{value} at {x}");
            }
        }
    }
}
