//! Values and gradients at small shapes, every option and size; what is refused.

use cubecl::ir::{ElemType, FloatKind, IntKind};
use mamba_kernels::KernelError;
use mamba_kernels::causal_conv1d::{ConvOutputs, causal_conv1d};

use crate::check;
use crate::support::conv::{Case, Numbers, Options};
use crate::support::{client, has_type};

#[test]
fn every_option_at_lengths_around_the_window_a_block_and_a_run() {
    for seq_len in [1, 2, 3, 4, 5, 17, 32, 33, 130, 257, 4097] {
        check(Case::new([2, seq_len, 64, 4], Options::ALL));
    }
}

#[test]
fn a_convolution_without_options_equals_the_oracle() {
    for seq_len in [2, 130] {
        check(Case::new([3, seq_len, 64, 4], Options::NONE));
    }
}

#[test]
fn any_number_of_channels() {
    for channels in [1, 3, 33, 100] {
        check(Case::new([2, 35, channels, 3], Options::ALL));
    }
}

/// Of the widest one, the window alone holds more than the first of these sequences.
#[test]
fn filters_of_any_width() {
    for width in [1, 2, 16] {
        for seq_len in [3, 50] {
            check(Case::new([2, seq_len, 6, width], Options::ALL));
        }
    }
}

/// Few kernels, each slow to compile without a GPU: the options that meet in one line of a kernel
/// are in different ones.
#[test]
fn some_options_without_the_others() {
    let none = Options::NONE;
    for options in [
        Options {
            bias: true,
            grad_final_state: true,
            ..none
        },
        Options {
            silu: true,
            seq_idx: true,
            ..none
        },
        Options {
            initial_state: true,
            ..none
        },
    ] {
        check(Case::new([2, 35, 24, 2], options));
    }
}

/// The first half of rows twice as wide, as in a Mamba block, and rows at which no vector begins.
#[test]
fn slices_of_wider_rows_are_read_in_place() {
    for padding in [64, 3] {
        let case = Case::new([2, 35, 64, 4], Options::ALL);
        check(Case { padding, ..case });
    }
}

#[test]
fn half_precision_sequences_with_f32_arithmetic() {
    for dtype in [FloatKind::F16, FloatKind::BF16] {
        match has_type(&client(), ElemType::Float(dtype)) {
            true => check(Case {
                dtype,
                ..Case::new([2, 35, 64, 4], Options::ALL)
            }),
            false => println!("not tested: the device has no {dtype:?}"),
        }
    }
}

#[test]
fn indices_of_64_bits() {
    match has_type(&client(), ElemType::Int(IntKind::I64)) {
        true => check(Case {
            index: IntKind::I64,
            ..Case::new([2, 35, 24, 4], Options::ALL)
        }),
        false => println!("not tested: the device has no I64"),
    }
}

/// Many short sequences: the parts of the weight's gradient are more than one unit adds.
#[test]
fn a_large_batch() {
    check(Case::new([70, 2, 64, 4], Options::ALL));
}

/// The window passes through an empty sequence; no sequence at all leaves the filters no gradient.
#[test]
fn nothing_to_compute_is_no_error() {
    for [batch, seq_len, channels] in [[2, 0, 64], [0, 5, 64], [2, 5, 0]] {
        check(Case::new([batch, seq_len, channels, 4], Options::ALL));
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let client = client();
    let inputs = |case: Case| Numbers::new(case).inputs(&client);
    let fitting = inputs(Case::new([2, 5, 8, 4], Options::ALL));
    let narrow = inputs(Case::new([2, 5, 4, 4], Options::ALL));
    let outputs = ConvOutputs {
        y: fitting.x.clone(),
        final_state: None,
    };
    let refused = |inputs| causal_conv1d(&client, inputs, outputs.clone()).expect_err("refused");

    let mut other = fitting.clone();
    other.bias = narrow.bias;
    let shape = KernelError::Shape {
        name: "bias",
        expected: vec![8],
        got: vec![4],
    };
    assert_eq!(refused(other), shape);

    let mut other = fitting.clone();
    other.x.strides = vec![40, 1, 5].into();
    assert!(matches!(
        refused(other),
        KernelError::Strides { name: "x", .. }
    ));

    let wide = inputs(Case::new([2, 5, 8, 17], Options::NONE));
    assert!(matches!(
        refused(wide),
        KernelError::Size { name: "width", .. }
    ));
}
