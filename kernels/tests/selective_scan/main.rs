//! The scan's kernels against the f64 oracle, on the default device of the runtime built in.
//!
//! What asks for a graphics card is ignored without one:
//!
//! ```text
//! cargo test --release -p mamba-kernels --features oracle,cuda-cpp --test selective_scan -- \
//!     --ignored --test-threads 1 --nocapture
//! ```
#![cfg(all(feature = "oracle", feature = "runtime"))]

#[path = "../support/mod.rs"]
mod support;

mod card;
mod differences;
mod extremes;
mod memory;
mod values;

use mamba_kernels::selective_scan::Strategy;
use support::scan::{Case, Numbers};
use support::{assert_close, client};

#[track_caller]
fn check(case: Case, strategy: Strategy) {
    let numbers = Numbers::new(case);
    let got = numbers.kernels(&client(), strategy);
    let [relative, absolute] = case.tolerance();
    assert_close(&case, &got, &numbers.oracle(), relative, absolute);
}
