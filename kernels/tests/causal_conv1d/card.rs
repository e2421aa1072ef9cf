//! What asks for a graphics card: the shapes that speed is claimed for, tensors past 2^31 elements.

use cubecl::ir::FloatKind;

use crate::support::conv::{Case, Numbers, Options, SHAPES};
use crate::support::repeat::{ROUNDED_ONCE, check_copies};
use crate::support::{client, kinds, worst_error};

#[test]
#[ignore = "minutes and 16 GB without a graphics card"]
fn the_shapes_that_speed_is_claimed_for() {
    for dims in SHAPES {
        let [batch, channels, seq_len, width] = dims;
        for dtype in kinds(&client()) {
            let case = Case {
                dtype,
                ..Case::new([batch, seq_len, channels, width], Options::ALL)
            };
            let numbers = Numbers::new(case);
            let got = numbers.kernels(&client());
            // Halves keep eight bits of a result.
            let allowed = if dtype == FloatKind::F32 { 2e-5 } else { 4e-3 };
            let worst = worst_error(&got, &numbers.oracle(), allowed);
            println!("{dims:?} {dtype:?}: within {worst:.1e} of the oracle");
        }
    }
}

fn check_large(case: Case, copies: usize) {
    let numbers = Numbers::new(Case {
        dtype: FloatKind::BF16,
        ..case
    });
    let client = client();
    check_copies(
        numbers.uploader(&client),
        copies,
        numbers.x.len(),
        ROUNDED_ONCE,
        |device| numbers.kernels_on(device),
        || numbers.oracle(),
        &["grad_weight", "grad_bias"],
    );
}

/// 2^31 elements and two sequences more, addressed with 32 bits.
#[test]
#[ignore = "takes 20 GB of a graphics card"]
fn tensors_past_two_to_the_31_elements() {
    check_large(Case::new([3, 1024, 128, 4], Options::ALL), 5462);
}

/// 2^32 elements and a sequence more, addressed with 64 bits.
#[test]
#[ignore = "takes 40 GB of a graphics card"]
fn tensors_past_two_to_the_32_elements() {
    check_large(Case::new([3, 1024, 128, 4], Options::ALL), 10923);
}

/// Of sequences that are shorter than the window. Without initial windows, for room.
#[test]
#[ignore = "takes 40 GB of a graphics card"]
fn windows_and_parts_past_two_to_the_32_elements() {
    let options = Options {
        initial_state: false,
        grad_final_state: false,
        ..Options::ALL
    };
    check_large(Case::new([3, 1, 4096, 16], options), 23303);
}
