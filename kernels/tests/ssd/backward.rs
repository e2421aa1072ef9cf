//! Gradients at small shapes, and what asks for a graphics card.

use cubecl::ir::{ElemType, FloatKind};
use mamba_kernels::ssd::Strategy;

use crate::support::ssd::{Case, Numbers, Options, Skip, card_sizes};
use crate::support::ssd_gradients::{Upstream, gradient_tolerance};
use crate::support::{Named, assert_close, client, has_type, kinds, largest_error, worst_error};

/// Without tensor cores, in one piece.
const UNITS: Strategy = Strategy {
    segments: Some(1),
    tensor_cores: false,
};

/// The ways to compute sequences of `dtype`: f32 knows no tensor cores.
fn strategies(dtype: FloatKind) -> Vec<Strategy> {
    match dtype {
        FloatKind::F32 => vec![UNITS],
        _ => vec![Strategy::default(), UNITS],
    }
}

#[track_caller]
fn check(case: Case, strategy: Strategy) {
    let numbers = Numbers::new(case);
    for of_final_state in [true, false] {
        let upstream = Upstream::new(&case, of_final_state);
        let got = upstream.kernels(&numbers, &client(), strategy);
        let [relative, absolute] = gradient_tolerance(&case);
        let [got, want] = upstream.beside_oracle(&numbers, got);
        assert_close(&case, &got, &want, relative, absolute);
    }
}

/// Every option at sizes that no tile divides, over two chunks: of the tests that share what it compiles.
const ALL: Case = Case {
    batch: 2,
    seq_len: 75,
    nheads: 4,
    headdim: 20,
    ngroups: 2,
    d_state: 40,
    chunk_size: 48,
    options: Options::ALL,
    dtype: FloatKind::F32,
    padding: 0,
};

#[test]
fn gradients_without_options_equal_the_oracle() {
    check(
        Case::new([2, 37, 2, 8, 16], Options::NONE),
        Strategy::default(),
    );
}

#[test]
fn gradients_of_every_option_at_lengths_around_a_tile() {
    for seq_len in [1, 17, 75] {
        check(Case { seq_len, ..ALL }, Strategy::default());
    }
}

#[test]
fn gradients_of_chunks_a_few_at_a_time() {
    let case = Case {
        seq_len: 230,
        ..ALL
    };
    for segments in [2, 5] {
        let strategy = Strategy {
            segments: Some(segments),
            ..UNITS
        };
        check(case, strategy);
    }
}

/// So many sequences that a cube takes two heads of a group of four, on a device of up to 80 multiprocessors.
#[test]
fn gradients_of_heads_one_after_the_other() {
    let case = Case {
        batch: 40,
        seq_len: 70,
        ngroups: 1,
        ..ALL
    };
    check(case, Strategy::default());
}

/// From the oracle's checkpoints: no scan is compiled for each size. For a batch of one.
#[track_caller]
fn check_alone(case: Case) {
    let numbers = Numbers::new(case);
    let upstream = Upstream::new(&case, true);
    let got = upstream.kernels_alone(&numbers, &client(), UNITS);
    let [relative, absolute] = gradient_tolerance(&case);
    let [got, want] = upstream.beside_oracle(&numbers, got);
    assert_close(&case, &got, &want, relative, absolute);
}

#[test]
fn gradients_of_small_and_large_heads_and_states() {
    for [nheads, headdim, d_state] in [[2, 1, 33], [2, 33, 1], [3, 48, 100], [1, 128, 256]] {
        // Tiles of several intervals, and of one.
        for chunk_size in [48, 256] {
            check_alone(Case {
                chunk_size,
                padding: 3,
                ..Case::new([1, 75, nheads, headdim, d_state], Options::ALL)
            });
        }
    }
}

#[test]
fn gradients_of_slices_of_wider_rows_and_a_skip_of_each_channel() {
    let options = Options {
        skip: Skip::Channels,
        dt_limit: (0.0, f32::INFINITY),
        ..Options::ALL
    };
    let case = Case {
        padding: 3,
        ngroups: 1,
        chunk_size: 48,
        ..Case::new([1, 70, 2, 33, 71], options)
    };
    check(case, Strategy::default());
}

#[test]
fn gradients_in_half_precision_on_plain_units() {
    if !has_type(&client(), ElemType::Float(FloatKind::F16)) {
        println!("F16: not on this device");
        return;
    }
    check_alone(Case {
        batch: 1,
        dtype: FloatKind::F16,
        ..ALL
    });
}

/// Of the runs that begin at positions 25, 26 and 62, the entries of one are not numbers: the others do not see it.
#[test]
fn nan_of_a_run_stays_in_it() {
    const SEQ_LEN: usize = ALL.seq_len;
    let case = Case { batch: 1, ..ALL };
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
    for dtype in kinds(&client()) {
        let case = Case { dtype, ..ALL };
        let numbers = Numbers::new(case);
        let upstream = Upstream::new(&case, true);
        for strategy in strategies(dtype) {
            let run = || bits(upstream.kernels(&numbers, &client(), strategy));
            assert_eq!(run(), run());
        }
    }
}

#[test]
#[ignore = "minutes without a graphics card"]
fn gradients_of_every_number_of_channels_and_states() {
    let mut wrong = 0;
    for dtype in kinds(&client()).into_iter().rev() {
        for [headdim, d_state] in card_sizes() {
            wrong += report(Case {
                dtype,
                ..Case::new([2, 257, 4, headdim, d_state], Options::ALL)
            });
        }
    }
    assert_eq!(wrong, 0);
}

#[test]
#[ignore = "minutes without a graphics card"]
fn gradients_of_every_length_and_group() {
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
    }
    assert_eq!(wrong, 0);
}

#[test]
#[ignore = "minutes without a graphics card"]
fn gradients_of_every_chunk() {
    let mut wrong = 0;
    for dtype in kinds(&client()).into_iter().rev() {
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

/// Prints how far each gradient is off, whichever way; how many ways are beyond the tolerance.
fn report(case: Case) -> usize {
    let strategies = strategies(case.dtype).into_iter();
    strategies.map(|it| report_of(case, it)).sum()
}

fn report_of(case: Case, strategy: Strategy) -> usize {
    let numbers = Numbers::new(case);
    let upstream = Upstream::new(&case, true);
    let got = upstream.kernels(&numbers, &client(), strategy);
    let [got, want] = upstream.beside_oracle(&numbers, got);
    let allowed = gradient_tolerance(&case)[1];
    let mut wrong = false;
    let mut line = String::new();
    assert_eq!(got.len(), want.len(), "as many gradients");
    for (got, want) in got.iter().zip(&want) {
        let worst = largest_error(&got.1, &want.1);
        wrong |= worst > allowed;
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
        "{} {dtype:?} on {} L {seq_len} P {headdim} N {d_state} G {ngroups} Q {chunk_size}:{line}",
        if wrong { "WRONG" } else { "right" },
        if strategy.tensor_cores {
            "tensor cores"
        } else {
            "units"
        },
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
        let allowed = if dtype == FloatKind::F32 {
            2e-5
        } else {
            1.2e-2
        };
        for strategy in strategies(dtype) {
            let got = upstream.kernels(&numbers, &client(), strategy);
            let [got, want] = upstream.beside_oracle(&numbers, got);
            let worst = worst_error(&got, &want, allowed);
            println!("{dtype:?}, {strategy:?}: within {worst:.1e} of the oracle");
        }
    }
}
