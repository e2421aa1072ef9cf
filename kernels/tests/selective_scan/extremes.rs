//! Very large and very small numbers, infinities and NaN: what the oracle makes of them, and nothing of
//! it in a sequence, channel or run that is not theirs.

use mamba_kernels::selective_scan::Strategy;

use crate::support::scan::{Case, Numbers, Options};
use crate::support::{Named, assert_close, client};

const NAN: f32 = f32::NAN;
const INFINITY: f32 = f32::INFINITY;

/// Two blocks of channels, the second one with channels that do not exist; a last tile with positions
/// that do not; runs that begin at positions 16, 17 and 41.
const BATCH: usize = 2;
const SEQ_LEN: usize = 50;
const D_INNER: usize = 40;
const D_STATE: usize = 16;

/// The chunks' second one begins in the third run and ends after the fourth began.
const STRATEGIES: [Strategy; 2] = [Strategy::Sequential, Strategy::Chunked { chunks: 2 }];

/// What a case changes, and how.
type Change = (&'static str, fn(&mut Numbers));

/// A channel's position in a sequence tensor.
fn at(sequence: usize, t: usize, channel: usize) -> usize {
    (sequence * SEQ_LEN + t) * D_INNER + channel
}

/// A state's position in a projection.
fn projected(sequence: usize, t: usize, n: usize) -> usize {
    (sequence * SEQ_LEN + t) * D_STATE + n
}

/// Fills one channel of a tensor that has `inner` values a channel along its innermost axes.
fn channel(values: &mut [f32], index: usize, inner: usize, value: f32) {
    for row in values.chunks_mut(D_INNER * inner) {
        row[index * inner..(index + 1) * inner].fill(value);
    }
}

/// Runs each change on its own. `compared` is applied to both sides.
#[track_caller]
fn check(changes: &[Change], compared: fn(Vec<Named>) -> Vec<Named>) {
    for (name, change) in changes {
        let mut numbers = Numbers::new(Case::new([BATCH, SEQ_LEN, D_INNER, D_STATE], Options::ALL));
        change(&mut numbers);
        let want = compared(numbers.oracle());
        for strategy in STRATEGIES {
            let got = compared(numbers.kernels(&client(), strategy));
            assert_close(&(name, strategy), &got, &want, 1e-5, 2e-6);
        }
    }
}

#[test]
fn extreme_numbers() {
    let changes: [Change; 9] = [
        ("steps of nearly zero", |it| {
            channel(&mut it.delta, 3, 1, -100.0)
        }),
        ("steps of 100", |it| channel(&mut it.delta, 3, 1, 100.0)),
        ("steps of 10,000", |it| channel(&mut it.delta, 39, 1, 1e4)),
        ("no steps", |it| channel(&mut it.delta, 3, 1, -1e4)),
        ("a state that is lost at once", |it| {
            channel(&mut it.a, 3, D_STATE, -1e4)
        }),
        ("a state that is lost slowly", |it| {
            channel(&mut it.a, 3, D_STATE, -1e4);
            channel(&mut it.delta, 3, 1, -9.0);
        }),
        ("a state that is never lost", |it| {
            channel(&mut it.a, 3, D_STATE, 0.0)
        }),
        ("a sum over long steps", |it| {
            channel(&mut it.a, 39, D_STATE, 0.0);
            channel(&mut it.delta, 39, 1, 100.0);
        }),
        ("large inputs, open and shut gates", |it| {
            channel(&mut it.u, 3, 1, 1e15);
            channel(&mut it.z, 4, 1, -1e4);
            channel(&mut it.z, 5, 1, 1e4);
        }),
    ];
    check(&changes, |it| it);
}

#[test]
fn nan_stays_where_it_belongs() {
    let changes: [Change; 10] = [
        ("u", |it| it.u[at(0, 20, 3)] = NAN),
        ("u of the last position and channel", |it| {
            it.u[at(1, 49, 39)] = NAN
        }),
        ("delta", |it| it.delta[at(1, 16, 39)] = NAN),
        ("z", |it| it.z[at(0, 40, 3)] = NAN),
        ("a", |it| it.a[3 * D_STATE + 5] = NAN),
        ("b", |it| it.b[projected(0, 20, 7)] = NAN),
        ("c", |it| it.c[projected(1, 45, 15)] = NAN),
        ("grad_y", |it| it.grad_y[at(0, 45, 39)] = NAN),
        ("initial_state", |it| it.initial_state[3 * D_STATE] = NAN),
        ("grad_final_state", |it| {
            it.grad_final_state[3 * D_STATE] = NAN
        }),
    ];
    check(&changes, |it| it);
}

/// Infinities that meet are NaN or not by the order of sums: what counts is that they are not finite.
#[test]
fn infinities_stay_where_they_belong() {
    let changes: [Change; 8] = [
        ("u", |it| it.u[at(0, 20, 3)] = INFINITY),
        ("u of the last position and channel", |it| {
            it.u[at(1, 49, 39)] = -INFINITY
        }),
        ("no step", |it| it.delta[at(0, 20, 3)] = -INFINITY),
        ("an endless step", |it| it.delta[at(1, 20, 39)] = INFINITY),
        ("an open gate", |it| it.z[at(0, 40, 3)] = INFINITY),
        ("a shut gate", |it| it.z[at(1, 16, 39)] = -INFINITY),
        ("b", |it| it.b[projected(0, 45, 7)] = INFINITY),
        ("grad_y", |it| it.grad_y[at(0, 45, 39)] = INFINITY),
    ];
    check(&changes, |mut named| {
        let values = named.iter_mut().flat_map(|it| &mut it.1);
        values
            .filter(|it| !it.is_finite())
            .for_each(|it| *it = f64::NAN);
        named
    });
}
