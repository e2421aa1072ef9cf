//! How far a run is, and how long it still takes.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::results::Entry;
use crate::session::Finished;

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Of the whole, between 0 and 1.
    pub share: f64,
    /// What is left, once there is something to judge by.
    pub left: Option<Duration>,
    /// What is measured now.
    pub what: String,
}

/// Who looks on while suites run.
pub trait Watch {
    /// A suite begins, by name: its number among all of them, and theirs.
    fn begin(&mut self, suite: &str, place: [usize; 2]);
    /// An entry was written.
    fn entry(&mut self, entry: &Entry);
    /// Another measurement begins.
    fn progress(&mut self, progress: &Progress);
    /// It came to its end, or failed.
    fn end(&mut self, suite: &str, outcome: &Result<Finished>);
}

/// What is done and what is left.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    total: f64,
    done: f64,
    current: f64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            total: 0.0,
            done: 0.0,
            current: 0.0,
        }
    }
}

impl Clock {
    /// Of work that will cost `total`, in any unit.
    pub fn new(total: f64) -> Self {
        Self {
            total,
            ..Self::default()
        }
    }

    /// What costs `cost` begins.
    pub fn begin(&mut self, what: String, cost: f64) -> Progress {
        self.done += self.current;
        self.current = cost;
        // What took longer than expected never makes more than all.
        let share = match self.total > 0.0 {
            true => (self.done / self.total).min(1.0),
            false => 0.0,
        };
        let elapsed = self.start.elapsed();
        let left = elapsed.as_secs_f64() * (1.0 - share) / share;
        // None before the first is done; nor where what comes costs more than any time.
        let left = Duration::try_from_secs_f64(left).ok();
        Progress { share, left, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_is_done() {
        let mut clock = Clock {
            start: Instant::now() - Duration::from_secs(10),
            total: 4.0,
            done: 0.0,
            current: 0.0,
        };
        let first = clock.begin("a".into(), 1.0);
        assert!(first.share == 0.0 && first.left.is_none());
        // A quarter is done: three times as long is left, of a time that goes on meanwhile.
        let least = 3 * clock.start.elapsed();
        let second = clock.begin("b".into(), 3.0);
        let most = 3 * clock.start.elapsed();
        assert_eq!(second.share, 0.25);
        let left = second.left.unwrap();
        let rounding = Duration::from_micros(1);
        assert!(
            least <= left + rounding && left <= most + rounding,
            "{left:?}"
        );
        assert_eq!(clock.begin("c".into(), 9.0).share, 1.0);
        let mut endless = Clock::new(1e300);
        endless.begin("a".into(), 1e-3);
        assert!(endless.begin("b".into(), 1e300).left.is_none());
    }
}
