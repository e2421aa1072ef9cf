//! The gated normalisation's kernels against the f64 oracle, on the default device of the runtime built in.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod support;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::TensorBinding;
use mamba_kernels::KernelError;
use mamba_kernels::gated_rms_norm::{
    GatedNormGradients, GatedNormInputs, gated_rms_norm, gated_rms_norm_backward,
};
use mamba_kernels::oracle::{self, GatedRmsNormInputs};
use support::{Uploader, assert_close, client, has_type, round, uniform};

const EPSILON: f32 = 1e-3;

/// A problem: sequences, positions, columns; columns of a group; the gate's place; the type.
#[derive(Clone, Copy, Debug)]
struct Case {
    dims: [usize; 3],
    group_size: usize,
    norm_before_gate: bool,
    kind: FloatKind,
}

impl Case {
    /// `x`, `z`, `gamma` and the gradient of `y`.
    fn numbers(&self) -> [Vec<f32>; 4] {
        let len = self.dims.iter().product();
        [
            round(uniform(1, len, -3.0, 3.0), self.kind),
            round(uniform(2, len, -4.0, 4.0), self.kind),
            uniform(3, self.dims[2], 0.5, 1.5),
            round(uniform(4, len, -1.0, 1.0), self.kind),
        ]
    }

    /// `y` and the gradients of `x`, `z` and `gamma`. `z` is a slice of something wider.
    fn kernels(&self, client: &Client) -> [Vec<f64>; 4] {
        let Case { dims, kind, .. } = *self;
        let [batch, seq_len, columns] = dims;
        let [x, z, gamma, grad_y] = self.numbers();
        let uploader = Uploader::new(client, kind);
        let wide: Vec<f32> = z
            .chunks(columns)
            .flat_map(|row| row.iter().copied().chain([f32::NAN; 3]))
            .collect();
        let z = TensorBinding {
            shape: vec![batch, seq_len, columns].into(),
            ..uploader.whole(&wide, &[batch, seq_len, columns + 3], kind)
        };
        let inputs = GatedNormInputs {
            x: uploader.whole(&x, &dims, kind),
            z,
            gamma: uploader.whole(&gamma, &[columns], FloatKind::F32),
            group_size: self.group_size,
            epsilon: EPSILON,
            norm_before_gate: self.norm_before_gate,
            dtype: ElemType::Float(kind),
        };
        let [y, grad_x, grad_z] = [(); 3].map(|()| uploader.poisoned(&dims, kind));
        let grad_gamma = uploader.poisoned(&[columns], FloatKind::F32);
        gated_rms_norm(client, inputs.clone(), y.binding()).expect("forward launches");
        gated_rms_norm_backward(
            client,
            inputs,
            uploader.whole(&grad_y, &dims, kind),
            GatedNormGradients {
                x: grad_x.binding(),
                z: grad_z.binding(),
                gamma: grad_gamma.binding(),
            },
        )
        .expect("backward launches");
        [y, grad_x, grad_z, grad_gamma].map(|it| it.read(client))
    }

    fn check(&self) {
        let [x, z, gamma, grad_y] = self
            .numbers()
            .map(|values| -> Vec<f64> { values.into_iter().map(f64::from).collect() });
        let inputs = GatedRmsNormInputs {
            rows: self.dims[0] * self.dims[1],
            columns: self.dims[2],
            group_size: self.group_size,
            x: &x,
            z: &z,
            gamma: &gamma,
            epsilon: EPSILON.into(),
            norm_before_gate: self.norm_before_gate,
        };
        let want = oracle::gated_rms_norm_backward(&inputs, &grad_y);
        let [y, grad_x, grad_z, grad_gamma] = self.kernels(&client());
        let relative = match self.kind {
            FloatKind::F32 => 0.0,
            FloatKind::F16 => 5e-4,
            _ => 4e-3,
        };
        let got = [("y", y), ("x", grad_x), ("z", grad_z)];
        let wanted = [
            ("y", oracle::gated_rms_norm(&inputs)),
            ("x", want.x),
            ("z", want.z),
        ];
        assert_close(self, &got, &wanted, relative, 3e-6);
        let (got, wanted) = ([("gamma", grad_gamma)], [("gamma", want.gamma)]);
        assert_close(self, &got, &wanted, 0.0, 3e-6);
    }
}

const CASE: Case = Case {
    dims: [2, 5, 200],
    group_size: 200,
    norm_before_gate: false,
    kind: FloatKind::F32,
};

#[test]
fn groups_of_any_size() {
    for (columns, group_size) in [(200, 200), (96, 32), (3, 1)] {
        Case {
            dims: [2, 5, columns],
            group_size,
            ..CASE
        }
        .check();
    }
}

#[test]
fn the_gate_may_come_after() {
    Case {
        dims: [1, 7, 96],
        group_size: 48,
        norm_before_gate: true,
        ..CASE
    }
    .check();
}

/// More rows than cubes of backward on any device of today.
#[test]
fn many_rows() {
    Case {
        dims: [3, 1001, 33],
        group_size: 33,
        ..CASE
    }
    .check();
}

#[test]
fn half_precision() {
    for kind in [FloatKind::F16, FloatKind::BF16] {
        match has_type(&client(), ElemType::Float(kind)) {
            true => Case { kind, ..CASE }.check(),
            false => println!("not tested: the device has no {kind:?}"),
        }
    }
}

#[test]
fn two_runs_agree_to_the_bit() {
    let case = Case {
        dims: [3, 101, 33],
        group_size: 11,
        ..CASE
    };
    assert_eq!(case.kernels(&client()), case.kernels(&client()));
}

#[test]
fn a_group_that_does_not_fit_is_refused() {
    let client = client();
    let uploader = Uploader::new(&client, FloatKind::F32);
    let tensor = || uploader.whole(&[1.0; 12], &[1, 2, 6], FloatKind::F32);
    let inputs = GatedNormInputs {
        x: tensor(),
        z: tensor(),
        gamma: uploader.whole(&[1.0; 6], &[6], FloatKind::F32),
        group_size: 4,
        epsilon: EPSILON,
        norm_before_gate: false,
        dtype: ElemType::Float(FloatKind::F32),
    };
    let error = gated_rms_norm(&client, inputs, tensor()).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::Size {
                name: "group_size",
                got: 4,
                ..
            }
        ),
        "{error:?}"
    );
}
