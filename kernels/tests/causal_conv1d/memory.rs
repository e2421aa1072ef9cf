//! What was in memory does not matter, and nothing does but the inputs.

use crate::check;
use crate::support::conv::{Case, Numbers, Options};
use crate::support::pool::from_poisoned;
use crate::support::{client, kinds};

/// Outputs are poisoned in all tests, in this one the kernels' scratch memory is, too.
#[test]
fn every_element_that_is_read_was_written() {
    for dims in [[2, 257, 64, 4], [2, 35, 33, 3], [70, 2, 64, 4]] {
        from_poisoned(|| check(Case::new(dims, Options::ALL)));
    }
}

#[track_caller]
fn check_repeats(case: Case) {
    let numbers = Numbers::new(case);
    let first = numbers.kernels(&client());
    for _ in 1..20 {
        // f64 holds every bit of what was read, of which nothing is NaN.
        assert_eq!(first, numbers.kernels(&client()));
    }
}

#[test]
fn twenty_runs_agree_to_the_bit() {
    check_repeats(Case::new([2, 257, 64, 4], Options::ALL));
}

#[test]
#[ignore = "minutes without a graphics card"]
fn twenty_large_runs_agree_to_the_bit() {
    for dtype in kinds(&client()) {
        check_repeats(Case {
            dtype,
            ..Case::new([8, 512, 2048, 4], Options::ALL)
        });
    }
}
