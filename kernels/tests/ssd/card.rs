//! What asks for a graphics card: odd sizes, long sequences, tensors past 2^31 elements.

use cubecl::ir::FloatKind;
use mamba_kernels::ssd::Strategy;

use crate::support::repeat::check_copies;
use crate::support::ssd::{Case, Numbers, Options, Skip, card_sizes};
use crate::support::{client, kinds, worst_error};
use crate::{check, segments};

#[test]
#[ignore = "minutes without a graphics card"]
fn every_number_of_channels_and_states() {
    for dtype in kinds(&client()) {
        for [headdim, d_state] in card_sizes() {
            let case = Case {
                dtype,
                ..Case::new([2, 257, 4, headdim, d_state], Options::ALL)
            };
            check(case, segments(1));
            println!("{dtype:?}, {headdim} channels, {d_state} states: right");
        }
    }
}

#[test]
#[ignore = "minutes without a graphics card"]
fn every_length_group_and_chunk() {
    for dtype in kinds(&client()) {
        for seq_len in [1, 17, 255, 257, 1000] {
            for ngroups in [1, 2, 8] {
                let options = Options {
                    skip: Skip::Channels,
                    ..Options::ALL
                };
                let case = Case {
                    dtype,
                    ngroups,
                    ..Case::new([2, seq_len, 8, 64, 128], options)
                };
                check(case, segments(1));
                check(case, segments(3));
            }
        }
        for chunk_size in [16, 32, 48, 64, 128] {
            let case = Case {
                dtype,
                chunk_size,
                padding: 3,
                ..Case::new([1, 257, 2, 64, 128], Options::ALL)
            };
            check(case, segments(2));
        }
        println!("{dtype:?}: lengths, groups and chunks are right");
    }
}

#[test]
#[ignore = "minutes without a graphics card"]
fn thousands_of_positions() {
    for dtype in kinds(&client()) {
        for dims in [[4, 2048, 48, 64, 128], [1, 8192, 8, 64, 128]] {
            let case = Case {
                dtype,
                ..Case::new(dims, Options::NONE)
            };
            let numbers = Numbers::new(case);
            let got = numbers.values(&client(), Strategy::default());
            let allowed = if dtype == FloatKind::F32 { 2e-5 } else { 8e-3 };
            let worst = worst_error(&got, &numbers.oracle(), allowed);
            println!("{dims:?} {dtype:?}: within {worst:.1e} of the oracle");
        }
    }
}

fn check_large(case: Case, copies: usize, strategy: Strategy) {
    let numbers = Numbers::new(Case {
        dtype: FloatKind::BF16,
        ..case
    });
    let client = client();
    check_copies(
        numbers.uploader(&client),
        copies,
        numbers.x.len(),
        numbers.case.tolerance(),
        |device| numbers.run(device, strategy, false),
        || numbers.oracle(),
        &[],
    );
}

/// 2^31 elements and two sequences more, addressed with 32 bits.
#[test]
#[ignore = "takes 20 GB of a graphics card"]
fn tensors_past_two_to_the_31_elements() {
    let case = Case::new([3, 512, 4, 64, 16], Options::ALL);
    check_large(case, 5462, Strategy::default());
}

/// 2^32 elements and a sequence more, addressed with 64 bits.
#[test]
#[ignore = "takes 40 GB of a graphics card"]
fn tensors_past_two_to_the_32_elements() {
    let case = Case::new([3, 512, 4, 64, 16], Options::NONE);
    check_large(case, 10923, segments(2));
}
