use super::SamplingConfig;
use std::cmp::Ordering;

/// How many candidates top-p orders first; most distributions reach their `top_p` within them.
const FIRST_ORDERED: usize = 64;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub token: u32,
    /// Its probability relative to the most likely token's, in `[0, 1]`.
    pub weight: f32,
}

impl Candidate {
    /// Most likely first; of equals, the lower token first.
    fn order(&self, other: &Self) -> Ordering {
        other
            .weight
            .total_cmp(&self.weight)
            .then(self.token.cmp(&other.token))
    }
}

/// The filters and the memory that they reuse from token to token.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    candidates: Vec<Candidate>,
    /// Logits for top-k to select among.
    logits: Vec<f32>,
}

impl Filters {
    /// The candidates left, at least the most likely one, in an order that depends on nothing but
    /// the config and the logits.
    ///
    /// `max` is the largest logit; the temperature is positive.
    pub fn apply(&mut self, config: &SamplingConfig, logits: &[f32], max: f32) -> &[Candidate] {
        let least = match config.top_k {
            Some(k) if k < logits.len() => self.kth_largest(logits, k),
            _ => f32::NEG_INFINITY,
        };
        self.candidates.clear();
        self.candidates.extend(
            logits
                .iter()
                .enumerate()
                .filter(|&(_, &logit)| logit >= least && logit > f32::NEG_INFINITY)
                .map(|(token, &logit)| Candidate {
                    token: token as u32,
                    // The difference first: a tiny temperature must not make infinities.
                    weight: ((logit - max) / config.temperature).exp(),
                }),
        );

        if config.top_p < 1.0 {
            self.keep_top_p(f64::from(config.top_p));
        }
        if config.min_p > 0.0 {
            self.candidates.retain(|c| c.weight >= config.min_p);
        }
        if config.typical_p < 1.0 {
            self.keep_typical(f64::from(config.typical_p));
        }
        &self.candidates
    }

    /// Keeps the candidates nearest to the expected surprise, as many as it takes to reach `typical_p`.
    fn keep_typical(&mut self, typical_p: f64) {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let surprise = |c: &Candidate| -(f64::from(c.weight) / total).ln();
        // What has no probability is no surprise, but infinitely far.
        let possible = self.candidates.iter().filter(|c| c.weight > 0.0);
        let expected: f64 = possible
            .map(|c| f64::from(c.weight) / total * surprise(c))
            .sum();
        let distance = |c: &Candidate| (surprise(c) - expected).abs();
        self.candidates.sort_unstable_by(|a, b| {
            let by_distance = distance(a).total_cmp(&distance(b));
            by_distance.then_with(|| a.order(b))
        });
        let mut reached = 0.0;
        let kept = self.candidates.iter().take_while(|c| {
            let more = reached < typical_p * total;
            reached += f64::from(c.weight);
            more
        });
        let kept = kept.count();
        self.candidates.truncate(kept);
    }

    fn kth_largest(&mut self, logits: &[f32], k: usize) -> f32 {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        *self
            .logits
            .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
            .1
    }

    /// Keeps each candidate before which the probabilities of the likelier ones sum to less than
    /// `top_p`. Orders only as many as that takes, by selecting ever larger fronts.
    fn keep_top_p(&mut self, top_p: f64) {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let count = self.candidates.len();
        let (mut kept, mut ordered, mut before) = (0, 0, 0.0);

        while kept < count && before < top_p * total {
            if kept == ordered {
                let front = (4 * ordered)
                    .clamp(FIRST_ORDERED, FIRST_ORDERED.max(count))
                    .min(count);
                let rest = &mut self.candidates[ordered..];
                if front < count {
                    rest.select_nth_unstable_by(front - ordered - 1, Candidate::order);
                }
                rest[..front - ordered].sort_unstable_by(Candidate::order);
                ordered = front;
            }
            before += f64::from(self.candidates[kept].weight);
            kept += 1;
        }
        self.candidates.truncate(kept);
    }
}
