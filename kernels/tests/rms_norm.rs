//! The normalisation's kernels against the f64 oracle, on the default device of the runtime built in.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod support;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use mamba_kernels::KernelError;
use mamba_kernels::oracle::{self, RmsNormInputs};
use mamba_kernels::rms_norm::{
    NormGradients, NormInputs, Update, add_rms_norm, rms_norm, rms_norm_backward,
};
use support::{Uploader, assert_close, client, has_type, round, uniform};

const EPSILON: f32 = 1e-3;

/// `y` and the gradients of `x` and of `gamma`.
fn kernels(client: &Client, [rows, columns]: [usize; 2], kind: FloatKind) -> [Vec<f64>; 3] {
    let [x, gamma, grad_y] = numbers([rows, columns], kind);
    let uploader = Uploader::new(client, kind);
    let inputs = NormInputs {
        x: uploader.whole(&x, &[rows, columns], FloatKind::F32),
        gamma: uploader.whole(&gamma, &[columns], FloatKind::F32),
        epsilon: EPSILON,
        dtype: ElemType::Float(kind),
    };
    let y = uploader.poisoned(&[rows, columns], kind);
    let grad_x = uploader.poisoned(&[rows, columns], FloatKind::F32);
    let grad_gamma = uploader.poisoned(&[columns], FloatKind::F32);
    rms_norm(client, inputs.clone(), y.binding()).expect("forward launches");
    rms_norm_backward(
        client,
        inputs,
        uploader.whole(&grad_y, &[rows, columns], kind),
        NormGradients {
            x: grad_x.binding(),
            gamma: grad_gamma.binding(),
        },
    )
    .expect("backward launches");
    [y, grad_x, grad_gamma].map(|it| it.read(client))
}

fn numbers([rows, columns]: [usize; 2], kind: FloatKind) -> [Vec<f32>; 3] {
    [
        uniform(1, rows * columns, -3.0, 3.0),
        uniform(2, columns, 0.5, 1.5),
        round(uniform(3, rows * columns, -1.0, 1.0), kind),
    ]
}

fn check(sizes: [usize; 2], kind: FloatKind) {
    let [x, gamma, grad_y] = numbers(sizes, kind)
        .map(|values| -> Vec<f64> { values.into_iter().map(f64::from).collect() });
    let inputs = RmsNormInputs {
        rows: sizes[0],
        columns: sizes[1],
        x: &x,
        gamma: &gamma,
        epsilon: EPSILON.into(),
    };
    let grads = oracle::rms_norm_backward(&inputs, &grad_y);
    let [y, grad_x, grad_gamma] = kernels(&client(), sizes, kind);
    let relative = match kind {
        FloatKind::F32 => 0.0,
        FloatKind::F16 => 5e-4,
        _ => 4e-3,
    };
    let case = (sizes, kind);
    let y_want = [("y", oracle::rms_norm(&inputs))];
    assert_close(&case, &[("y", y)], &y_want, relative, 2e-6);
    assert_close(
        &case,
        &[("grad_x", grad_x), ("grad_gamma", grad_gamma)],
        &[("grad_x", grads.x), ("grad_gamma", grads.gamma)],
        0.0,
        2e-6,
    );
}

#[test]
fn rows_of_any_length() {
    for sizes in [[5, 1], [3, 100], [2, 128], [4, 768]] {
        check(sizes, FloatKind::F32);
    }
}

#[test]
fn an_update_is_added_before() {
    let client = client();
    let [rows, columns] = [5, 200];
    let uploader = Uploader::new(&client, FloatKind::F32);
    let [x, gamma, update] = numbers([rows, columns], FloatKind::F32);
    let up = |values: &[f32], shape: &[usize]| uploader.whole(values, shape, FloatKind::F32);
    let inputs = |x: &[f32]| NormInputs {
        x: up(x, &[rows, columns]),
        gamma: up(&gamma, &[columns]),
        epsilon: EPSILON,
        dtype: ElemType::Float(FloatKind::F32),
    };
    let empty = || uploader.poisoned(&[rows, columns], FloatKind::F32);
    let [y, sum, want] = [empty(), empty(), empty()];
    let added = Update {
        update: up(&update, &[rows, columns]),
        sum: sum.binding(),
    };
    add_rms_norm(&client, inputs(&x), Some(added), y.binding()).expect("it launches");
    let total: Vec<f32> = x
        .iter()
        .zip(&update)
        .map(|(x, update)| x + update)
        .collect();
    rms_norm(&client, inputs(&total), want.binding()).expect("it launches");
    assert_eq!(y.read(&client), want.read(&client));
    let total: Vec<f64> = total.into_iter().map(f64::from).collect();
    assert_eq!(sum.read(&client), total);
}

/// More rows than cubes of backward on any device of today.
#[test]
fn many_rows() {
    check([3001, 33], FloatKind::F32);
}

#[test]
fn outputs_in_half_precision() {
    for kind in [FloatKind::F16, FloatKind::BF16] {
        match has_type(&client(), ElemType::Float(kind)) {
            true => check([7, 200], kind),
            false => println!("not tested: the device has no {kind:?}"),
        }
    }
}

#[test]
fn two_runs_agree_to_the_bit_and_no_row_is_no_gradient() {
    let client = client();
    let run = |sizes| kernels(&client, sizes, FloatKind::F32);
    assert_eq!(run([300, 33]), run([300, 33]));
    let [y, grad_x, grad_gamma] = run([0, 33]);
    assert!(y.is_empty() && grad_x.is_empty());
    assert_eq!(grad_gamma, [0.0; 33]);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let client = client();
    let uploader = Uploader::new(&client, FloatKind::F32);
    let inputs = |gamma: usize, columns: usize| NormInputs {
        x: uploader.whole(&vec![1.0; 2 * columns], &[2, columns], FloatKind::F32),
        gamma: uploader.whole(&vec![1.0; gamma], &[gamma], FloatKind::F32),
        epsilon: EPSILON,
        dtype: ElemType::Float(FloatKind::F32),
    };
    let y = |columns| uploader.poisoned(&[2, columns], FloatKind::F32).binding();
    let error = rms_norm(&client, inputs(5, 6), y(6)).unwrap_err();
    assert_eq!(error.to_string(), "gamma must have shape [6], got [5]");
    let error = rms_norm(&client, inputs(8193, 8193), y(8193)).unwrap_err();
    assert!(
        matches!(error, KernelError::Size { got: 8193, .. }),
        "{error:?}"
    );
}
