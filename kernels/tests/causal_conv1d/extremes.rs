//! Very large numbers, infinities and NaN: what the oracle makes of them, and nothing of it in a
//! sequence, channel or run that is not theirs.

use crate::support::conv::{Case, Numbers, Options};
use crate::support::{assert_close, client};

const SEQ_LEN: usize = 50;
const CHANNELS: usize = 64;
const WIDTH: usize = 4;

/// What a case changes, and how.
type Change = (&'static str, fn(&mut Numbers));

/// A channel's position in a sequence tensor.
fn at(sequence: usize, t: usize, channel: usize) -> usize {
    (sequence * SEQ_LEN + t) * CHANNELS + channel
}

#[track_caller]
fn check(changes: &[Change]) {
    for (name, change) in changes {
        let mut numbers = Numbers::new(Case::new([2, SEQ_LEN, CHANNELS, WIDTH], Options::ALL));
        change(&mut numbers);
        let got = numbers.kernels(&client());
        assert_close(name, &got, &numbers.oracle(), 1e-5, 2e-6);
    }
}

#[test]
fn extreme_numbers() {
    let changes: [Change; 3] = [
        ("large inputs", |it| it.x[at(0, 20, 3)] = 1e15),
        ("large inputs of the other sign", |it| {
            it.x[at(0, 20, 3)] = -1e15
        }),
        ("a large filter", |it| it.weight[5 * WIDTH] = 1e10),
    ];
    check(&changes);
}

/// Runs begin at positions 16, 17 and 48 of the first sequence.
#[test]
fn nan_and_infinities_stay_where_they_belong() {
    let changes: [Change; 8] = [
        ("x", |it| it.x[at(0, 20, 3)] = f32::NAN),
        ("x before a run", |it| it.x[at(0, 15, 3)] = f32::NAN),
        ("the last x", |it| it.x[at(1, 49, 63)] = f32::NAN),
        ("an infinite x", |it| it.x[at(0, 47, 3)] = f32::INFINITY),
        ("the newest tap", |it| it.weight[6 * WIDTH - 1] = f32::NAN),
        ("initial_state", |it| it.initial_state[CHANNELS] = f32::NAN),
        ("grad_y where a run begins", |it| {
            it.grad_y[at(0, 17, 3)] = f32::NAN
        }),
        ("grad_final_state", |it| {
            it.grad_final_state[CHANNELS] = f32::NAN
        }),
    ];
    check(&changes);
}
