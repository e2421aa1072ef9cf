//! Decoding against a model of the f64 oracle's operations, on the default device of the runtime built in.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod support;

use cubecl::ir::{ElemType, FloatKind};
use mamba_kernels::decode::{Choice, Decoder};
use support::decode::{Case, Numbers};
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
    head: true,
    dtype: FloatKind::F32,
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
    head: false,
    dtype: FloatKind::F32,
};

/// Tokens of four steps, of which the last two are replays.
fn tokens(case: &Case, step: usize) -> Vec<u32> {
    let token = |sequence: usize| (step * 37 + sequence * 101) % case.vocab_size;
    (0..case.batch)
        .map(|sequence| token(sequence) as u32)
        .collect()
}

fn check(case: Case) {
    let numbers = Numbers::new(case);
    let mut decoder = numbers.decoder(&client(), Choice::Caller).expect("it fits");
    let mut host = numbers.host();
    for step in 0..4 {
        let tokens = tokens(&case, step);
        decoder.give_tokens(&tokens);
        decoder.step();
        let logits = decoder.logits().expect("the kernels ran");
        let logits = logits.into_iter().map(f64::from).collect();
        let want = [("logits", host.step(&tokens))];
        assert_close(&(case, step), &[("logits", logits)], &want, 0.0, 1e-5);
    }
    assert!(decoder.is_recorded(), "the last steps are replays");
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
fn matrices_in_half_precision() {
    for dtype in [FloatKind::F16, FloatKind::BF16] {
        match has_type(&client(), ElemType::Float(dtype)) {
            true => {
                check(Case { dtype, ..ODD });
                check(Case { dtype, ..PLAIN });
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
        decoder.step();
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
        decoder.step();
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
        decoder.step();
        let mut all = Vec::new();
        for _ in 0..5 {
            let tokens = decoder.tokens();
            if ahead {
                decoder.step();
                all.push(tokens.wait().expect("the kernels ran"));
            } else {
                all.push(tokens.wait().expect("the kernels ran"));
                decoder.step();
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
        decoder.step();
        let got = next(&decoder);
        assert!(
            got[0].is_some() && got[1].is_none() && got[2].is_some(),
            "{got:?}"
        );
    }
}

#[test]
fn two_runs_agree_to_the_bit() {
    let run = || {
        let numbers = Numbers::new(PLAIN);
        let mut decoder = numbers.decoder(&client(), Choice::Caller).expect("it fits");
        let steps = (0..3).map(|step| {
            decoder.give_tokens(&tokens(&PLAIN, step));
            decoder.step();
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
    let many = refused(Case { batch: 9, ..ODD });
    assert_eq!(many, "batch must be between 1 and 8, got 9");
    let long = refused(Case { width: 17, ..ODD });
    assert_eq!(long, "width must be between 2 and 16, got 17");
}
