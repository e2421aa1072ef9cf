//! What a generation cost.

use std::fmt;
use std::time::{Duration, Instant};

use mamba_train::hardware::peak_memory;

/// Counts and times, shown on standard error at the end.
pub struct Statistics {
    began: Instant,
    prompt_tokens: usize,
    /// Spent until the prompts' first tokens.
    reading: Duration,
    generated: usize,
    /// Of them those that came after the first ones, which the reading gives.
    later: usize,
    generating: Duration,
    first: Option<Duration>,
}

impl Statistics {
    /// Since `began`, when the command did: loading counts for the first token.
    pub fn since(began: Instant) -> Self {
        Self {
            began,
            prompt_tokens: 0,
            reading: Duration::ZERO,
            generated: 0,
            later: 0,
            generating: Duration::ZERO,
            first: None,
        }
    }

    /// Begins to read so many tokens of prompts.
    pub fn read(&mut self, prompt_tokens: usize) -> Pass<'_> {
        self.prompt_tokens += prompt_tokens;
        Pass {
            statistics: self,
            start: Instant::now(),
            first: None,
        }
    }
}

/// One generation, from its prompts on.
pub struct Pass<'a> {
    statistics: &'a mut Statistics,
    start: Instant,
    first: Option<Instant>,
}

impl Pass<'_> {
    /// That many sequences got a token.
    pub fn tokens(&mut self, count: usize) {
        self.statistics.generated += count;
        match self.first {
            Some(_) => self.statistics.later += count,
            None => {
                self.first = Some(Instant::now());
                let since = self.statistics.began.elapsed();
                self.statistics.first.get_or_insert(since);
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let end = Instant::now();
        let first = self.first.unwrap_or(end);
        self.statistics.reading += first - self.start;
        self.statistics.generating += end - first;
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speed = |count: usize, time: Duration| match time.as_secs_f64() {
            seconds if count > 0 && seconds > 0.0 => {
                format!(" ({:.1} tokens/s)", count as f64 / seconds)
            }
            _ => String::new(),
        };
        write!(
            f,
            "{} prompt tokens{}, {} generated{}",
            self.prompt_tokens,
            speed(self.prompt_tokens, self.reading),
            self.generated,
            speed(self.later, self.generating)
        )?;
        if let Some(first) = self.first {
            let first = first.as_secs_f64();
            write!(f, "; first token {first:.3} s after the start")?;
        }
        match peak_memory() {
            Some(bytes) => write!(f, "; peak memory {} MiB", bytes >> 20),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tokens_belong_to_the_reading() {
        let mut statistics = Statistics::since(Instant::now());
        let mut pass = statistics.read(7);
        pass.tokens(2);
        pass.tokens(2);
        pass.tokens(1);
        drop(pass);
        statistics.read(1);
        assert_eq!((statistics.prompt_tokens, statistics.generated), (8, 5));
        assert_eq!(statistics.later, 3);
        let text = statistics.to_string();
        assert!(
            text.contains("8 prompt tokens (") && text.contains("5 generated ("),
            "{text}"
        );
        assert!(text.contains("first token 0."), "{text}");
    }
}
