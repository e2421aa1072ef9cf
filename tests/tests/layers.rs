//! Linear layers and norms of ours against Burn's own, values and all gradients.
#![recursion_limit = "256"]

use burn::backend::Dispatch;
use burn::tensor::{Device, FloatDType, Tensor, s};
use mamba_core::ops::extension::{MambaOps, OptionalFloat};
use mamba_core::ops::{linear, rms_norm};
use mamba_tests::devices::autodiff_devices;
use mamba_tests::tensors::{assert_same, numbers};
use mamba_tests::tolerances::LAYER_F32;

const EPSILON: f64 = 1e-3;

/// Values of `f`, and the gradients of its leaves under a loss that weighs every output.
fn differentiate<const N: usize>(
    leaves: [Tensor<2>; N],
    f: impl Fn(&[Tensor<2>; N]) -> Tensor<3>,
) -> (Tensor<3>, Vec<Tensor<2>>) {
    let leaves = leaves.map(|leaf| leaf.require_grad());
    let y = f(&leaves);
    let weights = numbers(99, y.dims(), &y.device());
    let gradients = (y.clone() * weights).sum().backward();
    let gradients = leaves.iter().map(|leaf| leaf.grad(&gradients));
    (
        y.inner(),
        gradients
            .map(|gradient| gradient.expect("every leaf takes part"))
            .collect(),
    )
}

fn assert_equal<const N: usize>(
    name: &str,
    leaves: &[Tensor<2>; N],
    ours: impl Fn(&[Tensor<2>; N]) -> Tensor<3>,
    burns: impl Fn(&[Tensor<2>; N]) -> Tensor<3>,
) {
    let (got, got_gradients) = differentiate(leaves.clone(), ours);
    let (want, want_gradients) = differentiate(leaves.clone(), burns);
    assert_same(name, got, want, LAYER_F32);
    for (i, (got, want)) in got_gradients.into_iter().zip(want_gradients).enumerate() {
        assert_same(&format!("{name}: gradient {i}"), got, want, LAYER_F32);
    }
}

/// `[rows, columns]` read as a slice of wider rows, in a batch of one.
fn sliced(x: &Tensor<2>, from: usize, to: usize) -> Tensor<3> {
    x.clone().slice(s![.., from..to]).unsqueeze()
}

#[test]
fn a_linear_layer_equals_burns() {
    for device in autodiff_devices() {
        for [rows, d_input, d_output] in [[1, 5, 3], [70, 33, 130], [2100, 8, 17]] {
            let leaves = [
                numbers(1, [rows, d_input + 4], &device),
                numbers(2, [d_input, d_output], &device),
                numbers(3, [1, d_output], &device),
            ];
            let name = format!("{rows} x {d_input} x {d_output}");
            let x = |x: &Tensor<2>| sliced(x, 3, 3 + d_input);
            assert_equal(
                &name,
                &leaves,
                |[wide, weight, bias]| {
                    let bias = bias.clone().reshape([d_output]);
                    linear(x(wide), weight.clone(), Some(bias))
                },
                |[wide, weight, bias]| {
                    x(wide).matmul(weight.clone().unsqueeze()) + bias.clone().unsqueeze()
                },
            );
            let [wide, weight, _] = leaves;
            assert_equal(
                &format!("{name}, turned weight, no bias"),
                &[wide, weight.transpose()],
                |[wide, weight]| linear(x(wide), weight.clone().transpose(), None),
                |[wide, weight]| x(wide).matmul(weight.clone().transpose().unsqueeze()),
            );
        }
    }
}

/// What a block of `mamba_core` does with the last projection of its mixer, behind the seam.
#[test]
fn a_linear_layer_adds_its_residual() {
    for device in autodiff_devices() {
        for [rows, d_input, d_output] in [[1, 5, 3], [2100, 8, 17]] {
            let leaves = [
                numbers(1, [rows, d_input], &device),
                numbers(2, [d_input, d_output], &device),
                numbers(3, [1, d_output], &device),
                numbers(4, [rows, d_output + 4], &device),
            ];
            assert_equal(
                &format!("{rows} x {d_input} x {d_output}"),
                &leaves,
                |[x, weight, bias, residual]| {
                    let bias = bias.clone().reshape([d_output]).into_dispatch();
                    let residual = sliced(residual, 2, 2 + d_output).into_dispatch();
                    Tensor::from_dispatch(Dispatch::fused_linear(
                        x.clone().unsqueeze::<3>().into_dispatch(),
                        weight.clone().into_dispatch(),
                        OptionalFloat::Present(bias),
                        OptionalFloat::Present(residual),
                        FloatDType::F32,
                    ))
                },
                |[x, weight, bias, residual]| {
                    let y = x.clone().matmul(weight.clone()) + bias.clone();
                    y.unsqueeze::<3>() + sliced(residual, 2, 2 + d_output)
                },
            );
        }
    }
}

fn plain_rms_norm(x: Tensor<3>, gamma: &Tensor<2>) -> Tensor<3> {
    let rms = (x.clone().powi_scalar(2).mean_dim(2) + EPSILON).sqrt();
    x / rms * gamma.clone().unsqueeze()
}

fn check_rms_norm(device: &Device, ours: impl Fn(Tensor<3>, Tensor<1>) -> Tensor<3>) {
    for [rows, d_model] in [[1, 1], [70, 33], [3, 128]] {
        let leaves = [
            numbers(1, [rows, d_model + 4], device),
            numbers(2, [1, d_model], device),
        ];
        let x = |x: &Tensor<2>| sliced(x, 2, 2 + d_model);
        assert_equal(
            &format!("{rows} x {d_model}"),
            &leaves,
            |[wide, gamma]| ours(x(wide), gamma.clone().reshape([d_model])),
            |[wide, gamma]| plain_rms_norm(x(wide), gamma),
        );
    }
}

#[test]
fn a_norm_equals_its_formula() {
    for device in autodiff_devices() {
        check_rms_norm(&device, |x, gamma| rms_norm(x, gamma, EPSILON));
    }
}

/// Backends without a kernel of their own have the trait's body, which `rms_norm` leaves to Flex.
#[test]
fn a_norm_behind_the_seam_equals_its_formula() {
    for device in autodiff_devices() {
        check_rms_norm(&device, |x, gamma| {
            let (x, gamma) = (x.into_dispatch(), gamma.into_dispatch());
            Tensor::from_dispatch(Dispatch::rms_norm(x, gamma, EPSILON, FloatDType::F32))
        });
    }
}
