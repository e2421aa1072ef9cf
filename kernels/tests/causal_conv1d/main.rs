//! The convolution's kernels against the f64 oracle, on the default device of the runtime built in.
//!
//! What asks for a graphics card is ignored without one:
//!
//! ```text
//! cargo test --release -p mamba-kernels --features oracle,cuda-cpp --test causal_conv1d -- \
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

use support::conv::{Case, Numbers};
use support::{assert_close, client};

#[track_caller]
fn check(case: Case) {
    let numbers = Numbers::new(case);
    let [relative, absolute] = case.tolerance();
    let got = numbers.kernels(&client());
    assert_close(&case, &got, &numbers.oracle(), relative, absolute);
}
