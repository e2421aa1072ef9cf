//! What was in memory does not matter, and nothing does but the inputs.

use mamba_kernels::selective_scan::Strategy;

use crate::check;
use crate::support::pool::from_poisoned;
use crate::support::scan::{Case, Numbers, Options};
use crate::support::{client, kinds};

const STRATEGIES: [Strategy; 3] = [
    Strategy::Auto,
    Strategy::Sequential,
    Strategy::Chunked { chunks: 4 },
];

/// Outputs are poisoned in all tests, in this one the kernels' scratch memory is, too.
#[test]
fn every_element_that_is_read_was_written() {
    for strategy in STRATEGIES {
        for dims in [[2, 257, 100, 16], [2, 33, 24, 5]] {
            from_poisoned(|| check(Case::new(dims, Options::ALL), strategy));
        }
    }
}

#[track_caller]
fn check_repeats(case: Case) {
    let numbers = Numbers::new(case);
    for strategy in STRATEGIES {
        let first = numbers.kernels(&client(), strategy);
        for _ in 1..20 {
            // f64 holds every bit of what was read, of which nothing is NaN.
            assert_eq!(first, numbers.kernels(&client(), strategy), "{strategy:?}");
        }
    }
}

#[test]
fn twenty_runs_agree_to_the_bit() {
    check_repeats(Case::new([2, 257, 100, 16], Options::ALL));
}

#[test]
#[ignore = "minutes without a graphics card"]
fn twenty_large_runs_agree_to_the_bit() {
    for dtype in kinds(&client()) {
        for dims in [[8, 512, 2048, 16], [1, 2048, 1024, 64]] {
            check_repeats(Case {
                dtype,
                ..Case::new(dims, Options::ALL)
            });
        }
    }
}
