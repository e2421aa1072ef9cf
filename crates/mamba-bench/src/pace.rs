//! How long things are measured, and contenders in turns at that pace.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::machine::Load;
use crate::measure::{Calls, Measurement, Samples};

/// Rounds that are taken even where they last longer than they should.
const MIN_ROUNDS: usize = 3;

/// Calls of a turn, at most.
const MAX_CALLS: f64 = 20_000.0;

/// With more calls to a turn, one call alone is too short to tell how many, and warms little up.
const FEW_CALLS: usize = 8;

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Every contender is called this long before it counts, and once at least: kernels are compiled, clocks
    /// and caches settle.
    pub warm_up: Duration,
    /// A turn is as many calls as fit in, at least one.
    pub turn: Duration,
    /// Turns of every contender.
    pub rounds: usize,
    /// After this long no further round begins, if three were taken.
    pub patience: Duration,
}

impl Pace {
    /// For numbers to be kept.
    pub const THOROUGH: Self = Self {
        warm_up: Duration::from_millis(500),
        turn: Duration::from_millis(300),
        rounds: 9,
        patience: Duration::from_secs(60),
    };
    /// For a look.
    pub const QUICK: Self = Self {
        warm_up: Duration::from_millis(100),
        turn: Duration::from_millis(60),
        rounds: 5,
        patience: Duration::from_secs(3),
    };

    /// Warms every contender up, then calls all in turn, round after round. One that fails is left out from there on and
    /// does not disturb the others. `peers` are processes that work for contenders beside this one.
    pub fn measure(&self, contenders: &mut [Calls], peers: &[u32]) -> Vec<Result<Measurement>> {
        let mut turns: Vec<_> = contenders.iter_mut().map(|it| self.warm_up(it)).collect();
        let start = Instant::now();
        for round in 0..self.rounds {
            if round >= MIN_ROUNDS && start.elapsed() > self.patience {
                break;
            }
            for (contender, turn) in contenders.iter_mut().zip(&mut turns) {
                if let Ok(state) = turn
                    && let Err(error) = state.take(contender, peers)
                {
                    *turn = Err(error);
                }
            }
        }
        turns.into_iter().map(|turn| turn?.measurement()).collect()
    }

    /// One contender in this process.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn measure_one(&self, contender: Calls) -> Result<Measurement> {
        let mut measured = self.measure(&mut [contender], &[]);
        measured
            .pop()
            .unwrap_or_else(|| anyhow::bail!("nothing was measured"))
    }

    /// Seconds that a contender takes whose calls take `call`, for a guess at what is left.
    pub fn cost(&self, call: f64) -> f64 {
        let rounds = self.rounds as f64 * call.max(self.turn.as_secs_f64());
        let patient = self.patience.as_secs_f64().max(MIN_ROUNDS as f64 * call);
        self.warm_up.as_secs_f64().max(call) + rounds.min(patient)
    }

    /// How many calls fit in a turn, if one takes the median of these milliseconds.
    fn calls(&self, ms: Vec<f64>) -> Result<usize> {
        let ms = Samples::try_from(ms).map_err(anyhow::Error::msg)?.median();
        let calls = self.turn.as_secs_f64() * 1e3 / ms;
        Ok(calls.clamp(1.0, MAX_CALLS) as usize)
    }

    fn warm_up(&self, contender: &mut Calls) -> Result<Turns> {
        let start = Instant::now();
        let mut calls = contender(1).and_then(|ms| self.calls(ms))?;
        let first = start.elapsed();
        // It may have compiled kernels: another one, if they do not last, tells how many fit in a turn.
        if first > self.warm_up && first < self.patience / 4 {
            calls = contender(1).and_then(|ms| self.calls(ms))?;
        }
        // One call may be mostly the wait for the device: what counts is how long it takes among others.
        let mut several = calls > FEW_CALLS;
        while several || start.elapsed() < self.warm_up {
            let count = if several { calls } else { 1 };
            calls = contender(count).and_then(|ms| self.calls(ms))?;
            several = !several && calls > FEW_CALLS;
        }
        Ok(Turns {
            calls,
            ms: Vec::new(),
            loads: Vec::new(),
        })
    }
}

/// What a contender has done so far.
struct Turns {
    calls: usize,
    ms: Vec<f64>,
    loads: Vec<f64>,
}

impl Turns {
    fn take(&mut self, contender: &mut Calls, peers: &[u32]) -> Result<()> {
        let load = Load::start(peers);
        let ms = Samples::try_from(contender(self.calls)?).map_err(anyhow::Error::msg)?;
        self.ms.push(ms.median());
        self.loads.extend(load.and_then(Load::others));
        Ok(())
    }

    fn measurement(self) -> Result<Measurement> {
        Ok(Measurement {
            ms: Samples::try_from(self.ms).map_err(anyhow::Error::msg)?,
            other_cores: Samples::try_from(self.loads).ok().map(|it| it.median()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    const SHORT: Pace = Pace {
        warm_up: Duration::from_millis(20),
        turn: Duration::from_millis(10),
        rounds: 4,
        patience: Duration::from_secs(9),
    };

    #[test]
    fn a_warm_up_lasts_and_does_not_count() {
        let mut calls = Vec::new();
        let start = Instant::now();
        let contender: Calls = Box::new(|count| {
            calls.push((count, start.elapsed()));
            std::thread::sleep(Duration::from_millis(2));
            Ok(vec![5.0; count])
        });
        let measured = SHORT.measure(&mut [contender], &[]);
        assert_eq!(measured[0].as_ref().unwrap().ms.values(), [5.0; 4]);
        type Seen = Vec<(usize, Duration)>;
        let (counted, warm): (Seen, Seen) = calls.into_iter().partition(|(count, _)| *count == 2);
        assert!(counted.len() == 4 && !warm.is_empty());
        // Not when the last call to warm up ended: whoever is in between may take a core away.
        assert!(counted[0].1 >= SHORT.warm_up);
    }

    #[test]
    fn every_contender_is_called_in_every_round() {
        let order = std::cell::RefCell::new(Vec::new());
        let contender = |name| -> Calls {
            let order = &order;
            Box::new(move |calls| {
                order.borrow_mut().push((name, calls));
                Ok(vec![5.0; calls])
            })
        };
        let pace = Pace {
            warm_up: Duration::ZERO,
            rounds: 2,
            patience: Duration::ZERO,
            ..SHORT
        };
        let measured = pace.measure(&mut [contender('a'), contender('b')], &[]);
        assert_eq!(measured[1].as_ref().unwrap().ms.values(), [5.0; 2]);
        let round = [('a', 2), ('b', 2)];
        let expected = [[('a', 1), ('b', 1)], round, round].concat();
        assert_eq!(*order.borrow(), expected);
    }

    #[test]
    fn a_turn_of_queued_calls_is_as_long_as_any() {
        let mut most = 0;
        // Each wait takes a millisecond, each call a hundredth.
        let contender: Calls = Box::new(|count| {
            most = most.max(count);
            Ok(vec![0.01 + 1.0 / count as f64])
        });
        let pace = Pace {
            warm_up: Duration::ZERO,
            ..SHORT
        };
        assert!(pace.measure(&mut [contender], &[])[0].is_ok());
        assert!(most > 80, "{most}");
    }

    #[test]
    fn one_that_fails_leaves_the_others_alone() {
        let mut left = 3;
        let failing: Calls = Box::new(move |_| {
            left -= 1;
            if left == 0 {
                bail!("broken");
            }
            Ok(vec![100.0])
        });
        let pace = Pace {
            warm_up: Duration::ZERO,
            ..SHORT
        };
        let fine: Calls = Box::new(|count| Ok(vec![1.0; count]));
        let measured = pace.measure(&mut [failing, fine], &[]);
        assert_eq!(measured[0].as_ref().unwrap_err().to_string(), "broken");
        assert_eq!(measured[1].as_ref().unwrap().ms.values().len(), 4);
    }

    #[test]
    fn without_patience_three_rounds_are_taken() {
        let pace = Pace {
            patience: Duration::ZERO,
            rounds: 50,
            ..SHORT
        };
        let fine: Calls = Box::new(|count| Ok(vec![1.0; count]));
        let measured = pace.measure(&mut [fine], &[]);
        assert_eq!(measured[0].as_ref().unwrap().ms.values().len(), MIN_ROUNDS);
    }
}
