//! What was in memory does not matter, and nothing does but the inputs.

use mamba_kernels::ssd::Strategy;

use crate::support::pool::from_poisoned;
use crate::support::ssd::{Case, Numbers, Options};
use crate::support::ssd_gradients::{Upstream, gradient_tolerance};
use crate::support::{assert_close, client, kinds};
use crate::{check, segments};

/// Outputs are poisoned in all tests, in this one the kernels' scratch memory is, too.
#[test]
fn every_element_that_is_read_was_written() {
    for strategy in [segments(1), segments(3)] {
        from_poisoned(|| check(Case::new([2, 75, 4, 20, 40], Options::ALL), strategy));
    }
}

/// The same of the gradients' kernels.
#[test]
fn every_element_that_gradients_read_was_written() {
    let case = Case {
        chunk_size: 48,
        ..Case::new([2, 75, 4, 20, 40], Options::ALL)
    };
    let numbers = Numbers::new(case);
    let upstream = Upstream::new(&case, true);
    from_poisoned(|| {
        let got = upstream.kernels(&numbers, &client(), Strategy::default());
        let [relative, absolute] = gradient_tolerance(&case);
        let [got, want] = upstream.beside_oracle(&numbers, got);
        assert_close(&case, &got, &want, relative, absolute);
    });
}

#[track_caller]
fn check_repeats(case: Case, strategy: Strategy) {
    let numbers = Numbers::new(case);
    let first = numbers.values_saved(&client(), strategy);
    for _ in 1..20 {
        // f64 holds every bit of what was read, of which nothing is NaN.
        assert_eq!(first, numbers.values_saved(&client(), strategy));
    }
}

#[test]
fn twenty_runs_agree_to_the_bit() {
    check_repeats(Case::new([2, 75, 4, 20, 40], Options::ALL), segments(3));
}

#[test]
#[ignore = "minutes without a graphics card"]
fn twenty_large_runs_agree_to_the_bit() {
    for dtype in kinds(&client()) {
        for dims in [[2, 1024, 24, 64, 128], [1, 4096, 8, 64, 128]] {
            let case = Case {
                dtype,
                ..Case::new(dims, Options::ALL)
            };
            check_repeats(case, Strategy::default());
        }
        println!("{dtype:?}: 20 runs agree at two shapes");
    }
}
