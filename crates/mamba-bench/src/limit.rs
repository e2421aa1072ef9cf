//! What is left out though nothing failed: for want of time, or by choice.

use std::time::{Duration, Instant};

/// Why something was not measured though nothing failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// The time limit was reached before it began.
    #[error("the {} s of --time-limit are over", .0.as_secs_f64())]
    Time(Duration),
    /// The filter lets none of a suite's problems through.
    #[error("--filter {filter} leaves nothing to measure: there are {problems}")]
    Filter {
        /// Parts of names, with commas between them.
        filter: String,
        /// The names of the problems that there are.
        problems: String,
    },
}

/// Until when measurements may begin.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimit {
    start: Instant,
    limit: Option<Duration>,
}

impl TimeLimit {
    /// So long from now, or for ever.
    pub fn from_now(limit: Option<Duration>) -> Self {
        Self {
            start: Instant::now(),
            limit,
        }
    }

    /// What is left of it, if there is one.
    pub fn left(&self) -> Option<Duration> {
        Some(self.limit?.saturating_sub(self.start.elapsed()))
    }

    /// Refuses what would begin too late.
    ///
    /// # Errors
    ///
    /// If the time is over.
    pub fn check(&self) -> Result<(), LeftOut> {
        match self.limit {
            Some(limit) if self.start.elapsed() >= limit => Err(LeftOut::Time(limit)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_ends_where_it_is_limited() {
        let none = TimeLimit::from_now(None);
        assert!(none.check().is_ok() && none.left().is_none());
        let hour = TimeLimit::from_now(Some(Duration::from_secs(3600)));
        assert!(hour.check().is_ok() && hour.left().unwrap() > Duration::from_secs(3000));
        let over = TimeLimit::from_now(Some(Duration::ZERO));
        assert_eq!(over.left(), Some(Duration::ZERO));
        let reason = over.check().unwrap_err().to_string();
        assert_eq!(reason, "the 0 s of --time-limit are over");
    }
}
