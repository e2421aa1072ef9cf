//! Mamba-2's kernels against the f64 oracle, on the default device of the runtime built in.
//!
//! What asks for a graphics card is ignored without one:
//!
//! ```text
//! cargo test --release -p mamba-kernels --features oracle,cuda-cpp --test ssd -- \
//!     --ignored --test-threads 1 --nocapture
//! ```
#![cfg(all(feature = "oracle", feature = "runtime"))]

#[path = "../support/mod.rs"]
mod support;

mod backward;
mod card;
mod extremes;
mod memory;
mod refusals;
mod values;

use mamba_kernels::ssd::Strategy;
use support::ssd::{Case, Numbers};
use support::{assert_close, client};

/// Time in about that many segments.
const fn segments(segments: usize) -> Strategy {
    Strategy {
        segments: Some(segments),
        tensor_cores: true,
    }
}

#[track_caller]
fn check(case: Case, strategy: Strategy) {
    let numbers = Numbers::new(case);
    let got = numbers.values(&client(), strategy);
    let [relative, absolute] = case.tolerance();
    assert_close(&case, &got, &numbers.oracle(), relative, absolute);
}
