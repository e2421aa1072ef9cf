use super::SamplingError;
use serde::{Deserialize, Serialize};

/// How a [`Sampler`](super::Sampler) chooses. The default samples from the whole distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Divides the logits; 0 always takes the most likely token. Default: 1
    pub temperature: f32,
    /// Keep the `k` most likely tokens, and those tied with the last of them. Default: all
    pub top_k: Option<usize>,
    /// Keep the fewest most likely tokens whose probabilities reach this sum. Default: 1
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the most likely one. Default: 0
    pub min_p: f32,
    /// Of the tokens whose surprise is nearest to the expected one, keep the fewest whose probabilities reach this sum: Meister et
    /// al. 2022, "Locally Typical Sampling". Default: 1
    pub typical_p: f32,
    /// Taken off the logit of a token for each time it occurs in the history. Default: 0
    pub frequency_penalty: f32,
    /// Taken off the logit of a token that occurs in the history. Default: 0
    pub presence_penalty: f32,
    /// Logits of tokens in the history are divided by this if positive, multiplied if negative.
    /// Default: 1
    pub repetition_penalty: f32,
    /// Where the random numbers start. Default: 0
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingConfig {
    /// Whether tokens that have occurred are less likely, or more.
    pub fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// Checks that every field is in its range.
    ///
    /// # Errors
    ///
    /// [`SamplingError::InvalidConfig`] names the first field that is not.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let finite = |value: f32| value.is_finite();
        // Written so that NaN fails each of them.
        let rules = [
            (
                finite(self.temperature) && self.temperature >= 0.0,
                "temperature",
                "a finite number >= 0 (0 is greedy)",
                self.temperature,
            ),
            (
                self.top_k != Some(0),
                "top_k",
                ">= 1 (leave it out to keep all tokens)",
                0.0,
            ),
            (
                self.top_p > 0.0 && self.top_p <= 1.0,
                "top_p",
                "above 0 and at most 1",
                self.top_p,
            ),
            (
                (0.0..1.0).contains(&self.min_p),
                "min_p",
                "at least 0 and below 1",
                self.min_p,
            ),
            (
                self.typical_p > 0.0 && self.typical_p <= 1.0,
                "typical_p",
                "above 0 and at most 1",
                self.typical_p,
            ),
            (
                finite(self.frequency_penalty),
                "frequency_penalty",
                "a finite number (0 is none)",
                self.frequency_penalty,
            ),
            (
                finite(self.presence_penalty),
                "presence_penalty",
                "a finite number (0 is none)",
                self.presence_penalty,
            ),
            (
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
                "repetition_penalty",
                "a finite number above 0 (1 is none)",
                self.repetition_penalty,
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            None => Ok(()),
            Some((_, field, expected, got)) => Err(SamplingError::InvalidConfig {
                field,
                expected,
                got,
            }),
        }
    }
}
