//! What is timed, and what comes of it.

use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Repeated measurements of one thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct Samples(Vec<f64>);

impl TryFrom<Vec<f64>> for Samples {
    type Error = &'static str;

    fn try_from(values: Vec<f64>) -> Result<Self, Self::Error> {
        match values.is_empty() {
            true => Err("expected at least one measurement"),
            false => Ok(Self(values)),
        }
    }
}

impl From<Samples> for Vec<f64> {
    fn from(samples: Samples) -> Self {
        samples.0
    }
}

impl Samples {
    /// # Panics
    ///
    /// If there are none.
    pub fn new(values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "Samples: expected at least one value");
        Self(values)
    }

    /// In the order of measurement.
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// The middle value, or the mean of the two middle ones.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value that the given share of the values stays below, on the line between its neighbours.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
        let (low, high) = (place.floor() as usize, place.ceil() as usize);
        sorted[low] + (sorted[high] - sorted[low]) * place.fract()
    }

    /// The smallest value.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Each value over the one that `other` measured in the same round.
    pub fn over(&self, other: &Self) -> Self {
        Self::new(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

/// Takes a number of calls, and returns the milliseconds of each.
pub type Calls<'a> = Box<dyn FnMut(usize) -> Result<Vec<f64>> + 'a>;

/// Makes [`Calls`] of work in this process.
pub fn clocked<'a>(mut work: impl FnMut() -> Result<()> + 'a) -> Calls<'a> {
    Box::new(move |calls| {
        let one = |_| {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        (0..calls).map(one).collect()
    })
}

/// Makes [`Calls`] of work that a device does behind the back of this process: all calls are queued, and waited for once, so
/// that launching the next hides behind running the last. What comes back is the mean of them.
pub fn queued<'a>(
    mut work: impl FnMut() -> Result<()> + 'a,
    mut finish: impl FnMut() -> Result<()> + 'a,
) -> Calls<'a> {
    Box::new(move |calls| {
        let start = Instant::now();
        (0..calls).try_for_each(|_| work())?;
        finish()?;
        Ok(vec![start.elapsed().as_secs_f64() * 1e3 / calls as f64])
    })
}

/// What a contender needed.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Milliseconds of a call, one value a round: the median of the round's calls.
    pub ms: Samples,
    /// Cores that other processes kept busy meanwhile, where the system tells.
    pub other_cores: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_order_and_averages_an_even_middle() {
        assert_eq!(Samples::new(vec![9.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Samples::new(vec![9.0, 1.0, 2.0, 4.0]).median(), 3.0);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let (a, b) = (Samples::new(vec![6.0, 20.0]), Samples::new(vec![2.0, 5.0]));
        assert_eq!(a.over(&b), Samples::new(vec![3.0, 4.0]));
    }

    #[test]
    fn quartiles_lie_between_their_neighbours() {
        let samples = Samples::new(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(samples.quantile(0.25), 1.75);
        assert_eq!(samples.quantile(1.0), 4.0);
    }

    #[test]
    fn queued_calls_are_waited_for_once() {
        let (mut called, mut waited) = (0, 0);
        let mut calls = queued(
            || {
                called += 1;
                Ok(())
            },
            || {
                waited += 1;
                std::thread::sleep(std::time::Duration::from_millis(20));
                Ok(())
            },
        );
        let ms = calls(10).unwrap();
        drop(calls);
        assert_eq!((called, waited, ms.len()), (10, 1, 1));
        assert!(ms[0] >= 2.0, "{ms:?}");
    }
}
