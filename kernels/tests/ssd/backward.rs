//! Gradients at small shapes, and what asks for a graphics card.

use cubecl::ir::FloatKind;
use mamba_kernels::ssd::Strategy;

use crate::support::ssd::{Case, Numbers, Options, Skip, card_channels};
use crate::support::ssd_gradients::{Upstream, gradient_tolerance};
use crate::support::{Named, assert_close, client, compiles_large_kernels, kinds, worst_error};

#[track_caller]
fn check(case: Case) {
    let numbers = Numbers::new(case);
    for of_final_state in [true, false] {
        let upstream = Upstream::new(&case, of_final_state);
        let got = upstream.kernels(&numbers, &client(), Strategy::default());
        let [relative, absolute] = gradient_tolerance(&case);
        assert_close(&case, &got, &upstream.oracle(&numbers), relative, absolute);
    }
}

#[test]
fn gradients_without_options_equal_the_oracle() {
    if !compiles_large_kernels(&client()) {
        return;
    }
    check(Case::new([2, 37, 2, 8, 16], Options::NONE));
}

#[test]
fn gradients_of_every_option_at_lengths_around_a_tile() {
    if !compiles_large_kernels(&client()) {
        return;
    }
    for seq_len in [1, 17, 75] {
        let case = Case {
            chunk_size: 48,
            ..Case::new([2, seq_len, 4, 20, 40], Options::ALL)
        };
        check(case);
    }
}

#[test]
fn gradients_of_slices_of_wider_rows_and_a_skip_of_each_channel() {
    if !compiles_large_kernels(&client()) {
        return;
    }
    let options = Options {
        skip: Skip::Channels,
        dt_limit: (0.0, f32::INFINITY),
        ..Options::ALL
    };
    let case = Case {
        padding: 3,
        ngroups: 1,
        chunk_size: 32,
        ..Case::new([1, 40, 2, 33, 71], options)
    };
    check(case);
}

/// Of the runs that begin at positions 25, 26 and 62, the entries of one are not numbers: the others do not see it.
#[test]
fn nan_of_a_run_stays_in_it() {
    if !compiles_large_kernels(&client()) {
        return;
    }
    const SEQ_LEN: usize = 75;
    let case = Case {
        chunk_size: 48,
        ..Case::new([1, SEQ_LEN, 4, 20, 40], Options::ALL)
    };
    let clean = Numbers::new(case);
    let upstream = Upstream::new(&case, true);
    let want = upstream.kernels(&clean, &client(), Strategy::default());
    let position = 40;
    type Change = (&'static str, fn(&mut Numbers, &mut Upstream, usize));
    let changes: [Change; 5] = [
        ("x", |it, _, t| it.x[t * 80 + 7] = f32::NAN),
        ("dt", |it, _, t| it.dt[t * 4] = f32::NAN),
        ("b", |it, _, t| it.b[t * 80 + 3] = f32::NAN),
        ("c", |it, _, t| it.c[t * 80 + 3] = f32::NAN),
        ("grad_y", |_, it, t| it.grad_y[t * 80 + 7] = f32::NAN),
    ];
    for (name, change) in changes {
        let mut numbers = Numbers::new(case);
        let mut upstream = Upstream::new(&case, true);
        change(&mut numbers, &mut upstream, position);
        let got = upstream.kernels(&numbers, &client(), Strategy::default());
        let mut reached = 0;
        for ((tensor, got), (_, want)) in got.iter().zip(&want) {
            if !["grad_x", "grad_dt", "grad_b", "grad_c"].contains(tensor) {
                continue;
            }
            let row = got.len() / SEQ_LEN;
            for (index, (got, want)) in got.iter().zip(want).enumerate() {
                let t = index / row;
                if (26..62).contains(&t) {
                    reached += !got.is_finite() as usize;
                } else {
                    assert!(got == want, "{tensor}[{index}] with NaN in {name}: {got}");
                }
            }
        }
        assert!(reached > 0, "NaN in {name} reaches nothing");
    }
}

fn bits(named: Vec<Named>) -> Vec<u64> {
    let values = named.into_iter().flat_map(|it| it.1);
    values.map(f64::to_bits).collect()
}

#[test]
fn two_runs_give_the_same_bits() {
    if !compiles_large_kernels(&client()) {
        return;
    }
    for dtype in kinds(&client()) {
        let case = Case {
            dtype,
            chunk_size: 48,
            ..Case::new([2, 75, 4, 20, 40], Options::ALL)
        };
        let numbers = Numbers::new(case);
        let upstream = Upstream::new(&case, true);
        let run = || bits(upstream.kernels(&numbers, &client(), Strategy::default()));
        assert_eq!(run(), run());
    }
}

#[test]
#[ignore = "minutes without a graphics card"]
fn gradients_of_every_number_of_channels_and_states() {
    let mut wrong = 0;
    for dtype in kinds(&client()).into_iter().rev() {
        for headdim in card_channels() {
            for d_state in [16, 64, 100, 128, 256] {
                let case = Case {
                    dtype,
                    ..Case::new([2, 257, 4, headdim, d_state], Options::ALL)
                };
                wrong += report(case);
            }
        }
    }
    assert_eq!(wrong, 0);
}

#[test]
#[ignore = "minutes without a graphics card"]
fn gradients_of_every_length_group_and_chunk() {
    let mut wrong = 0;
    for dtype in kinds(&client()).into_iter().rev() {
        for seq_len in [1, 17, 255, 257, 1000] {
            for ngroups in [1, 2, 8] {
                let options = Options {
                    skip: Skip::Channels,
                    ..Options::ALL
                };
                wrong += report(Case {
                    dtype,
                    ngroups,
                    ..Case::new([2, seq_len, 8, 64, 128], options)
                });
            }
        }
        for chunk_size in [16, 32, 48, 64, 128] {
            wrong += report(Case {
                dtype,
                chunk_size,
                padding: 3,
                ..Case::new([1, 257, 2, 64, 128], Options::ALL)
            });
        }
        wrong += report(Case {
            dtype,
            ..Case::new([2, 300, 6, 64, 128], Options::NONE)
        });
        wrong += report(Case {
            dtype: FloatKind::F16,
            ..Case::new([2, 300, 6, 64, 128], Options::ALL)
        });
    }
    assert_eq!(wrong, 0);
}

/// Prints how far each gradient is off; 1 where one is beyond the tolerance.
fn report(case: Case) -> usize {
    let numbers = Numbers::new(case);
    let upstream = Upstream::new(&case, true);
    let got = upstream.kernels(&numbers, &client(), Strategy::default());
    let want = upstream.oracle(&numbers);
    let allowed = gradient_tolerance(&case)[1];
    let mut wrong = false;
    let mut line = String::new();
    for (got, want) in got.iter().zip(&want) {
        let largest = want.1.iter().fold(1.0f64, |most, it| most.max(it.abs()));
        let errors = got
            .1
            .iter()
            .zip(&want.1)
            .map(|(got, want)| (got - want).abs() / largest);
        let worst = errors.fold(0.0f64, |most, it| if it <= most { most } else { it });
        wrong |= worst > allowed || worst.is_nan();
        line += &format!(" {} {worst:.1e}", got.0);
    }
    let Case {
        seq_len,
        headdim,
        d_state,
        ngroups,
        chunk_size,
        dtype,
        ..
    } = case;
    println!(
        "{} {dtype:?} L {seq_len} P {headdim} N {d_state} G {ngroups} Q {chunk_size}:{line}",
        if wrong { "WRONG" } else { "right" }
    );
    wrong as usize
}

#[test]
#[ignore = "minutes without a graphics card"]
fn gradients_of_thousands_of_positions() {
    for dtype in kinds(&client()) {
        let case = Case {
            dtype,
            ..Case::new([1, 4096, 6, 64, 128], Options::NONE)
        };
        let numbers = Numbers::new(case);
        let upstream = Upstream::new(&case, false);
        let got = upstream.kernels(&numbers, &client(), Strategy::default());
        let allowed = if dtype == FloatKind::F32 {
            2e-5
        } else {
            1.2e-2
        };
        let worst = worst_error(&got, &upstream.oracle(&numbers), allowed);
        println!("{dtype:?}: within {worst:.1e} of the oracle");
    }
}
