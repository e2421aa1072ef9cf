//! Matrix products on the runtime built in against sums in f64.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod support;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use mamba_kernels::KernelError;
use mamba_kernels::matmul::{Elements, matmul, matmul_onto};
use support::{Uploader, assert_close, binding, client, encode, has_type, round, uniform};

/// A factor as it lies in memory: as it is read, or its transpose.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Plain,
    Transposed,
}
use Stored::{Plain, Transposed};

/// Element types of the factors and of the result.
type Kinds = [FloatKind; 2];

const SINGLE: Kinds = [FloatKind::F32; 2];

fn elements([factors, out]: Kinds) -> Elements {
    Elements {
        factors: ElemType::Float(factors),
        out: ElemType::Float(out),
    }
}

/// Entries between -1 and 1 that `kind` can hold, `[rows, columns]`.
fn entries(seed: u64, [rows, columns]: [usize; 2], kind: FloatKind) -> Vec<f32> {
    round(uniform(seed, rows * columns, -1.0, 1.0), kind)
}

fn upload(
    client: &Client,
    values: &[f32],
    [rows, columns]: [usize; 2],
    stored: Stored,
    kind: FloatKind,
) -> TensorBinding {
    let turned: Vec<f32> = match stored {
        Plain => values.to_vec(),
        Transposed => (0..rows * columns)
            .map(|i| values[i % rows * columns + i / rows])
            .collect(),
    };
    let handle = client.create_from_slice(&encode(&turned, kind));
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

fn product(
    client: &Client,
    [rows, inner, columns]: [usize; 3],
    stored: [Stored; 2],
    kinds: Kinds,
) -> Vec<f64> {
    let [factors, kind] = kinds;
    let lhs = entries(1, [rows, inner], factors);
    let rhs = entries(2, [inner, columns], factors);
    let uploader = Uploader::new(client, kind);
    let out = uploader.poisoned(&[rows, columns], kind);
    let lhs = upload(client, &lhs, [rows, inner], stored[0], factors);
    let rhs = upload(client, &rhs, [inner, columns], stored[1], factors);
    matmul(client, lhs, rhs, out.binding(), elements(kinds)).expect("the product launches");
    out.read(client)
}

fn check(sizes: [usize; 3], stored: [Stored; 2], kinds: Kinds) {
    let [rows, inner, columns] = sizes;
    let [factors, out] = kinds;
    let lhs = entries(1, [rows, inner], factors);
    let rhs = entries(2, [inner, columns], factors);
    let want = exact(&lhs, &rhs, sizes);
    let got = product(&client(), sizes, stored, kinds);
    // TF32 would be off by 1e-4 and more.
    let (relative, absolute) = match out {
        FloatKind::F32 => (0.0, 3e-6),
        FloatKind::F16 => (5e-4, 3e-6),
        _ => (4e-3, 3e-6),
    };
    assert_close(
        &(sizes, stored, kinds),
        &[("out", got)],
        &[("out", want)],
        relative,
        absolute,
    );
}

// Every case is another kernel, which software Vulkan compiles for half a minute and more.

#[test]
fn products_of_awkward_sizes() {
    for sizes in [[1, 300, 70], [65, 7, 129]] {
        check(sizes, [Plain, Plain], SINGLE);
    }
}

#[test]
fn a_transpose_is_read_in_place() {
    check([70, 48, 36], [Plain, Transposed], SINGLE);
}

#[test]
fn long_sums_are_cut() {
    check([16, 4096, 24], [Plain, Plain], SINGLE);
}

#[test]
fn many_tiles() {
    check([1030, 16, 4100], [Plain, Plain], SINGLE);
}

#[test]
fn nothing_to_add_is_zero() {
    assert_eq!(
        product(&client(), [3, 0, 4], [Plain, Plain], SINGLE),
        [0.0; 12]
    );
    assert!(product(&client(), [0, 5, 4], [Plain, Plain], SINGLE).is_empty());
}

#[test]
fn a_cut_transpose_is_right_and_two_runs_agree_to_the_bit() {
    let (sizes, stored) = ([24, 2048, 16], [Transposed, Plain]);
    check(sizes, stored, SINGLE);
    let client = client();
    assert_eq!(
        product(&client, sizes, stored, SINGLE),
        product(&client, sizes, stored, SINGLE)
    );
}

/// The three products of a linear layer, in and out of step with what the copy engine and the tiles
/// like; some have their inner axis cut.
#[test]
fn half_precisions_sum_in_single() {
    let client = client();
    for kind in [FloatKind::BF16, FloatKind::F16] {
        if !has_type(&client, ElemType::Float(kind)) {
            println!("not tested: the device has no {kind:?}");
            continue;
        }
        for sizes in [[264, 96, 200], [33, 51, 70], [1, 40, 24]] {
            check(sizes, [Plain, Plain], [kind, kind]);
        }
        check([264, 96, 200], [Plain, Transposed], [kind, kind]);
        check([40, 1024, 72], [Transposed, Plain], [kind, FloatKind::F32]);
        check([40, 1000, 72], [Transposed, Plain], [kind, kind]);
        check([33, 51, 70], [Transposed, Plain], [kind, FloatKind::F32]);
        check([17, 130, 39], [Plain, Transposed], [kind, FloatKind::F32]);
    }
}

/// Tiles and stages that end inside the matrices, in all layouts, whole and cut.
#[test]
fn half_precisions_of_many_tiles() {
    let client = client();
    if client.name() != "cuda" {
        println!("not tested: minutes of compiling, for routines that other sizes test");
        return;
    }
    for kind in [FloatKind::BF16, FloatKind::F16] {
        if !has_type(&client, ElemType::Float(kind)) {
            println!("not tested: the device has no {kind:?}");
            continue;
        }
        for stored in [
            [Plain, Plain],
            [Plain, Transposed],
            [Transposed, Plain],
            [Transposed, Transposed],
        ] {
            check([520, 1096, 392], stored, [kind, kind]);
            check([1160, 136, 2056], stored, [kind, FloatKind::F32]);
            check([1, 200, 72], stored, [kind, kind]);
        }
    }
}

/// A sum in the same launch, in place, where the device has one.
#[test]
fn half_precisions_onto_what_is_there() {
    let client = client();
    let sizes = [200, 136, 4104];
    let [rows, inner, columns] = sizes;
    for kind in [FloatKind::BF16, FloatKind::F16] {
        if !has_type(&client, ElemType::Float(kind)) {
            println!("not tested: the device has no {kind:?}");
            continue;
        }
        let lhs = entries(1, [rows, inner], kind);
        let rhs = entries(2, [inner, columns], kind);
        let before = uniform(3, rows * columns, -9.0, 9.0);
        let handle = client.create_from_slice(f32::as_bytes(&before));
        let out = binding(&handle, &[rows, columns]);
        let result = matmul_onto(
            &client,
            upload(&client, &lhs, [rows, inner], Transposed, kind),
            upload(&client, &rhs, [inner, columns], Plain, kind),
            out.clone(),
            out,
            ElemType::Float(kind),
        );
        if let Err(error) = result {
            assert!(matches!(error, KernelError::NotCovered(_)), "{error}");
            println!("not tested: {error}");
            continue;
        }
        let want = exact(&lhs, &rhs, sizes);
        let want = want
            .iter()
            .zip(&before)
            .map(|(sum, &it)| sum + f64::from(it));
        let bytes = client.read_one(handle).expect("the product ran");
        let got = f32::from_bytes(&bytes)
            .iter()
            .map(|&it| it.into())
            .collect();
        let name = "out";
        assert_close(&kind, &[(name, got)], &[(name, want.collect())], 0.0, 3e-6);
    }
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let client = client();
    let tensor = |sizes: [usize; 2]| {
        upload(
            &client,
            &entries(1, sizes, FloatKind::F32),
            sizes,
            Plain,
            FloatKind::F32,
        )
    };
    let error = matmul(
        &client,
        tensor([2, 3]),
        tensor([4, 5]),
        tensor([2, 5]),
        elements(SINGLE),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "rhs must have shape [3, 5], got [4, 5]"
    );
    let mut sliced = tensor([4, 6]);
    sliced.shape = [4, 3].into_iter().collect();
    let error = matmul(
        &client,
        sliced,
        tensor([3, 5]),
        tensor([4, 5]),
        elements(SINGLE),
    );
    assert!(
        matches!(error, Err(KernelError::Strides { .. })),
        "{error:?}"
    );
}
