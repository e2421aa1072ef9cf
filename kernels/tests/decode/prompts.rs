//! Prompts: in one pass, of several lengths, and what the kernels do not cover.

use cubecl::ir::{ElemType, FloatKind};
use mamba_kernels::KernelError;
use mamba_kernels::decode::{Choice, Decoder};

use crate::support::decode::{Case, Heads, Numbers};
use crate::support::{assert_close, client, has_type};
use crate::{BOTH, GROUPS, PLAIN, tokens};

fn read(decoder: &mut Decoder, prompts: &[Vec<u32>], at_once: usize) -> Result<(), KernelError> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    decoder.read(&prompts, at_once)
}

/// Prompts, then a step, then prompts again, from states, from nothing, and after all was forgotten.
fn check_prompts(case: Case, tolerance: f64) {
    let numbers = Numbers::new(case);
    let client = client();
    for states in [true, false] {
        let mut decoder = numbers
            .decoder_behind(&client, Choice::Caller, states)
            .expect("it fits");
        let mut host = numbers.host();
        for part in 0..4 {
            if part == 3 || (part == 0 && !states) {
                decoder.forget();
                host.forget();
            }
            let seq_len = [5, 1, 37, 2][part];
            let each: Vec<_> = (0..seq_len).map(|t| tokens(&case, 11 * part + t)).collect();
            let mut want = Vec::new();
            for tokens in &each {
                want = host.step(tokens);
            }
            if part == 1 {
                decoder.give_tokens(&each[0]);
                decoder.step().expect("it launches");
            } else {
                let prompt = |b: usize| each.iter().map(|tokens| tokens[b]).collect::<Vec<_>>();
                let prompts: Vec<_> = (0..case.batch).map(prompt).collect();
                read(&mut decoder, &prompts, usize::MAX).expect("the kernels cover it");
            }
            let logits = decoder.logits().expect("the kernels ran");
            let logits = logits.into_iter().map(f64::from).collect();
            let case = (case, states, part);
            assert_close(
                &case,
                &[("logits", logits)],
                &[("logits", want)],
                0.0,
                tolerance,
            );
        }
    }
}

#[test]
fn prompts_in_one_pass() {
    check_prompts(PLAIN, 1e-5);
    check_prompts(Case { batch: 9, ..PLAIN }, 1e-5);
    check_prompts(
        Case {
            layers: 2,
            biases: true,
            kinds: BOTH,
            ..PLAIN
        },
        1e-5,
    );
    check_prompts(GROUPS, 1e-5);
    check_prompts(
        Case {
            batch: 2,
            biases: true,
            head: true,
            ..PLAIN
        },
        1e-5,
    );
}

#[test]
fn prompts_in_half_precision() {
    for (dtype, tolerance) in [(FloatKind::F16, 3e-3), (FloatKind::BF16, 2e-2)] {
        match has_type(&client(), ElemType::Float(dtype)) {
            true => {
                let case = Case {
                    dtype,
                    dt_rank: 8,
                    ..PLAIN
                };
                check_prompts(case, tolerance);
                let both = Case {
                    layers: 2,
                    kinds: BOTH,
                    ..case
                };
                check_prompts(both, tolerance);
                // Scales of norms are part of the matrices then.
                check_prompts(Case { batch: 9, ..both }, tolerance);
            }
            false => println!("not tested: the device has no {dtype:?}"),
        }
    }
}

/// Prompts of several lengths in one batch, twice in a row, the second time behind the first.
fn check_lengths(case: Case) {
    let numbers = Numbers::new(case);
    // The weights are those of any batch.
    let alone = Numbers::new(Case { batch: 1, ..case });
    let mut hosts: Vec<_> = (0..case.batch).map(|_| alone.host()).collect();
    hosts.iter_mut().for_each(|host| host.forget());
    let mut decoder = numbers
        .decoder_behind(&client(), Choice::Caller, false)
        .expect("it fits");
    decoder.forget();
    for part in 0..2 {
        // The two of 37 are more than is read at once.
        let length = |b: usize| [5, 5, 1, 37, 37][(b + part) % 5];
        let prompt = |b: usize| -> Vec<u32> {
            let token = |t: usize| ((t * t * 7 + 31 * b + 5 * part) % case.vocab_size) as u32;
            (0..length(b)).map(token).collect()
        };
        let prompts: Vec<_> = (0..case.batch).map(prompt).collect();
        read(&mut decoder, &prompts, 64).expect("the kernels cover it");
        let mut want = Vec::new();
        for (host, prompt) in hosts.iter_mut().zip(&prompts) {
            let logits = prompt.iter().map(|&token| host.step(&[token])).last();
            want.extend(logits.expect("a token"));
        }
        let logits = decoder.logits().expect("the kernels ran");
        let logits = logits.into_iter().map(f64::from).collect();
        assert_close(
            &(case, part),
            &[("logits", logits)],
            &[("logits", want)],
            0.0,
            1e-5,
        );
    }
}

#[test]
fn prompts_of_several_lengths() {
    let case = Case { batch: 5, ..PLAIN };
    check_lengths(case);
    check_lengths(Case { batch: 9, ..case });
    check_lengths(Case {
        kinds: BOTH,
        layers: 2,
        ..case
    });
}

#[test]
fn prompts_that_the_kernels_do_not_cover_are_refused() {
    let refused = |case: Case, prompts: &[&[u32]]| {
        let numbers = Numbers::new(case);
        let mut decoder = numbers.decoder(&client(), Choice::Caller).expect("it fits");
        decoder.read(prompts, 64).unwrap_err().to_string()
    };
    let biased = Case {
        projection_biases: true,
        ..PLAIN
    };
    assert_eq!(
        refused(biased, &[&[1, 2]]),
        "the kernels do not cover prompts or many sequences with projections that have a bias"
    );
    assert_eq!(
        refused(
            Case {
                dt_rank: 3,
                ..PLAIN
            },
            &[&[1, 2]]
        ),
        "the kernels do not cover prompts or many sequences with sizes that fill no vectors"
    );
    let ungated = Case {
        heads: Heads {
            norm_before_gate: None,
            ..GROUPS.heads
        },
        ..GROUPS
    };
    assert_eq!(
        refused(ungated, &[&[1, 2], &[1, 2]]),
        "the kernels do not cover prompts of Mamba-2 layers without a norm"
    );
    let two = Case { batch: 2, ..PLAIN };
    assert_eq!(
        refused(two, &[&[1, 2, 3]]),
        "prompts must have shape [2], got [1]"
    );
    assert_eq!(
        refused(PLAIN, &[&[]]),
        "tokens of a prompt must be at least 1, got 0"
    );
}
