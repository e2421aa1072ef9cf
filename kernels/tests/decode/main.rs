//! Decoding against a model of the f64 oracle's operations, on the default device of the runtime built in.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod prompts;
#[path = "../support/mod.rs"]
mod support;

use cubecl::ir::{ElemType, FloatKind};
use mamba_kernels::decode::{Choice, Decoder};
use support::decode::{Case, Heads, Kind, Numbers};
use support::{assert_close, client, has_type, uniform};

const ODD: Case = Case {
    batch: 3,
    layers: 2,
    d_model: 33,
    d_inner: 42,
    d_state: 5,
    dt_rank: 3,
    width: 4,
    vocab_size: 301,
    padding: 3,
    biases: true,
    projection_biases: true,
    head: true,
    dtype: FloatKind::F32,
    kinds: &[Kind::Mamba1],
    heads: Heads {
        headdim: 6,
        d_state: 5,
        skips_channels: true,
        dt_limit: (0.05, 0.4),
        ..Heads::OFFICIAL
    },
};

const PLAIN: Case = Case {
    batch: 1,
    layers: 1,
    d_model: 64,
    d_inner: 128,
    d_state: 16,
    dt_rank: 4,
    width: 4,
    vocab_size: 1000,
    padding: 0,
    biases: false,
    projection_biases: false,
    head: false,
    dtype: FloatKind::F32,
    kinds: &[Kind::Mamba1],
    heads: Heads::OFFICIAL,
};

/// Layers of Mamba-2 alone, and beside layers of Mamba-1.
const DUAL: &[Kind] = &[Kind::Mamba2];
const BOTH: &[Kind] = &[Kind::Mamba2, Kind::Mamba1];

/// Groups of heads, and a gate behind the norm, which is a launch of its own then.
const GROUPS: Case = Case {
    batch: 2,
    kinds: DUAL,
    heads: Heads {
        headdim: 16,
        ngroups: 2,
        d_state: 20,
        norm_before_gate: Some(true),
        ..Heads::OFFICIAL
    },
    ..PLAIN
};

/// Tokens of four steps, of which the last two are replays.
fn tokens(case: &Case, step: usize) -> Vec<u32> {
    let token = |sequence: usize| (step * 37 + sequence * 101) % case.vocab_size;
    (0..case.batch)
        .map(|sequence| token(sequence) as u32)
        .collect()
}

fn check(case: Case) {
    check_within(case, 1e-5);
}

fn check_within(case: Case, tolerance: f64) {
    let numbers = Numbers::new(case);
    let mut decoder = numbers.decoder(&client(), Choice::Caller).expect("it fits");
    let mut host = numbers.host();
    for step in 0..4 {
        let tokens = tokens(&case, step);
        decoder.give_tokens(&tokens);
        decoder.step().expect("it launches");
        let logits = decoder.logits().expect("the kernels ran");
        let logits = logits.into_iter().map(f64::from).collect();
        let want = [("logits", host.step(&tokens))];
        assert_close(&(case, step), &[("logits", logits)], &want, 0.0, tolerance);
    }
    assert!(decoder.is_recorded(), "the last steps are replays");
}

/// In the types of two bytes that the device has.
fn check_halves(case: Case) {
    for (dtype, tolerance) in [(FloatKind::F16, 3e-3), (FloatKind::BF16, 2e-2)] {
        let case = Case {
            dtype,
            dt_rank: 8,
            ..case
        };
        match has_type(&client(), ElemType::Float(dtype)) {
            true => check_within(case, tolerance),
            false => println!("not tested: the device has no {dtype:?}"),
        }
    }
}

#[test]
fn logits_of_steps_with_everything_and_sizes_that_divide_nothing() {
    check(ODD);
}

#[test]
fn logits_of_steps_without_options() {
    check(PLAIN);
}

#[test]
fn logits_of_steps_of_mamba2() {
    check(Case {
        layers: 3,
        kinds: BOTH,
        ..ODD
    });
    check(Case {
        kinds: DUAL,
        ..PLAIN
    });
    check(GROUPS);
    let ungated = Heads {
        norm_before_gate: None,
        ..GROUPS.heads
    };
    check(Case {
        heads: ungated,
        ..GROUPS
    });
}

/// Enough heads for units with several rows.
#[test]
fn logits_of_many_sequences_of_mamba2() {
    let many = Case {
        batch: 67,
        layers: 2,
        biases: true,
        kinds: BOTH,
        ..PLAIN
    };
    check(many);
    check(Case {
        batch: 9,
        heads: Heads {
            norm_before_gate: None,
            ..GROUPS.heads
        },
        ..GROUPS
    });
    check_halves(many);
    check_halves(Case { batch: 8, ..many });
    // So many heads that a unit of the output projection has more sums of squares than registers for them.
    check_halves(Case {
        batch: 5,
        layers: 1,
        d_inner: 2048,
        kinds: DUAL,
        heads: Heads {
            headdim: 16,
            ..Heads::OFFICIAL
        },
        ..PLAIN
    });
    for norm_before_gate in [None, Some(false), Some(true)] {
        let heads = Heads {
            norm_before_gate,
            ..GROUPS.heads
        };
        check_halves(Case {
            batch: 9,
            heads,
            ..GROUPS
        });
    }
}

/// More sequences than a team of units takes.
#[test]
fn logits_of_many_sequences() {
    let many = Case {
        batch: 19,
        biases: true,
        ..PLAIN
    };
    check(many);
    check_halves(many);
    // Few enough for teams, and where tensor cores do not care.
    check_halves(Case { batch: 5, ..many });
    // Sizes that leave a block of the inner axis unfilled.
    check_halves(Case {
        d_model: 72,
        d_inner: 136,
        layers: 2,
        ..many
    });
}

/// Cubes that are cut off at the last row and the last column, of the sizes that many columns get.
#[test]
fn logits_of_many_sequences_and_a_large_vocabulary() {
    let (dtype, tolerance) = match has_type(&client(), ElemType::Float(FloatKind::BF16)) {
        true => (FloatKind::BF16, 2e-2),
        false => (FloatKind::F32, 1e-5),
    };
    let case = Case {
        batch: 67,
        vocab_size: 9001,
        dt_rank: 8,
        dtype,
        ..PLAIN
    };
    check_within(case, tolerance);
}

#[test]
fn matrices_in_half_precision() {
    for dtype in [FloatKind::F16, FloatKind::BF16] {
        match has_type(&client(), ElemType::Float(dtype)) {
            true => {
                check(Case { dtype, ..ODD });
                check(Case { dtype, ..PLAIN });
                check(Case {
                    dtype,
                    kinds: DUAL,
                    ..PLAIN
                });
            }
            false => println!("not tested: the device has no {dtype:?}"),
        }
    }
}

fn next(decoder: &Decoder) -> Vec<Option<u32>> {
    decoder.tokens().wait().expect("the kernels ran")
}

#[test]
fn the_most_likely_token_is_read_by_the_next_step() {
    let numbers = Numbers::new(ODD);
    let greedy = Choice::Device { temperature: 0.0 };
    let mut decoder = numbers.decoder(&client(), greedy).expect("it fits");
    let mut host = numbers.host();
    let mut tokens = tokens(&ODD, 0);
    decoder.give_tokens(&tokens);
    for _ in 0..4 {
        let best = |logits: &[f64]| {
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            logits.iter().position(|&it| it == most).unwrap() as u32
        };
        tokens = host
            .step(&tokens)
            .chunks(ODD.vocab_size)
            .map(best)
            .collect();
        decoder.step().expect("it launches");
        // Asked for before the next step, and answered after it.
        let chosen = decoder.tokens();
        let got: Vec<_> = chosen.wait().expect("the kernels ran");
        assert_eq!(got, tokens.iter().map(|&it| Some(it)).collect::<Vec<_>>());
    }
}

#[test]
fn tokens_are_drawn_as_the_host_draws() {
    const TEMPERATURE: f32 = 0.7;
    let numbers = Numbers::new(ODD);
    let choice = Choice::Device {
        temperature: TEMPERATURE,
    };
    let mut decoder = numbers.decoder(&client(), choice).expect("it fits");
    decoder.give_tokens(&tokens(&ODD, 0));
    let mut chosen = Vec::new();
    for step in 0..8 {
        let numbers = uniform(step + 1, ODD.batch, 0.0, 1.0);
        decoder.give_uniform(&numbers);
        decoder.step().expect("it launches");
        let got = next(&decoder);
        let logits = decoder.logits().expect("the kernels ran");
        for (sequence, logits) in logits.chunks(ODD.vocab_size).enumerate() {
            let most = logits.iter().copied().fold(f32::MIN, f32::max);
            let weigh = |logit: &f32| f64::from((logit - most) / TEMPERATURE).exp();
            let total: f64 = logits.iter().map(weigh).sum();
            let mut rest = f64::from(numbers[sequence]) * total;
            let over = |logit: &f32| {
                rest -= weigh(logit);
                rest < 0.0
            };
            let want = logits.iter().position(over).unwrap() as u32;
            assert_eq!(
                got[sequence],
                Some(want),
                "step {step}, sequence {sequence}"
            );
            chosen.push(want);
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    assert!(
        chosen.len() > 12,
        "different numbers, different tokens: {chosen:?}"
    );
}

#[test]
fn what_is_asked_for_before_a_step_is_not_what_the_step_wrote() {
    let numbers = Numbers::new(Case {
        head: true,
        ..PLAIN
    });
    let greedy = Choice::Device { temperature: 0.0 };
    let run = |ahead: bool| {
        let mut decoder = numbers.decoder(&client(), greedy).expect("it fits");
        decoder.give_tokens(&[7]);
        decoder.step().expect("it launches");
        let mut all = Vec::new();
        for _ in 0..5 {
            let tokens = decoder.tokens();
            if ahead {
                decoder.step().expect("it launches");
                all.push(tokens.wait().expect("the kernels ran"));
            } else {
                all.push(tokens.wait().expect("the kernels ran"));
                decoder.step().expect("it launches");
            }
        }
        all
    };
    let tokens = run(false);
    assert_eq!(tokens, run(true));
    assert_ne!(tokens[0], tokens[1]);
}

#[test]
fn logits_that_are_no_numbers_choose_no_token() {
    let mut numbers = Numbers::new(ODD);
    numbers.poison(5);
    for temperature in [0.0, 1.0] {
        let choice = Choice::Device { temperature };
        let mut decoder = numbers.decoder(&client(), choice).expect("it fits");
        decoder.give_tokens(&[1, 5, 2]);
        decoder.step().expect("it launches");
        let got = next(&decoder);
        assert!(
            got[0].is_some() && got[1].is_none() && got[2].is_some(),
            "{got:?}"
        );
    }
}

#[test]
fn two_runs_agree_to_the_bit() {
    let both = Case {
        layers: 2,
        kinds: BOTH,
        ..PLAIN
    };
    check_repeats(both);
    let bf16 = FloatKind::BF16;
    let dtype = match has_type(&client(), ElemType::Float(bf16)) {
        true => bf16,
        false => FloatKind::F32,
    };
    check_repeats(Case {
        batch: 67,
        dt_rank: 8,
        dtype,
        ..both
    });
}

fn check_repeats(case: Case) {
    let run = || {
        let numbers = Numbers::new(case);
        let mut decoder = numbers.decoder(&client(), Choice::Caller).expect("it fits");
        let steps = (0..3).map(|step| {
            decoder.give_tokens(&tokens(&case, step));
            decoder.step().expect("it launches");
            decoder.logits().expect("the kernels ran")
        });
        steps.collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let refused = |case: Case| {
        let numbers = Numbers::new(case);
        let result = numbers.decoder(&client(), Choice::Caller);
        result.unwrap_err().to_string()
    };
    let many = refused(Case {
        batch: 1025,
        layers: 1,
        d_inner: 1,
        d_state: 1,
        ..ODD
    });
    assert_eq!(many, "batch must be between 1 and 1024, got 1025");
    let many = refused(Case { batch: 9, ..ODD });
    assert!(many.starts_with("the kernels do not cover"), "{many}");
    for width in [1, 17] {
        let got = width - 1;
        assert_eq!(
            refused(Case { width, ..ODD }),
            format!("width - 1 must be between 1 and 15, got {got}")
        );
    }
    let dual = |heads: Heads| {
        refused(Case {
            kinds: DUAL,
            heads,
            ..GROUPS
        })
    };
    assert_eq!(
        dual(Heads {
            ngroups: 3,
            ..GROUPS.heads
        }),
        "ngroups must be a divisor of nheads, got 3"
    );
    assert_eq!(
        dual(Heads {
            headdim: 1,
            d_state: 257,
            ..GROUPS.heads
        }),
        "d_state must be between 1 and 256, got 257"
    );
    let narrow = Case {
        batch: 3,
        kinds: DUAL,
        heads: Heads {
            norm_before_gate: Some(true),
            ..ODD.heads
        },
        ..ODD
    };
    assert_eq!(
        refused(narrow),
        "the kernels do not cover gated norms of rows that fill no vectors"
    );
}
