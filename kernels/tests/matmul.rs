//! Matrix products on the runtime built in against sums in f64.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod support;

use cubecl::client::Client;
use cubecl::ir::FloatKind;
use cubecl::prelude::*;
use mamba_kernels::KernelError;
use mamba_kernels::matmul::matmul;
use support::{Uploader, assert_close, binding, client, encode, uniform};

/// A factor as it lies in memory: as it is read, or its transpose.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Plain,
    Transposed,
}
use Stored::{Plain, Transposed};

/// Entries between -1 and 1, `[rows, columns]`.
fn entries(seed: u64, [rows, columns]: [usize; 2]) -> Vec<f32> {
    uniform(seed, rows * columns, -1.0, 1.0)
}

fn upload(
    client: &Client,
    values: &[f32],
    [rows, columns]: [usize; 2],
    stored: Stored,
) -> TensorBinding {
    let turned: Vec<f32> = match stored {
        Plain => values.to_vec(),
        Transposed => (0..rows * columns)
            .map(|i| values[i % rows * columns + i / rows])
            .collect(),
    };
    let handle = client.create_from_slice(&encode(&turned, FloatKind::F32));
    let mut tensor = binding(&handle, &[rows, columns]);
    if stored == Transposed {
        tensor.strides = [1, rows].into_iter().collect();
    }
    tensor
}

fn exact(lhs: &[f32], rhs: &[f32], [rows, inner, columns]: [usize; 3]) -> Vec<f64> {
    let mut sums = vec![0.0; rows * columns];
    for i in 0..rows {
        for k in 0..inner {
            let factor = f64::from(lhs[i * inner + k]);
            for j in 0..columns {
                sums[i * columns + j] += factor * f64::from(rhs[k * columns + j]);
            }
        }
    }
    sums
}

fn product(client: &Client, [rows, inner, columns]: [usize; 3], stored: [Stored; 2]) -> Vec<f64> {
    let (lhs, rhs) = (entries(1, [rows, inner]), entries(2, [inner, columns]));
    let uploader = Uploader {
        client,
        dtype: FloatKind::F32,
        padding: 0,
    };
    let out = uploader.poisoned(&[rows, columns], FloatKind::F32);
    let lhs = upload(client, &lhs, [rows, inner], stored[0]);
    let rhs = upload(client, &rhs, [inner, columns], stored[1]);
    matmul(client, lhs, rhs, out.binding()).expect("the product launches");
    out.read(client)
}

fn check(sizes: [usize; 3], stored: [Stored; 2]) {
    let [rows, inner, columns] = sizes;
    let (lhs, rhs) = (entries(1, [rows, inner]), entries(2, [inner, columns]));
    let want = exact(&lhs, &rhs, sizes);
    let got = product(&client(), sizes, stored);
    // TF32 would be off by 1e-4 and more.
    assert_close(
        &(sizes, stored),
        &[("out", got)],
        &[("out", want)],
        0.0,
        3e-6,
    );
}

// Every case is another kernel, which software Vulkan compiles for half a minute and more.

#[test]
fn products_of_awkward_sizes() {
    for sizes in [[1, 300, 70], [65, 7, 129]] {
        check(sizes, [Plain, Plain]);
    }
}

#[test]
fn a_transpose_is_read_in_place() {
    check([70, 48, 36], [Plain, Transposed]);
}

#[test]
fn long_sums_are_cut() {
    check([16, 4096, 24], [Plain, Plain]);
}

#[test]
fn many_tiles() {
    check([1030, 16, 4100], [Plain, Plain]);
}

#[test]
fn nothing_to_add_is_zero() {
    assert_eq!(product(&client(), [3, 0, 4], [Plain, Plain]), [0.0; 12]);
    assert!(product(&client(), [0, 5, 4], [Plain, Plain]).is_empty());
}

#[test]
fn a_cut_transpose_is_right_and_two_runs_agree_to_the_bit() {
    let (sizes, stored) = ([24, 2048, 16], [Transposed, Plain]);
    check(sizes, stored);
    let client = client();
    assert_eq!(
        product(&client, sizes, stored),
        product(&client, sizes, stored)
    );
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let client = client();
    let tensor = |sizes: [usize; 2]| upload(&client, &entries(1, sizes), sizes, Plain);
    let error = matmul(&client, tensor([2, 3]), tensor([4, 5]), tensor([2, 5]));
    assert_eq!(
        error.unwrap_err().to_string(),
        "rhs must have shape [3, 5], got [4, 5]"
    );
    let mut sliced = tensor([4, 6]);
    sliced.shape = [4, 3].into_iter().collect();
    let error = matmul(&client, sliced, tensor([3, 5]), tensor([4, 5]));
    assert!(
        matches!(error, Err(KernelError::Strides { .. })),
        "{error:?}"
    );
}
