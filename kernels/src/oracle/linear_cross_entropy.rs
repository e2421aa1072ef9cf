use super::assert_len;

/// Inputs of [`linear_cross_entropy`], in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct LinearCrossEntropyInputs<'a> {
    /// Number of tokens.
    pub tokens: usize,
    /// Features of each token.
    pub d_model: usize,
    /// Rows of the head; those past `vocab_size` are padding and take no part.
    pub rows: usize,
    /// Entries of the vocabulary, at least 1 and at most `rows`.
    pub vocab_size: usize,
    /// `[tokens, d_model]`.
    pub hidden: &'a [f64],
    /// The head: `[rows, d_model]`.
    pub weight: &'a [f64],
    /// The true entry of each token, in `0..vocab_size` or `ignore_index`: `[tokens]`.
    pub targets: &'a [i64],
    /// A target whose tokens are not counted.
    pub ignore_index: Option<i64>,
}

/// Gradients of the float inputs of [`linear_cross_entropy`], each in its input's shape.
#[derive(Clone, Debug)]
pub struct LinearCrossEntropyGradients {
    /// `[tokens, d_model]`.
    pub hidden: Vec<f64>,
    /// `[rows, d_model]`.
    pub weight: Vec<f64>,
}

/// The mean over counted tokens of `-ln softmax(hidden . weight^T)[target]`, in nats.
///
/// Zero if no token is counted.
///
/// # Panics
///
/// Panics if a slice's length does not match the dimensions, if `vocab_size` is not in
/// `1..=rows`, or if a target is neither in the vocabulary nor `ignore_index`.
pub fn linear_cross_entropy(inputs: &LinearCrossEntropyInputs) -> f64 {
    inputs.assert_valid("linear_cross_entropy");
    let counted = inputs.counted_tokens();
    let total: f64 = counted
        .iter()
        .map(|&(token, target)| {
            let logits = inputs.logits(token);
            log_sum_exp(&logits) - logits[target]
        })
        .sum();
    total / counted.len().max(1) as f64
}

/// Gradients of a loss through [`linear_cross_entropy`]; `grad_loss` is the loss's gradient with
/// respect to the mean.
///
/// With `p` the softmax of a counted token's logits, the gradient of its logits is
/// `(p - one_hot(target)) * grad_loss / counted tokens`.
///
/// # Panics
///
/// As [`linear_cross_entropy`].
pub fn linear_cross_entropy_backward(
    inputs: &LinearCrossEntropyInputs,
    grad_loss: f64,
) -> LinearCrossEntropyGradients {
    inputs.assert_valid("linear_cross_entropy_backward");
    let d_model = inputs.d_model;
    let mut grads = LinearCrossEntropyGradients {
        hidden: vec![0.0; inputs.hidden.len()],
        weight: vec![0.0; inputs.weight.len()],
    };
    let counted = inputs.counted_tokens();
    for &(token, target) in &counted {
        let logits = inputs.logits(token);
        let log_total = log_sum_exp(&logits);
        for (entry, logit) in logits.iter().enumerate() {
            let one_hot = if entry == target { 1.0 } else { 0.0 };
            let grad_logit =
                ((logit - log_total).exp() - one_hot) * grad_loss / counted.len() as f64;
            for feature in 0..d_model {
                let (h, w) = (token * d_model + feature, entry * d_model + feature);
                grads.hidden[h] += grad_logit * inputs.weight[w];
                grads.weight[w] += grad_logit * inputs.hidden[h];
            }
        }
    }
    grads
}

/// `ln(sum of exp(x))`, without overflow.
fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + values
        .iter()
        .map(|value| (value - max).exp())
        .sum::<f64>()
        .ln()
}

impl LinearCrossEntropyInputs<'_> {
    /// The tokens that count, each with its target.
    fn counted_tokens(&self) -> Vec<(usize, usize)> {
        self.targets
            .iter()
            .enumerate()
            .filter(|&(_, &target)| Some(target) != self.ignore_index)
            .map(|(token, &target)| (token, target as usize))
            .collect()
    }

    /// The logits of one token: `[vocab_size]`.
    fn logits(&self, token: usize) -> Vec<f64> {
        let hidden = &self.hidden[token * self.d_model..(token + 1) * self.d_model];
        (0..self.vocab_size)
            .map(|entry| {
                let weight = &self.weight[entry * self.d_model..(entry + 1) * self.d_model];
                hidden.iter().zip(weight).map(|(h, w)| h * w).sum()
            })
            .collect()
    }

    fn assert_valid(&self, function: &str) {
        let &Self {
            tokens,
            d_model,
            rows,
            vocab_size,
            ..
        } = self;
        assert_len(function, "hidden", self.hidden, &[tokens, d_model]);
        assert_len(function, "weight", self.weight, &[rows, d_model]);
        assert_len(function, "targets", self.targets, &[tokens]);
        assert!(
            (1..=rows).contains(&vocab_size),
            "{function}: vocab_size must be in 1..={rows}, got {vocab_size}"
        );
        for (token, &target) in self.targets.iter().enumerate() {
            assert!(
                Some(target) == self.ignore_index || (0..vocab_size as i64).contains(&target),
                "{function}: target of token {token} must be in 0..{vocab_size}, got {target}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::finite_differences::{assert_gradient, uniform};

    const TOKENS: usize = 5;
    const D_MODEL: usize = 3;
    const ROWS: usize = 8;

    fn inputs<'a>(hidden: &'a [f64], weight: &'a [f64]) -> LinearCrossEntropyInputs<'a> {
        LinearCrossEntropyInputs {
            tokens: TOKENS,
            d_model: D_MODEL,
            rows: ROWS,
            vocab_size: 7,
            hidden,
            weight,
            targets: &[6, 0, -100, 3, 3],
            ignore_index: Some(-100),
        }
    }

    fn values() -> (Vec<f64>, Vec<f64>) {
        (
            uniform(1, TOKENS * D_MODEL, -2.0, 2.0),
            uniform(2, ROWS * D_MODEL, -2.0, 2.0),
        )
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (hidden, weight) = values();
        let grad_loss = -1.7;
        let loss = |hidden: &[f64], weight: &[f64]| {
            grad_loss * linear_cross_entropy(&inputs(hidden, weight))
        };
        let grads = linear_cross_entropy_backward(&inputs(&hidden, &weight), grad_loss);
        assert_gradient("hidden", &hidden, &grads.hidden, |hidden| {
            loss(hidden, &weight)
        });
        assert_gradient("weight", &weight, &grads.weight, |weight| {
            loss(&hidden, weight)
        });
    }

    #[test]
    fn padding_rows_and_ignored_tokens_take_no_part() {
        let (mut hidden, mut weight) = values();
        let loss = linear_cross_entropy(&inputs(&hidden, &weight));
        hidden[2 * D_MODEL..3 * D_MODEL].fill(f64::NAN);
        weight[7 * D_MODEL..].fill(f64::NAN);

        let poisoned = inputs(&hidden, &weight);
        assert_eq!(linear_cross_entropy(&poisoned), loss);
        let grads = linear_cross_entropy_backward(&poisoned, 1.0);
        assert!(
            grads
                .hidden
                .iter()
                .chain(&grads.weight)
                .all(|gradient| gradient.is_finite())
        );
        assert_eq!(grads.hidden[2 * D_MODEL..3 * D_MODEL], [0.0; D_MODEL]);
        assert_eq!(grads.weight[7 * D_MODEL..], [0.0; D_MODEL]);
    }

    #[test]
    fn equal_logits_cost_the_log_of_the_vocabulary() {
        let loss = linear_cross_entropy(&inputs(&[0.0; TOKENS * D_MODEL], &[1.0; ROWS * D_MODEL]));
        assert!((loss - 7f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let (hidden, weight) = values();
        let hidden: Vec<f64> = hidden.iter().map(|h| h * 1e4).collect();
        assert!(linear_cross_entropy(&inputs(&hidden, &weight)).is_finite());
    }

    #[test]
    fn no_counted_token_costs_nothing() {
        let (hidden, weight) = values();
        let ignored = LinearCrossEntropyInputs {
            targets: &[-100; TOKENS],
            ..inputs(&hidden, &weight)
        };
        assert_eq!(linear_cross_entropy(&ignored), 0.0);
        let grads = linear_cross_entropy_backward(&ignored, 1.0);
        assert!(
            grads
                .hidden
                .iter()
                .chain(&grads.weight)
                .all(|&gradient| gradient == 0.0)
        );
    }

    #[test]
    #[should_panic(expected = "target of token 1 must be in 0..7, got 7")]
    fn a_target_outside_the_vocabulary_is_named() {
        let (hidden, weight) = values();
        let targets = [6, 7, -100, 3, 3];
        linear_cross_entropy(&LinearCrossEntropyInputs {
            targets: &targets,
            ..inputs(&hidden, &weight)
        });
    }
}
