//! How a quantity grows with another, and where two curves cross.

use serde::{Deserialize, Serialize};

/// `y = factor * x^exponent`, closest to some points on logarithmic axes (least squares).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerLaw {
    /// The slope of the line.
    pub exponent: f64,
    /// `y` at `x = 1`.
    pub factor: f64,
    /// Standard error of the exponent; absent for two points, which any line meets.
    pub error: Option<f64>,
}

impl PowerLaw {
    /// The law of `(x, y)` pairs, all above zero; none if they have fewer than two different `x`.
    pub fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let logs: Vec<_> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
        let count = logs.len() as f64;
        let mean = |part: fn(&(f64, f64)) -> f64| logs.iter().map(part).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let variance: f64 = logs.iter().map(|point| (point.0 - x).powi(2)).sum();
        let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
        if !logs.iter().all(finite) || logs.is_empty() || variance <= 0.0 {
            return None;
        }
        let covariance: f64 = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
        let exponent = covariance / variance;
        let intercept = y - exponent * x;
        let residual = |point: &(f64, f64)| point.1 - intercept - exponent * point.0;
        let residuals: f64 = logs.iter().map(|point| residual(point).powi(2)).sum();
        Some(Self {
            exponent,
            factor: intercept.exp(),
            error: (logs.len() > 2).then(|| (residuals / (count - 2.0) / variance).sqrt()),
        })
    }
}

/// How two curves lie to each other over the `x` that both have.
#[derive(Clone, Debug, PartialEq)]
pub enum Crossing {
    /// The first is below the second everywhere.
    Below,
    /// The first is above the second everywhere.
    Above,
    /// They cross at these `x`, in ascending order.
    At(Vec<f64>),
}

/// Compares two curves point by point; between points they are straight on logarithmic axes. Both are in ascending
/// order of `x`. None if they share no `x`.
pub fn crossing(first: &[(f64, f64)], second: &[(f64, f64)]) -> Option<Crossing> {
    let ratios: Vec<(f64, f64)> = first
        .iter()
        .filter_map(|(x, y)| {
            let (_, other) = second.iter().find(|point| point.0 == *x)?;
            Some((x.ln(), (y / other).ln()))
        })
        .collect();
    let places: Vec<f64> = ratios
        .windows(2)
        .filter(|pair| (pair[0].1 < 0.0) != (pair[1].1 < 0.0))
        .map(|pair| {
            let ((x0, r0), (x1, r1)) = (pair[0], pair[1]);
            (x0 - r0 * (x1 - x0) / (r1 - r0)).exp()
        })
        .collect();
    let (_, ratio) = ratios.first()?;
    Some(match (places.is_empty(), *ratio < 0.0) {
        (false, _) => Crossing::At(places),
        (true, true) => Crossing::Below,
        (true, false) => Crossing::Above,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(lengths: &[f64], law: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        lengths.iter().map(|&x| (x, law(x))).collect()
    }

    const LENGTHS: [f64; 5] = [1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

    #[test]
    fn an_exact_law_is_found_without_error() {
        let law = PowerLaw::fit(&curve(&LENGTHS, |x| 3.0 * x.powf(1.5))).unwrap();
        assert!((law.exponent - 1.5).abs() < 1e-12 && (law.factor - 3.0).abs() < 1e-9);
        assert!(law.error.unwrap() < 1e-9);
    }

    #[test]
    fn the_error_covers_noise() {
        // Twice up, twice down by 4 %, the middle left alone.
        let noise = [1.04, 0.96, 1.0, 1.04, 0.96];
        let mut points = curve(&LENGTHS, |x| 0.01 * x);
        for (point, factor) in points.iter_mut().zip(noise) {
            point.1 *= factor;
        }
        let law = PowerLaw::fit(&points).unwrap();
        let error = law.error.unwrap();
        assert!((law.exponent - 1.0).abs() < 2.0 * error, "{law:?}");
        assert!((0.01..0.04).contains(&error), "{law:?}");
    }

    #[test]
    fn linear_plus_quadratic_lies_between() {
        let law = PowerLaw::fit(&curve(&LENGTHS, |x| x + x * x / 4096.0)).unwrap();
        assert!(1.2 < law.exponent && law.exponent < 1.9, "{law:?}");
    }

    #[test]
    fn too_few_points_have_no_law_and_two_no_error() {
        assert_eq!(PowerLaw::fit(&[]), None);
        assert_eq!(PowerLaw::fit(&[(8.0, 1.0), (8.0, 2.0)]), None);
        assert_eq!(PowerLaw::fit(&[(8.0, 0.0), (9.0, 2.0)]), None);
        let law = PowerLaw::fit(&[(2.0, 2.0), (4.0, 4.0)]).unwrap();
        assert!((law.exponent - 1.0).abs() < 1e-12 && law.error.is_none());
    }

    #[test]
    fn the_crossing_is_where_the_laws_meet() {
        // 1000 x = x^2 at x = 1000, between 512 and 1024.
        let lengths = [256.0, 512.0, 1024.0, 2048.0];
        let (linear, square) = (curve(&lengths, |x| 1000.0 * x), curve(&lengths, |x| x * x));
        let Some(Crossing::At(places)) = crossing(&linear, &square) else {
            panic!("they cross");
        };
        assert!(places.len() == 1 && (places[0] - 1000.0).abs() < 1e-6);
        let double = curve(&lengths, |x| 2000.0 * x);
        assert_eq!(crossing(&linear, &double), Some(Crossing::Below));
        assert_eq!(crossing(&double, &linear), Some(Crossing::Above));
        assert_eq!(crossing(&linear, &[(1.0, 1.0)]), None);
    }
}
