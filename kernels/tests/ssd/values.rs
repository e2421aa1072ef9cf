//! Values at small shapes.

use cubecl::ir::{ElemType, FloatKind};

use crate::support::ssd::{Case, Numbers, Options, Skip};
use crate::support::{assert_close, client, has_type};
use crate::{check, segments};

#[test]
fn a_scan_without_options_equals_the_oracle() {
    check(Case::new([2, 37, 2, 8, 16], Options::NONE), segments(1));
}

#[test]
fn every_option_at_lengths_around_a_chunk() {
    for seq_len in [1, 17, 33, 75] {
        check(
            Case::new([2, seq_len, 4, 20, 40], Options::ALL),
            segments(1),
        );
    }
}

#[test]
fn segments_of_time_meet_without_a_seam() {
    for count in [2, 3, 100] {
        check(Case::new([2, 75, 4, 20, 40], Options::ALL), segments(count));
    }
}

#[test]
fn many_states_and_channels_in_slices_of_wider_rows() {
    let options = Options {
        skip: Skip::Channels,
        dt_limit: (0.0, f32::INFINITY),
        ..Options::ALL
    };
    let case = Case {
        padding: 3,
        ..Case::new([1, 40, 3, 72, 132], options)
    };
    check(case, segments(1));
}

#[test]
fn half_precision_sequences_with_f32_sums() {
    if !has_type(&client(), ElemType::Float(FloatKind::F16)) {
        println!("not tested: the device has no F16");
        return;
    }
    let case = Case {
        dtype: FloatKind::F16,
        ..Case::new([2, 33, 2, 16, 16], Options::ALL)
    };
    check(case, segments(1));
}

#[test]
fn checkpoints_are_the_states_before_chunks() {
    let numbers = Numbers::new(Case {
        chunk_size: 32,
        ..Case::new([1, 75, 2, 8, 16], Options::ALL)
    });
    for count in [1, 2] {
        let got = numbers.values_saved(&client(), segments(count));
        let (name, checkpoints) = &got[2];
        assert_eq!(*name, "checkpoints");
        let states = checkpoints.chunks(numbers.initial_state.len());
        assert_eq!(states.len(), 3);
        for (index, state) in states.enumerate() {
            let want = match index {
                0 => numbers.initial_state.iter().map(|&it| it.into()).collect(),
                // A run may begin with the chunk: its state is dropped after the checkpoint.
                _ => numbers.beginning(32 * index).oracle()[1].1.clone(),
            };
            let got = [("checkpoint", state.to_vec())];
            assert_close(&index, &got, &[("checkpoint", want)], 1e-5, 2e-6);
        }
    }
}
