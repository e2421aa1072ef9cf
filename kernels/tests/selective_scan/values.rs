//! Values and gradients at small shapes, every option and strategy.

use cubecl::ir::{ElemType, FloatKind};
use mamba_kernels::selective_scan::Strategy;

use crate::check;
use crate::support::scan::{Case, Options};
use crate::support::{client, has_type};

#[test]
fn a_scan_without_options_equals_the_oracle() {
    let chunked = Strategy::Chunked { chunks: 3 };
    check(
        Case::new([2, 17, 24, 16], Options::NONE),
        Strategy::Sequential,
    );
    check(Case::new([2, 257, 24, 16], Options::NONE), chunked);
}

#[test]
fn every_option_at_lengths_around_a_checkpoint_and_a_tile() {
    for seq_len in [1, 17, 33, 130, 257] {
        check(
            Case::new([2, seq_len, 100, 16], Options::ALL),
            Strategy::Sequential,
        );
    }
}

#[test]
fn chunks_of_time_meet_without_a_seam() {
    for chunks in [2, 8, 100] {
        check(
            Case::new([2, 257, 24, 16], Options::ALL),
            Strategy::Chunked { chunks },
        );
    }
}

#[test]
fn thousands_of_positions() {
    // Gradients in three slices of time, in one of each chunk, and in five of each of two.
    let chunked = [16, 2].map(|chunks| Strategy::Chunked { chunks });
    for strategy in [Strategy::Sequential, chunked[0]] {
        check(Case::new([1, 4097, 3, 16], Options::ALL), strategy);
    }
    check(Case::new([2, 2753, 3, 24], Options::ALL), chunked[1]);
}

#[test]
fn any_number_of_states_from_1_to_256() {
    for d_state in [1, 5, 24, 64, 128, 256] {
        check(
            Case::new([2, 33, 24, d_state], Options::ALL),
            Strategy::Sequential,
        );
    }
    let padded = Case::new([2, 65, 24, 5], Options::ALL);
    check(padded, Strategy::Chunked { chunks: 2 });
}

#[test]
fn one_channel() {
    check(
        Case::new([2, 33, 1, 16], Options::ALL),
        Strategy::Sequential,
    );
}

/// Few kernels, each slow to compile without a GPU: the options that meet in one line of a kernel
/// are in different ones.
#[test]
fn some_options_without_the_others() {
    let none = Options::NONE;
    for options in [
        Options {
            d: true,
            seq_idx: true,
            ..none
        },
        Options {
            z: true,
            grad_final_state: true,
            ..none
        },
        Options {
            delta_bias: true,
            delta_softplus: true,
            initial_state: true,
            ..none
        },
    ] {
        check(Case::new([2, 65, 24, 4], options), Strategy::Sequential);
    }
}

#[test]
fn slices_of_wider_rows_are_read_in_place() {
    let sliced = Case {
        sliced: true,
        ..Case::new([2, 33, 24, 16], Options::ALL)
    };
    check(sliced, Strategy::Chunked { chunks: 2 });
}

#[test]
fn half_precision_sequences_with_f32_arithmetic() {
    if !has_type(&client(), ElemType::Float(FloatKind::F16)) {
        println!("not tested: the device has no F16");
        return;
    }
    let half = Case {
        dtype: FloatKind::F16,
        ..Case::new([2, 33, 24, 16], Options::ALL)
    };
    check(half, Strategy::Sequential);
}
