//! Very large and very small numbers, infinities and NaN: what the oracle makes of them, and nothing of
//! it in a sequence, head, channel or run that is not theirs.

use crate::segments;
use crate::support::ssd::{Case, Numbers, Options};
use crate::support::{Named, assert_close, client};

const NAN: f32 = f32::NAN;
const INFINITY: f32 = f32::INFINITY;

/// Runs that begin at positions 25, 26 and 62: the first two within a chunk, the last in another.
const SEQ_LEN: usize = 75;
const HEADS: usize = 4;
const HEADDIM: usize = 20;
const D_STATE: usize = 40;

/// What a case changes, and how.
type Change = (&'static str, fn(&mut Numbers));

fn at(sequence: usize, t: usize, head: usize, channel: usize) -> usize {
    ((sequence * SEQ_LEN + t) * HEADS + head) * HEADDIM + channel
}

fn step(sequence: usize, t: usize, head: usize) -> usize {
    (sequence * SEQ_LEN + t) * HEADS + head
}

fn projected(sequence: usize, t: usize, group: usize, n: usize) -> usize {
    ((sequence * SEQ_LEN + t) * 2 + group) * D_STATE + n
}

/// Fills the steps of one head.
fn steps(numbers: &mut Numbers, head: usize, value: f32) {
    let heads = numbers.dt.iter_mut().skip(head).step_by(HEADS);
    heads.for_each(|it| *it = value);
}

/// Runs each change on its own. `compared` is applied to both sides.
#[track_caller]
fn check(changes: &[Change], compared: fn(Vec<Named>) -> Vec<Named>) {
    for (name, change) in changes {
        let options = Options {
            dt_limit: (0.0, INFINITY),
            ..Options::ALL
        };
        let mut numbers = Numbers::new(Case::new([2, SEQ_LEN, HEADS, HEADDIM, D_STATE], options));
        change(&mut numbers);
        let want = compared(numbers.oracle());
        for strategy in [segments(1), segments(3)] {
            let got = compared(numbers.values(&client(), strategy));
            assert_close(&(name, strategy), &got, &want, 1e-5, 2e-6);
        }
    }
}

#[test]
fn extreme_numbers() {
    let changes: [Change; 7] = [
        ("steps of nearly zero", |it| steps(it, 3, -100.0)),
        ("steps of 100", |it| steps(it, 3, 100.0)),
        ("steps of 10,000", |it| steps(it, 0, 1e4)),
        ("no steps", |it| steps(it, 3, -1e4)),
        ("states that are lost at once", |it| it.a[3] = -1e4),
        ("states that are never lost", |it| it.a[0] = 0.0),
        ("large inputs", |it| it.x[at(0, 20, 1, 3)] = 1e15),
    ];
    check(&changes, |it| it);
}

#[test]
fn nan_stays_where_it_belongs() {
    let changes: [Change; 8] = [
        ("x", |it| it.x[at(0, 20, 1, 3)] = NAN),
        ("x of the last position", |it| it.x[at(1, 74, 3, 19)] = NAN),
        ("dt", |it| it.dt[step(1, 16, 2)] = NAN),
        ("a", |it| it.a[3] = NAN),
        ("b", |it| it.b[projected(0, 20, 1, 7)] = NAN),
        ("c", |it| it.c[projected(1, 45, 0, 39)] = NAN),
        ("b of another run", |it| it.b[projected(0, 40, 0, 0)] = NAN),
        ("initial_state", |it| it.initial_state[3 * D_STATE] = NAN),
    ];
    check(&changes, |it| it);
}

/// Infinities that meet are NaN or not by the order of sums: what counts is that they are not finite.
#[test]
fn infinities_stay_where_they_belong() {
    let changes: [Change; 5] = [
        ("x", |it| it.x[at(0, 20, 1, 3)] = INFINITY),
        ("x of the last position", |it| {
            it.x[at(1, 74, 3, 19)] = -INFINITY
        }),
        ("no step", |it| it.dt[step(0, 20, 3)] = -INFINITY),
        ("b", |it| it.b[projected(0, 45, 1, 7)] = INFINITY),
        ("c", |it| it.c[projected(0, 45, 1, 7)] = INFINITY),
    ];
    check(&changes, |mut named| {
        let values = named.iter_mut().flat_map(|it| &mut it.1);
        values
            .filter(|it| !it.is_finite())
            .for_each(|it| *it = f64::NAN);
        named
    });
}
