//! What asks for a graphics card: all sizes, the shapes that speed is claimed for, tensors past 2^31
//! elements.

use cubecl::ir::FloatKind;
use mamba_kernels::selective_scan::Strategy;

use crate::check;
use crate::support::repeat::{ROUNDED_ONCE, check_copies};
use crate::support::scan::{Case, Numbers, Options, SHAPES};
use crate::support::{client, kinds, worst_error};

#[test]
#[ignore = "minutes without a graphics card"]
fn every_length_with_every_number_of_states() {
    for dtype in kinds(&client()) {
        for d_state in [1, 16, 24, 64, 128] {
            for seq_len in [1, 17, 130, 4097] {
                let case = Case {
                    dtype,
                    ..Case::new([2, seq_len, 40, d_state], Options::ALL)
                };
                check(case, Strategy::Sequential);
                check(case, Strategy::Chunked { chunks: 5 });
            }
            println!("{dtype:?}, {d_state} states: 4 lengths, 2 strategies are right");
        }
    }
}

#[test]
#[ignore = "minutes and 16 GB without a graphics card"]
fn the_shapes_that_speed_is_claimed_for() {
    for dims in SHAPES {
        let [batch, d_inner, seq_len, d_state] = dims;
        for dtype in kinds(&client()) {
            let case = Case {
                dtype,
                ..Case::new([batch, seq_len, d_inner, d_state], Options::ALL)
            };
            let numbers = Numbers::new(case);
            let got = numbers.kernels(&client(), Strategy::Auto);
            // Halves keep eight bits of a result.
            let allowed = if dtype == FloatKind::F32 { 2e-5 } else { 4e-3 };
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
        numbers.u.len(),
        ROUNDED_ONCE,
        |device| numbers.kernels_on(device, strategy),
        || numbers.oracle(),
        &["grad_a", "grad_d", "grad_delta_bias"],
    );
}

/// 2^31 elements and two sequences more, addressed with 32 bits.
#[test]
#[ignore = "takes 55 GB of a graphics card"]
fn tensors_past_two_to_the_31_elements() {
    let case = Case::new([3, 1024, 128, 16], Options::ALL);
    check_large(case, 5462, Strategy::Auto);
}

/// 2^32 elements and a sequence more, addressed with 64 bits. Without z, for room.
#[test]
#[ignore = "takes 65 GB of a graphics card"]
fn tensors_past_two_to_the_32_elements() {
    let options = Options {
        z: false,
        ..Options::ALL
    };
    let case = Case::new([3, 1024, 128, 4], options);
    check_large(case, 10923, Strategy::Chunked { chunks: 3 });
}
