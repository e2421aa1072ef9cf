use super::*;

fn sampler(config: SamplingConfig) -> Sampler {
    Sampler::new(config).unwrap()
}

fn counts(config: SamplingConfig, logits: &[f32], history: &[u32], draws: usize) -> Vec<usize> {
    let mut sampler = sampler(config);
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(&mut logits.to_vec(), history).unwrap() as usize] += 1;
    }
    counts
}

/// Pearson's statistic of counts against probabilities; expects nothing where nothing is likely.
fn chi_square(counts: &[usize], weights: &[f64]) -> f64 {
    let draws: usize = counts.iter().sum();
    let total: f64 = weights.iter().sum();
    counts
        .iter()
        .zip(weights)
        .map(|(&count, weight)| {
            let expected = draws as f64 * weight / total;
            if expected > 0.0 {
                (count as f64 - expected).powi(2) / expected
            } else {
                assert_eq!(count, 0, "a token of probability 0 was drawn");
                0.0
            }
        })
        .sum()
}

/// The 99.9 % quantile of the chi-square distribution with 5 degrees of freedom.
const CHI_SQUARE_5: f64 = 20.5;

const LOGITS: [f32; 6] = [1.0, -0.5, 2.0, 0.0, 1.5, -3.0];

/// Which tokens the config lets through, seen by drawing often from a nearly flat distribution.
fn survivors(config: SamplingConfig, logits: &[f32]) -> Vec<u32> {
    let counts = counts(config, logits, &[], 20_000);
    (0..)
        .zip(counts)
        .filter(|&(_, n)| n > 0)
        .map(|(token, _)| token)
        .collect()
}

#[test]
fn draws_follow_the_softmax_at_each_temperature() {
    for temperature in [0.5, 1.0, 2.0] {
        let config = SamplingConfig {
            temperature,
            seed: 7,
            ..Default::default()
        };
        let weights = LOGITS.map(|logit| f64::from(logit / temperature).exp());
        let statistic = chi_square(&counts(config, &LOGITS, &[], 50_000), &weights);
        assert!(
            statistic < CHI_SQUARE_5,
            "temperature {temperature}: {statistic}"
        );
    }
}

#[test]
fn filtered_draws_follow_the_renormalised_rest() {
    let config = SamplingConfig {
        top_k: Some(4),
        top_p: 0.95,
        seed: 3,
        ..Default::default()
    };
    // Of the four kept by top-k, 2.0, 1.5 and 1.0 sum to 0.936 of their mass: 0.0 is needed too.
    let weights = [1.0f64.exp(), 0.0, 2.0f64.exp(), 1.0, 1.5f64.exp(), 0.0];
    let statistic = chi_square(&counts(config, &LOGITS, &[], 50_000), &weights);
    assert!(statistic < CHI_SQUARE_5, "{statistic}");
}

#[test]
fn the_seed_alone_decides() {
    let draw = |seed| {
        let mut sampler = sampler(SamplingConfig {
            seed,
            ..Default::default()
        });
        (0..64)
            .map(|_| sampler.sample(&mut LOGITS.to_vec(), &[]).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(42), draw(42));
    assert_ne!(draw(42), draw(43));
    // Computed apart from this code: a change of the generator would change every published sample.
    assert_eq!(draw(42)[..12], [4, 0, 2, 2, 0, 4, 2, 4, 2, 2, 2, 2]);
}

#[test]
fn zero_temperature_takes_the_first_of_the_best() {
    let config = SamplingConfig {
        temperature: 0.0,
        ..Default::default()
    };
    let mut logits = [0.0, 3.0, f32::NEG_INFINITY, 3.0];
    assert_eq!(sampler(config).sample(&mut logits, &[]), Ok(1));
}

#[test]
fn a_tiny_temperature_is_nearly_greedy() {
    let config = SamplingConfig {
        temperature: f32::MIN_POSITIVE,
        ..Default::default()
    };
    assert_eq!(survivors(config, &[1e30, -1e30, 2e30]), [2]);
}

#[test]
fn top_k_keeps_ties_and_ignores_a_k_beyond_the_vocabulary() {
    let top_k = |k| SamplingConfig {
        top_k: Some(k),
        ..Default::default()
    };
    assert_eq!(survivors(top_k(1), &[0.0, 0.5, 0.2]), [1]);
    assert_eq!(survivors(top_k(2), &[0.5, 1.0, 0.5, 0.1]), [0, 1, 2]);
    assert_eq!(survivors(top_k(100), &[0.0, 0.5, 0.2]), [0, 1, 2]);
}

#[test]
fn top_p_keeps_the_token_that_crosses_it() {
    let top_p = |p| SamplingConfig {
        top_p: p,
        ..Default::default()
    };
    let logits = [0.2f32, 0.5, 0.3].map(f32::ln);
    assert_eq!(survivors(top_p(0.01), &logits), [1]);
    assert_eq!(survivors(top_p(0.49), &logits), [1]);
    assert_eq!(survivors(top_p(0.51), &logits), [1, 2]);
    assert_eq!(survivors(top_p(0.81), &logits), [0, 1, 2]);
    assert_eq!(survivors(top_p(1.0), &logits), [0, 1, 2]);
}

#[test]
fn top_p_over_a_large_vocabulary_equals_a_full_sort() {
    // Scattered, with ties, so that selections of 64, 256, 1024 .. all happen.
    let logits: Vec<f32> = (0..5_000u32)
        .map(|i| (i * 7_919 % 1_000) as f32 / 250.0)
        .collect();
    let max = logits.iter().copied().fold(f32::MIN, f32::max);

    for top_p in [0.01f32, 0.2, 0.5, 0.9, 0.999] {
        let config = SamplingConfig {
            top_p,
            ..Default::default()
        };
        let mut filters = Filters::default();
        let kept: Vec<u32> = filters
            .apply(&config, &logits, max)
            .iter()
            .map(|c| c.token)
            .collect();

        let mut sorted: Vec<(u32, f64)> = (0..)
            .zip(logits.iter().map(|&l| f64::from((l - max).exp())))
            .collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = sorted.iter().map(|(_, weight)| weight).sum();
        let mut before = 0.0;
        let expected: Vec<u32> = sorted
            .iter()
            .take_while(|(_, weight)| {
                let keep = before < f64::from(top_p) * total;
                before += weight;
                keep
            })
            .map(|&(token, _)| token)
            .collect();
        // The order of summation moves the cut by a token at most.
        assert!(kept.len().abs_diff(expected.len()) <= 1, "top_p {top_p}");
        let common = kept.len().min(expected.len());
        assert_eq!(kept[..common], expected[..common], "top_p {top_p}");
    }
}

#[test]
fn min_p_is_relative_to_the_most_likely_token() {
    let min_p = |p| SamplingConfig {
        min_p: p,
        ..Default::default()
    };
    let logits = [0.2f32, 0.5, 0.3].map(f32::ln);
    assert_eq!(survivors(min_p(0.0), &logits), [0, 1, 2]);
    assert_eq!(survivors(min_p(0.5), &logits), [1, 2]);
    assert_eq!(survivors(min_p(0.9), &logits), [1]);
}

#[test]
fn repetition_penalty_moves_each_seen_token_once() {
    let config = SamplingConfig {
        repetition_penalty: 2.0,
        ..Default::default()
    };
    let mut logits = [4.0, -4.0, 4.0, f32::NEG_INFINITY];
    sampler(config)
        .sample(&mut logits, &[0, 1, 1, 1, 3])
        .unwrap();
    assert_eq!(logits, [2.0, -8.0, 4.0, f32::NEG_INFINITY]);
}

#[test]
fn forbidden_tokens_are_never_drawn() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0];
    assert_eq!(survivors(SamplingConfig::default(), &logits), [1, 3]);
    let few = SamplingConfig {
        top_k: Some(3),
        top_p: 0.99,
        ..Default::default()
    };
    assert_eq!(survivors(few, &logits), [1, 3]);
}

#[test]
fn unusable_logits_are_named() {
    let message = |logits: &mut [f32], history: &[u32]| {
        let config = SamplingConfig {
            repetition_penalty: 1.1,
            ..Default::default()
        };
        sampler(config)
            .sample(logits, history)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(&mut [0.0, f32::NAN], &[]),
        "sampling: the logit of token 1 is NaN; the model diverged or its weights are damaged"
    );
    assert!(message(&mut [f32::INFINITY, 0.0], &[]).contains("logit of token 0 is inf"));
    assert!(message(&mut [f32::NEG_INFINITY; 3], &[]).contains("none of the 3 logits is finite"));
    assert!(message(&mut [], &[]).contains("none of the 0 logits is finite"));
    assert!(message(&mut [0.0; 3], &[3]).contains("token 3 of the history must be < the vocab"));
}

#[test]
fn a_config_out_of_range_is_named() {
    let base = SamplingConfig::default;
    let cases = [
        (
            SamplingConfig {
                temperature: -0.1,
                ..base()
            },
            "temperature must be a finite number >= 0",
        ),
        (
            SamplingConfig {
                temperature: f32::NAN,
                ..base()
            },
            "temperature must be",
        ),
        (
            SamplingConfig {
                temperature: f32::INFINITY,
                ..base()
            },
            "temperature must be",
        ),
        (
            SamplingConfig {
                top_k: Some(0),
                ..base()
            },
            "top_k must be >= 1",
        ),
        (
            SamplingConfig {
                top_p: 0.0,
                ..base()
            },
            "top_p must be above 0 and at most 1, got 0",
        ),
        (
            SamplingConfig {
                top_p: 1.1,
                ..base()
            },
            "top_p must be above 0 and at most 1, got 1.1",
        ),
        (
            SamplingConfig {
                top_p: f32::NAN,
                ..base()
            },
            "top_p must be",
        ),
        (
            SamplingConfig {
                min_p: 1.0,
                ..base()
            },
            "min_p must be at least 0 and below 1",
        ),
        (
            SamplingConfig {
                min_p: -0.1,
                ..base()
            },
            "min_p must be",
        ),
        (
            SamplingConfig {
                min_p: f32::NAN,
                ..base()
            },
            "min_p must be",
        ),
        (
            SamplingConfig {
                repetition_penalty: 0.0,
                ..base()
            },
            "repetition_penalty must be",
        ),
        (
            SamplingConfig {
                repetition_penalty: f32::NAN,
                ..base()
            },
            "repetition_penalty must be",
        ),
    ];
    for (config, expected) in cases {
        let message = Sampler::new(config).unwrap_err().to_string();
        assert!(
            message.contains(expected),
            "{message} should say {expected}"
        );
    }
}

#[test]
fn typical_keeps_what_is_nearest_to_the_expected_surprise() {
    // Surprises of 0.69, 1.39, 1.90 and 2.30 where 1.21 is expected: the second token comes first, then the first.
    let logits = [0.5f32, 0.25, 0.15, 0.1].map(f32::ln);
    for (typical_p, want) in [(0.2, &[1][..]), (0.5, &[0, 1]), (0.8, &[0, 1, 2])] {
        let config = SamplingConfig {
            typical_p,
            ..Default::default()
        };
        assert_eq!(survivors(config, &logits), want, "{typical_p}");
    }
}

#[test]
fn frequency_counts_and_presence_does_not() {
    let mut greedy = sampler(SamplingConfig {
        temperature: 0.0,
        frequency_penalty: 1.0,
        presence_penalty: 0.5,
        ..Default::default()
    });
    let mut logits = [1.0, 1.0, 1.0, f32::NEG_INFINITY];
    let token = greedy.sample(&mut logits, &[0, 1, 0, 3]).unwrap();
    assert_eq!((token, logits), (2, [-1.5, -0.5, 1.0, f32::NEG_INFINITY]));
}
