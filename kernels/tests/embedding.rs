//! The embedding's gradient against sums in f64, on the default device of the runtime built in.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod support;

use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::*;
use mamba_kernels::KernelError;
use mamba_kernels::embedding::{EmbeddingUpstream, MAX_POSITIONS, embedding_backward};
use support::{Uploader, assert_close, binding, client, uniform};

/// The gradient of the weight over `before`, each of whose rows that no token names stays.
fn gradient(tokens: &[i32], rows: usize, columns: usize, before: f32) -> Vec<f64> {
    gradient_apart(tokens, rows, [columns, columns], before)
}

/// The same in rows that lie so many values apart, and what lies between them.
fn gradient_apart(
    tokens: &[i32],
    rows: usize,
    [columns, apart]: [usize; 2],
    before: f32,
) -> Vec<f64> {
    let client = client();
    let uploader = Uploader::new(&client, FloatKind::F32);
    let grad = uniform(1, tokens.len() * columns, -1.0, 1.0);
    let handle = client.create_from_slice(f32::as_bytes(&vec![before; rows * apart]));
    let indices = client.create_from_slice(i32::as_bytes(tokens));
    embedding_backward(
        &client,
        EmbeddingUpstream {
            tokens: binding(&indices, &[tokens.len()]),
            index_dtype: ElemType::Int(IntKind::I32),
            grad: uploader.whole(&grad, &[tokens.len(), columns], FloatKind::F32),
        },
        TensorBinding {
            strides: vec![apart, 1].into(),
            ..binding(&handle, &[rows, columns])
        },
    )
    .expect("the kernel launches");
    let bytes = client.read_one(handle).expect("the kernel ran");
    f32::from_bytes(&bytes).iter().map(|&v| v.into()).collect()
}

fn expected(tokens: &[i32], rows: usize, columns: usize, before: f32) -> Vec<f64> {
    let grad = uniform(1, tokens.len() * columns, -1.0, 1.0);
    let mut sums = vec![f64::from(before); rows * columns];
    for &token in tokens {
        let row = token as usize * columns;
        sums[row..row + columns].fill(0.0);
    }
    for (&token, grad) in tokens.iter().zip(grad.chunks(columns)) {
        let row = token as usize * columns;
        for (sum, &value) in sums[row..row + columns].iter_mut().zip(grad) {
            *sum += f64::from(value);
        }
    }
    sums
}

fn check(tokens: &[i32], rows: usize, columns: usize) {
    assert_close(
        &(tokens.len(), rows, columns),
        &[("grad_weight", gradient(tokens, rows, columns, 0.5))],
        &[("grad_weight", expected(tokens, rows, columns, 0.5))],
        0.0,
        2e-6,
    );
}

/// As CUDA's allocations are, whose rows begin at multiples of 256 bytes.
#[test]
fn rows_may_lie_apart() {
    for [columns, apart] in [[24, 64], [24, 26], [5, 64], [1, 64]] {
        let tokens = words(100, 17);
        let got = gradient_apart(&tokens, 17, [columns, apart], 0.5);
        let want = expected(&tokens, 17, columns, 0.5);
        for (got, want) in got.chunks(apart).zip(want.chunks(columns)) {
            let (got, between) = got.split_at(columns);
            assert_close(
                &[columns, apart],
                &[("grad_weight", got.to_vec())],
                &[("grad_weight", want.to_vec())],
                0.0,
                2e-6,
            );
            assert!(between.iter().all(|&it| it == 0.5), "{between:?}");
        }
    }
}

/// Numbers below `rows` that repeat, the low ones often, as words do.
fn words(len: usize, rows: usize) -> Vec<i32> {
    let drawn = uniform(7, len, 0.0, 1.0);
    drawn
        .into_iter()
        .map(|it| (it * it * it * rows as f32) as i32)
        .collect()
}

#[test]
fn each_row_is_the_sum_of_its_positions() {
    check(&[2], 3, 5);
    check(&[1, 1, 1, 0], 3, 300);
    check(&words(100, 17), 17, 48);
    check(&words(9000, 400), 400, 8);
}

#[test]
fn two_runs_agree_to_the_bit() {
    let tokens = words(1000, 50);
    assert_eq!(
        gradient(&tokens, 50, 32, 0.0),
        gradient(&tokens, 50, 32, 0.0)
    );
}

#[test]
fn more_positions_than_a_cube_keeps_are_refused() {
    let client = client();
    let len = MAX_POSITIONS + 1;
    let empty = client.empty(4 * len);
    let error = embedding_backward(
        &client,
        EmbeddingUpstream {
            tokens: binding(&empty, &[len]),
            index_dtype: ElemType::Int(IntKind::I32),
            grad: binding(&empty, &[len, 1]),
        },
        binding(&empty, &[4, 1]),
    );
    assert!(matches!(error, Err(KernelError::Size { .. })), "{error:?}");
}
