//! The recurrence and the gated norm of Mamba-2 against PyTorch, against each other's paths, and against the two
//! operations that the duality joins: masked attention and the scan of Mamba-1.
#![recursion_limit = "256"]

use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};
use mamba_core::ops::{
    GatedRmsNorm, SelectiveScan, Skip, Ssd, Strategy, gated_rms_norm, reference, selective_scan,
    ssd,
};
use mamba_kernels::oracle;
use mamba_tests::devices::{autodiff_devices, device};
use mamba_tests::fixtures::{self, Array, Fixture};
use mamba_tests::tensors::{
    assert_fixture, assert_same, check, doubles, float, int, numbers, runs, sequence_tensor, values,
};
use mamba_tests::tolerances::{SSD_F32, SSD_F32_GRADIENT, assert_close};

type Path = fn(Ssd) -> (Tensor<3>, Tensor<4>);

/// Paths under test: the backend's own, the chunked reference, the recurrence.
const PATHS: [(&str, Path); 3] = [
    ("fused", |arguments| {
        ssd(Ssd {
            strategy: Strategy::Fused,
            ..arguments
        })
    }),
    ("chunked", reference::ssd),
    ("sequential", reference::ssd_sequential),
];

/// Fixtures keep heads and groups as an axis; tensors have them side by side.
fn columns(array: &Array<f32>, device: &Device) -> Tensor<3> {
    let [batch, seq_len, heads, width] = array.shape[..] else {
        panic!("four axes, got {:?}", array.shape)
    };
    let whole = Array::new(&[batch, seq_len, heads * width], array.values.clone());
    float(&whole, device)
}

fn arguments(fixture: &Fixture, device: &Device) -> Ssd {
    let leaf1 = |key: &str| {
        let array = fixture.find_floats(key)?;
        Some(float::<1>(array, device).require_grad())
    };
    let wide = |key: &str| columns(fixture.floats(key), device).require_grad();
    let d = fixture.find_floats("d").map(|d| match d.shape.len() {
        1 => Skip::PerHead(float(d, device).require_grad()),
        _ => Skip::PerChannel(float(d, device).require_grad()),
    });
    let initial_state = fixture.find_floats("initial_state");
    Ssd {
        d,
        dt_bias: leaf1("dt_bias"),
        initial_state: initial_state.map(|state| float(state, device).require_grad()),
        seq_idx: fixture.find_ints("seq_idx").map(|ids| int(ids, device)),
        ngroups: fixture.floats("b").shape[2],
        chunk_size: fixture.setting("chunk_size"),
        dt_softplus: fixture.setting("dt_softplus"),
        dt_limit: (
            fixture.setting("dt_limit_min"),
            fixture.setting("dt_limit_max"),
        ),
        ..Ssd::new(
            wide("x"),
            float(fixture.floats("dt"), device).require_grad(),
            leaf1("a").expect("every fixture has it"),
            wide("b"),
            wide("c"),
        )
    }
}

#[test]
fn every_path_equals_pytorch() {
    for device in autodiff_devices() {
        for name in fixtures::names("ssd_") {
            for (path, run) in PATHS {
                let fixture = Fixture::load(&name);
                let name = format!("{name}, {path}");
                let given = arguments(&fixture, &device);
                let (y, state) = run(given.clone());
                let same = |key: &str, got: Tensor<3>, tolerance| {
                    let want = fixture.floats(key);
                    assert_close(&format!("{name}: {key}"), &values(got), want, tolerance);
                };
                same("y", y.clone().inner(), SSD_F32);
                let last = state.clone().inner();
                assert_fixture(&name, &fixture, "final_state", last, SSD_F32);

                let mut loss = (y * columns(fixture.floats("grad_y"), &device)).sum();
                if let Some(grad) = fixture.find_floats("grad_final_state") {
                    loss = loss + (state * float(grad, &device)).sum();
                }
                let gradients = loss.backward();
                for (key, leaf) in [("x", &given.x), ("dt", &given.dt)]
                    .into_iter()
                    .chain([("b", &given.b), ("c", &given.c)])
                {
                    let gradient = leaf.grad(&gradients).expect(key);
                    same(&format!("grad.{key}"), gradient, SSD_F32_GRADIENT);
                }
                let small = |key: &str, gradient: Vec<f32>| {
                    let want = fixture.floats(&format!("grad.{key}"));
                    assert_close(
                        &format!("{name}: grad.{key}"),
                        &gradient,
                        want,
                        SSD_F32_GRADIENT,
                    );
                };
                small("a", values(given.a.grad(&gradients).expect("a")));
                if let Some(bias) = &given.dt_bias {
                    small("dt_bias", values(bias.grad(&gradients).expect("dt_bias")));
                }
                match &given.d {
                    Some(Skip::PerHead(d)) => small("d", values(d.grad(&gradients).expect("d"))),
                    Some(Skip::PerChannel(d)) => small("d", values(d.grad(&gradients).expect("d"))),
                    None => {}
                }
                if let Some(state) = &given.initial_state {
                    let gradient = state.grad(&gradients).expect("initial_state");
                    small("initial_state", values(gradient));
                }
            }
        }
    }
}

/// Two sequences of four heads of three channels with five states, without options.
fn plain(seq_len: usize, device: &Device) -> Ssd {
    let tensor = |seed, columns| numbers(seed, [2, seq_len, columns], device);
    Ssd::new(
        tensor(1, 12),
        tensor(2, 4),
        numbers::<1>(3, [4], device) - 1.5,
        tensor(4, 5),
        tensor(5, 5),
    )
}

#[test]
fn chunks_of_any_length_give_the_same() {
    let device = device();
    let (want, want_state) = reference::ssd_sequential(plain(37, &device));
    for chunk_size in [1, 16, 36, 37, 64] {
        for run in [reference::ssd, ssd] {
            let (y, state) = run(Ssd {
                chunk_size,
                ..plain(37, &device)
            });
            let name = format!("chunks of {chunk_size}");
            assert_same(&name, y, want.clone(), SSD_F32);
            assert_same(&name, state, want_state.clone(), SSD_F32);
        }
    }
}

#[test]
fn the_recurrence_is_masked_attention() {
    let device = device();
    let given = plain(21, &device);
    let [batch, seq_len, nheads] = given.dt.dims();
    let dt = given.dt.clone().exp().add_scalar(1.0).log().swap_dims(1, 2); // [batch, nheads, seq_len]
    let sums = (dt.clone() * given.a.clone().reshape([1, nheads, 1])).cumsum(2);
    let sums = sums.reshape([batch, nheads, seq_len, 1]);
    // Decays from each position to each later one; the rest is masked.
    let decay = (sums.clone() - sums.swap_dims(2, 3)).exp().tril(0);
    let scores = given.c.clone().matmul(given.b.clone().swap_dims(1, 2)); // [batch, seq_len, seq_len]
    let attention = decay * scores.unsqueeze_dim::<4>(1) * dt.reshape([batch, nheads, 1, seq_len]);
    let values = given
        .x
        .clone()
        .reshape([batch, seq_len, nheads, 3])
        .swap_dims(1, 2);
    let want = attention
        .matmul(values)
        .swap_dims(1, 2)
        .reshape([batch, seq_len, nheads * 3]);
    let (y, _) = ssd(Ssd {
        chunk_size: 8,
        ..given
    });
    assert_same("attention", y, want, SSD_F32);
}

#[test]
fn tied_parameters_make_it_the_scan_of_mamba_1() {
    let device = device();
    let given = plain(40, &device);
    let [batch, seq_len, nheads] = given.dt.dims();
    // One time step and one decay for all channels and states of a head.
    let delta = given.dt.clone().reshape([batch, seq_len, nheads, 1]);
    let delta = delta.repeat_dim(3, 3).reshape([batch, seq_len, nheads * 3]);
    let a = given.a.clone().reshape([nheads, 1, 1]);
    let a = a.repeat_dim(1, 3).repeat_dim(2, 5).reshape([nheads * 3, 5]);
    let (want, want_state) = selective_scan(SelectiveScan::new(
        given.x.clone(),
        delta,
        a,
        given.b.clone(),
        given.c.clone(),
    ));
    let (y, state) = ssd(Ssd {
        chunk_size: 16,
        ..given
    });
    assert_same("y", y, want, SSD_F32);
    assert_same(
        "state",
        state.reshape([batch, nheads * 3, 5]),
        want_state,
        SSD_F32,
    );
}

/// Batch, length, heads, channels a head, groups, states: lengths around chunks, sizes that fill no vector or tile.
const SIZES: [[usize; 6]; 6] = [
    [2, 1, 3, 5, 1, 7],
    [1, 17, 4, 16, 4, 16],
    [2, 33, 2, 3, 1, 1],
    [1, 130, 6, 8, 3, 24],
    [1, 65, 2, 64, 2, 40],
    [1, 257, 2, 20, 1, 100],
];

#[test]
fn the_recurrence_equals_the_oracle_at_awkward_sizes() {
    let device = device().autodiff();
    for [batch, seq_len, nheads, headdim, ngroups, d_state] in SIZES {
        for full in [false, true] {
            let leaf =
                |seed, columns| numbers(seed, [batch, seq_len, columns], &device).require_grad();
            let leaf1 = |seed| numbers::<1>(seed, [nheads], &device).require_grad();
            let state_dims = [batch, nheads, headdim, d_state];
            let (x, dt) = (leaf(1, nheads * headdim), leaf(2, nheads));
            let (b, c) = (leaf(3, ngroups * d_state), leaf(4, ngroups * d_state));
            let a = (numbers::<1>(5, [nheads], &device) - 1.5)
                .detach()
                .require_grad();
            let (d, bias) = (leaf1(6), leaf1(7));
            let initial = numbers::<4>(8, state_dims, &device).require_grad();
            let ids = runs(batch, seq_len);
            let grad_y = numbers(9, [batch, seq_len, nheads * headdim], &device);
            let grad_state = numbers::<4>(10, state_dims, &device);

            let (y, state) = ssd(Ssd {
                d: full.then(|| Skip::PerHead(d.clone())),
                dt_bias: full.then(|| bias.clone()),
                initial_state: full.then(|| initial.clone()),
                seq_idx: full.then(|| sequence_tensor(&ids, [batch, seq_len], &device)),
                ngroups,
                chunk_size: 64,
                strategy: Strategy::Fused,
                ..Ssd::new(x.clone(), dt.clone(), a.clone(), b.clone(), c.clone())
            });
            let loss =
                (y.clone() * grad_y.clone()).sum() + (state.clone() * grad_state.clone()).sum();
            let gradients = loss.backward();

            let (xd, dtd, ad) = (doubles(&x), doubles(&dt), doubles(&a));
            let (bd, cd, dd) = (doubles(&b), doubles(&c), doubles(&d));
            let (biasd, initiald) = (doubles(&bias), doubles(&initial));
            let inputs = oracle::SsdInputs {
                batch,
                seq_len,
                nheads,
                headdim,
                ngroups,
                d_state,
                x: &xd,
                dt: &dtd,
                a: &ad,
                b: &bd,
                c: &cd,
                d: full.then_some(&dd[..]),
                dt_bias: full.then_some(&biasd[..]),
                initial_state: full.then_some(&initiald[..]),
                seq_idx: full.then_some(&ids[..]),
                dt_softplus: true,
                dt_limit: (0.0, f64::INFINITY),
            };
            let want = oracle::ssd(&inputs);
            let (grad_y, grad_state) = (doubles(&grad_y), doubles(&grad_state));
            let grads = oracle::ssd_backward(&inputs, &grad_y, Some(&grad_state));
            let sizes = [batch, seq_len, nheads, headdim, ngroups, d_state];
            let name = |part: &str| format!("{sizes:?}, full {full}: {part}");
            check(&name("y"), y.inner(), &want.y, SSD_F32);
            check(&name("state"), state.inner(), &want.final_state, SSD_F32);
            for (part, leaf, want) in [
                ("x", &x, &grads.x),
                ("dt", &dt, &grads.dt),
                ("b", &b, &grads.b),
                ("c", &c, &grads.c),
            ] {
                let got = leaf.grad(&gradients).unwrap();
                check(&name(part), got, want, SSD_F32_GRADIENT);
            }
            let optional = [("a", &a, Some(&grads.a)), ("d", &d, grads.d.as_ref())];
            let bias = ("bias", &bias, grads.dt_bias.as_ref());
            for (part, leaf, want) in optional.into_iter().chain([bias]) {
                if let Some(want) = want {
                    let got = leaf.grad(&gradients).unwrap();
                    check(&name(part), got, want, SSD_F32_GRADIENT);
                }
            }
            if let Some(want) = &grads.initial_state {
                let got = initial.grad(&gradients).unwrap();
                check(&name("initial state"), got, want, SSD_F32_GRADIENT);
            }
        }
    }
}

fn check_norm(group_size: usize, norm_before_gate: bool) {
    let device = device().autodiff();
    let leaf = |seed| numbers(seed, [2, 7, 24], &device).require_grad();
    let (x, z) = (leaf(1), leaf(2) * 3.0);
    let z = z.detach().require_grad();
    let gamma = numbers::<1>(3, [24], &device).require_grad();
    let weights = numbers(4, [2, 7, 24], &device);
    let norm = GatedRmsNorm {
        group_size,
        norm_before_gate,
        ..GatedRmsNorm::new(x.clone(), z.clone(), gamma.clone())
    };
    let name = format!("groups of {group_size}, norm before gate {norm_before_gate}");

    let got = gated_rms_norm(norm.clone());
    let want = {
        let gate = silu(z.clone());
        let input = if norm_before_gate {
            x.clone()
        } else {
            x.clone() * gate.clone()
        };
        let groups = input.reshape([2, 7, 24 / group_size, group_size]);
        let rms = (groups.clone().square().mean_dim(3) + 1e-5).sqrt();
        let y = (groups / rms).reshape([2, 7, 24]) * gamma.clone().unsqueeze();
        if norm_before_gate { y * gate } else { y }
    };
    assert_same(&name, got.clone().inner(), want.clone().inner(), SSD_F32);
    let reference = gated_rms_norm(GatedRmsNorm {
        strategy: Strategy::Reference,
        ..norm
    });
    assert_same(&name, reference.inner(), want.clone().inner(), SSD_F32);

    let got = (got * weights.clone()).sum().backward();
    let want = (want * weights).sum().backward();
    for leaf in [&x, &z] {
        let (got, want) = (leaf.grad(&got).unwrap(), leaf.grad(&want).unwrap());
        assert_same(&name, got, want, SSD_F32_GRADIENT);
    }
    let (got, want) = (gamma.grad(&got).unwrap(), gamma.grad(&want).unwrap());
    assert_same(&name, got, want, SSD_F32_GRADIENT);
}

#[test]
fn the_gated_norm_is_gate_and_norm() {
    for group_size in [24, 8, 1] {
        check_norm(group_size, false);
        check_norm(group_size, true);
    }
}

#[test]
#[should_panic(expected = "ngroups = 3 must divide the 4 heads")]
fn groups_that_do_not_divide_the_heads_are_refused() {
    let device = device();
    ssd(Ssd {
        ngroups: 3,
        ..plain(4, &device)
    });
}
