//! The operations at awkward sizes against the f64 oracle, and against finite differences.
#![recursion_limit = "256"]

use burn::tensor::{Tensor, TensorData};
use mamba_core::ops::{
    CausalConv1d, LinearCrossEntropy, SelectiveScan, Strategy, causal_conv1d, linear_cross_entropy,
    selective_scan,
};
use mamba_kernels::oracle;
use mamba_tests::devices::device;
use mamba_tests::tensors::{check, doubles, numbers, runs, sequence_tensor, values};
use mamba_tests::tolerances;

/// Lengths around a checkpoint of the scan; states and channels that fill no vector.
const SCANS: [[usize; 4]; 6] = [
    [2, 1, 5, 3],
    [1, 17, 16, 16],
    [2, 32, 3, 1],
    [1, 33, 40, 24],
    [3, 130, 12, 16],
    [1, 65, 17, 64],
];

#[test]
fn the_scan_equals_the_oracle_at_awkward_sizes() {
    let device = device().autodiff();
    for [batch, seq_len, d_inner, d_state] in SCANS {
        for full in [false, true] {
            let leaf3 = |seed, dims: [usize; 3]| numbers(seed, dims, &device).require_grad();
            let wide = [batch, seq_len, d_inner];
            let narrow = [batch, seq_len, d_state];
            let state_dims = [batch, d_inner, d_state];
            let (u, delta) = (leaf3(1, wide), leaf3(2, wide));
            let (b, c) = (leaf3(3, narrow), leaf3(4, narrow));
            let a = (numbers(5, [d_inner, d_state], &device) - 1.5)
                .detach()
                .require_grad();
            let leaf1 = |seed| numbers(seed, [d_inner], &device).require_grad();
            let (d, bias) = (leaf1(6), leaf1(7));
            let (z, initial) = (leaf3(8, wide), leaf3(9, state_dims));
            let ids = runs(batch, seq_len);
            let (grad_y, grad_state) =
                (numbers(10, wide, &device), numbers(11, state_dims, &device));

            let (y, state) = selective_scan(SelectiveScan {
                d: full.then(|| d.clone()),
                z: full.then(|| z.clone()),
                delta_bias: full.then(|| bias.clone()),
                initial_state: full.then(|| initial.clone()),
                seq_idx: full.then(|| sequence_tensor(&ids, [batch, seq_len], &device)),
                strategy: Strategy::Fused,
                ..SelectiveScan::new(u.clone(), delta.clone(), a.clone(), b.clone(), c.clone())
            });
            let loss =
                (y.clone() * grad_y.clone()).sum() + (state.clone() * grad_state.clone()).sum();
            let gradients = loss.backward();

            let (ud, deltad, ad) = (doubles(&u), doubles(&delta), doubles(&a));
            let (bd, cd, dd, zd) = (doubles(&b), doubles(&c), doubles(&d), doubles(&z));
            let (biasd, initiald) = (doubles(&bias), doubles(&initial));
            let inputs = oracle::SelectiveScanInputs {
                batch,
                seq_len,
                d_inner,
                d_state,
                u: &ud,
                delta: &deltad,
                a: &ad,
                b: &bd,
                c: &cd,
                d: full.then_some(&dd[..]),
                z: full.then_some(&zd[..]),
                delta_bias: full.then_some(&biasd[..]),
                initial_state: full.then_some(&initiald[..]),
                seq_idx: full.then_some(&ids[..]),
                delta_softplus: true,
            };
            let want = oracle::selective_scan(&inputs);
            let grads = oracle::selective_scan_backward(
                &inputs,
                &doubles(&grad_y),
                Some(&doubles(&grad_state)),
            );
            let name = format!("scan {batch} x {seq_len} x {d_inner} x {d_state}, full {full}");
            let name = |part: &str| format!("{name}: {part}");
            let tolerance = tolerances::SELECTIVE_SCAN_F32;
            check(&name("y"), y.inner(), &want.y, tolerance);
            check(&name("state"), state.inner(), &want.final_state, tolerance);
            let tolerance = tolerances::SELECTIVE_SCAN_F32_GRADIENT;
            check(&name("u"), u.grad(&gradients).unwrap(), &grads.u, tolerance);
            check(
                &name("delta"),
                delta.grad(&gradients).unwrap(),
                &grads.delta,
                tolerance,
            );
            check(&name("a"), a.grad(&gradients).unwrap(), &grads.a, tolerance);
            check(&name("b"), b.grad(&gradients).unwrap(), &grads.b, tolerance);
            check(&name("c"), c.grad(&gradients).unwrap(), &grads.c, tolerance);
            assert_eq!(z.grad(&gradients).is_some(), full);
            if full {
                let optional = |grad: Option<Vec<f64>>| grad.expect("the input was given");
                check(
                    &name("d"),
                    d.grad(&gradients).unwrap(),
                    &optional(grads.d),
                    tolerance,
                );
                check(
                    &name("z"),
                    z.grad(&gradients).unwrap(),
                    &optional(grads.z),
                    tolerance,
                );
                let bias = bias.grad(&gradients).unwrap();
                check(&name("bias"), bias, &optional(grads.delta_bias), tolerance);
                let initial = initial.grad(&gradients).unwrap();
                check(
                    &name("initial"),
                    initial,
                    &optional(grads.initial_state),
                    tolerance,
                );
            }
        }
    }
}

#[test]
fn the_convolution_equals_the_oracle_at_awkward_sizes() {
    let device = device().autodiff();
    for [batch, seq_len, channels, width] in [
        [2, 1, 5, 4],
        [1, 2, 16, 4],
        [2, 17, 40, 3],
        [1, 130, 12, 4],
        [2, 9, 3, 6],
        [1, 33, 17, 2],
    ] {
        for full in [false, true] {
            let dims = [batch, seq_len, channels];
            let window_dims = [batch, width - 1, channels];
            let x = numbers(1, dims, &device).require_grad();
            let weight = numbers(2, [channels, width], &device).require_grad();
            let bias = numbers(3, [channels], &device).require_grad();
            let window = numbers(4, window_dims, &device).require_grad();
            let ids = runs(batch, seq_len);
            let (grad_y, grad_window) =
                (numbers(5, dims, &device), numbers(6, window_dims, &device));
            let (y, last) = causal_conv1d(CausalConv1d {
                bias: full.then(|| bias.clone()),
                initial_state: full.then(|| window.clone()),
                seq_idx: full.then(|| sequence_tensor(&ids, [batch, seq_len], &device)),
                silu: full,
                strategy: Strategy::Fused,
                ..CausalConv1d::new(x.clone(), weight.clone())
            });
            let loss =
                (y.clone() * grad_y.clone()).sum() + (last.clone() * grad_window.clone()).sum();
            let gradients = loss.backward();

            let (xd, weightd) = (doubles(&x), doubles(&weight));
            let (biasd, pastd) = (doubles(&bias), doubles(&window));
            let inputs = oracle::CausalConv1dInputs {
                batch,
                seq_len,
                channels,
                width,
                x: &xd,
                weight: &weightd,
                bias: full.then_some(&biasd[..]),
                initial_state: full.then_some(&pastd[..]),
                seq_idx: full.then_some(&ids[..]),
                activation: full,
            };
            let want = oracle::causal_conv1d(&inputs);
            let grads = oracle::causal_conv1d_backward(
                &inputs,
                &doubles(&grad_y),
                Some(&doubles(&grad_window)),
            );
            let name = format!("conv {batch} x {seq_len} x {channels}, width {width}, full {full}");
            let name = |part: &str| format!("{name}: {part}");
            let tolerance = tolerances::CAUSAL_CONV1D_F32;
            check(&name("y"), y.inner(), &want.y, tolerance);
            check(&name("window"), last.inner(), &want.final_state, tolerance);
            let tolerance = tolerances::CAUSAL_CONV1D_F32_GRADIENT;
            check(&name("x"), x.grad(&gradients).unwrap(), &grads.x, tolerance);
            check(
                &name("weight"),
                weight.grad(&gradients).unwrap(),
                &grads.weight,
                tolerance,
            );
            if full {
                let optional = |grad: Option<Vec<f64>>| grad.expect("the input was given");
                let bias = bias.grad(&gradients).unwrap();
                check(&name("bias"), bias, &optional(grads.bias), tolerance);
                let window = window.grad(&gradients).unwrap();
                check(
                    &name("initial"),
                    window,
                    &optional(grads.initial_state),
                    tolerance,
                );
            }
        }
    }
}

#[test]
fn the_loss_equals_the_oracle_across_chunks() {
    let device = device().autodiff();
    // Past the largest chunk of any implementation.
    let (tokens, d_model, rows, vocab_size) = (1030, 12, 104, 101);
    let hidden = numbers(1, [tokens, d_model], &device).require_grad();
    let weight = (numbers(2, [rows, d_model], &device) * 3.0)
        .detach()
        .require_grad();
    let targets: Vec<i64> = (0..tokens as i64)
        .map(|t| if t % 7 == 0 { -1 } else { t % 101 })
        .collect();
    let data: Vec<i32> = targets.iter().map(|target| *target as i32).collect();
    let loss = linear_cross_entropy(LinearCrossEntropy {
        hidden: hidden.clone(),
        weight: weight.clone(),
        targets: Tensor::from_data(data.as_slice(), &device),
        vocab_size,
        strategy: Strategy::Fused,
    });
    let (hiddend, weightd) = (doubles(&hidden), doubles(&weight));
    let inputs = oracle::LinearCrossEntropyInputs {
        tokens,
        d_model,
        rows,
        vocab_size,
        hidden: &hiddend,
        weight: &weightd,
        targets: &targets,
        ignore_index: Some(-1),
    };
    let want = [oracle::linear_cross_entropy(&inputs)];
    check(
        "loss",
        loss.clone().inner(),
        &want,
        tolerances::LINEAR_CROSS_ENTROPY_F32,
    );
    let gradients = (loss * 2.0).backward();
    let grads = oracle::linear_cross_entropy_backward(&inputs, 2.0);
    let tolerance = tolerances::LINEAR_CROSS_ENTROPY_F32_GRADIENT;
    check(
        "hidden",
        hidden.grad(&gradients).unwrap(),
        &grads.hidden,
        tolerance,
    );
    check(
        "weight",
        weight.grad(&gradients).unwrap(),
        &grads.weight,
        tolerance,
    );
}

#[test]
fn all_targets_left_out_give_no_loss() {
    let device = device().autodiff();
    let hidden = numbers(1, [4, 6], &device).require_grad();
    let loss = linear_cross_entropy(LinearCrossEntropy {
        hidden: hidden.clone(),
        weight: numbers(2, [8, 6], &device),
        targets: Tensor::from_data([-1, -1, -100, -1], &device),
        vocab_size: 8,
        strategy: Strategy::Fused,
    });
    assert_eq!(values(loss.clone().inner()), [0.0]);
    let gradients = loss.backward();
    assert!(
        values(hidden.grad(&gradients).unwrap())
            .iter()
            .all(|value| *value == 0.0)
    );
}

/// A whole path of ours, from a leaf to a scalar, against the slope between two nearby points.
#[test]
fn gradients_are_the_slopes_of_the_values() {
    let device = device().autodiff();
    let dims = [1, 37, 6];
    let loss = |delta: Tensor<3>| {
        let (x, window) = causal_conv1d(CausalConv1d {
            silu: true,
            ..CausalConv1d::new(delta.clone(), numbers(1, [6, 4], &device))
        });
        let (y, state) = selective_scan(SelectiveScan {
            z: Some(delta.clone()),
            initial_state: Some(window.narrow(1, 0, 3).swap_dims(1, 2)),
            ..SelectiveScan::new(
                x.clone(),
                delta,
                numbers(2, [6, 3], &device) - 1.5,
                x.clone().narrow(2, 0, 3),
                x.narrow(2, 3, 3),
            )
        });
        (y * numbers(3, dims, &device)).sum() + state.sum()
    };
    let at = numbers(4, dims, &device);
    let leaf = at.clone().require_grad();
    let gradients = loss(leaf.clone()).backward();
    let gradient = values(leaf.grad(&gradients).unwrap());
    // Wide enough that f32 rounding of the loss stays below the error of the quotient.
    let step = 1e-2;
    for index in [0, 5, 17, 100, 199, 221] {
        let nudged = |by: f32| {
            let mut data = values(at.clone().inner());
            data[index] += by;
            let data = TensorData::new(data, dims);
            f64::from(loss(Tensor::from_data(data, &device)).into_scalar::<f32>())
        };
        let slope = (nudged(step) - nudged(-step)) / f64::from(2.0 * step);
        let got = f64::from(gradient[index]);
        assert!(
            (got - slope).abs() < 2e-3 * (1.0 + slope.abs()),
            "{index}: {got} is not {slope}"
        );
    }
}
