use std::fmt;

/// Why no token could be chosen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SamplingError {
    /// A field of [`SamplingConfig`](super::SamplingConfig) is out of its range.
    InvalidConfig {
        /// The field's name.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        got: f32,
    },
    /// A logit is NaN or positive infinity: the model diverged or its weights are damaged.
    InvalidLogit {
        /// The token with the first such logit.
        token: usize,
        /// The logit.
        value: f32,
    },
    /// There are no logits, or all are negative infinity: every token is forbidden.
    NoCandidate {
        /// How many logits were given.
        vocab_size: usize,
    },
    /// The device found a logit that is NaN or positive infinity, or none that is finite.
    NoChoice {
        /// How many logits there are.
        vocab_size: usize,
    },
    /// A token of the history has no logit.
    UnknownToken {
        /// The token.
        token: u32,
        /// How many logits were given.
        vocab_size: usize,
    },
}

impl fmt::Display for SamplingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidConfig {
                field,
                expected,
                got,
            } => write!(f, "sampling: {field} must be {expected}, got {got}"),
            Self::InvalidLogit { token, value } => write!(
                f,
                "sampling: the logit of token {token} is {value}; the model diverged or its \
                 weights are damaged"
            ),
            Self::NoCandidate { vocab_size } => write!(
                f,
                "sampling: none of the {vocab_size} logits is finite, so that no token is allowed"
            ),
            Self::NoChoice { vocab_size } => write!(
                f,
                "sampling: one of the {vocab_size} logits is no number, or none is finite; the model \
                 diverged or its weights are damaged"
            ),
            Self::UnknownToken { token, vocab_size } => write!(
                f,
                "sampling: token {token} of the history must be < the vocabulary size {vocab_size}"
            ),
        }
    }
}

impl std::error::Error for SamplingError {}
