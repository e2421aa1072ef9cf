//! What the launcher does not take, it refuses before anything runs.

use cubecl::prelude::TensorBinding;
use mamba_kernels::KernelError;
use mamba_kernels::ssd::{SsdInputs, SsdOutputs, ssd};

use crate::support::client;
use crate::support::ssd::{Case, Numbers, Options};

/// The error of a small problem after a change.
fn refused(change: impl Fn(&mut SsdInputs, &mut SsdOutputs)) -> KernelError {
    let client = client();
    let case = Case::new([2, 20, 4, 8, 16], Options::ALL);
    let numbers = Numbers::new(case);
    let device = numbers.uploader(&client);
    let mut inputs = numbers.inputs(&device);
    let f32 = cubecl::ir::FloatKind::F32;
    let mut outputs = SsdOutputs {
        y: device.poisoned(&[2, 20, 4, 8], f32).binding(),
        final_state: device.poisoned(&[2, 4, 8, 16], f32).binding(),
        checkpoints: None,
    };
    change(&mut inputs, &mut outputs);
    ssd(&client, inputs, outputs).expect_err("the problem is wrong")
}

fn with_shape(tensor: &TensorBinding, shape: &[usize]) -> TensorBinding {
    TensorBinding {
        shape: cubecl::zspace::Shape::from(shape.to_vec()),
        ..tensor.clone()
    }
}

#[test]
fn shapes_that_do_not_fit_each_other() {
    let errors = [
        refused(|it, _| it.dt = with_shape(&it.dt, &[2, 19, 4])),
        refused(|it, _| it.c = with_shape(&it.c, &[2, 20, 2, 15])),
        refused(|it, _| it.a = with_shape(&it.a, &[3])),
        refused(|it, _| it.d = it.d.as_ref().map(|d| with_shape(d, &[4, 1]))),
        refused(|it, _| it.x = with_shape(&it.x, &[2, 20, 32])),
        refused(|_, out| out.y = with_shape(&out.y, &[2, 20, 4, 7])),
        refused(|_, out| out.checkpoints = Some(out.final_state.clone())),
    ];
    for error in errors {
        assert!(matches!(error, KernelError::Shape { .. }), "{error}");
    }
}

#[test]
fn sizes_out_of_range() {
    let errors = [
        refused(|it, _| it.chunk_size = 0),
        refused(|it, _| it.chunk_size = 24),
        refused(|it, _| it.chunk_size = 272),
        refused(|it, _| it.b = with_shape(&it.b, &[2, 20, 3, 16])),
        refused(|it, _| it.b = with_shape(&it.b, &[2, 20, 2, 257])),
        refused(|it, _| it.x = with_shape(&it.x, &[2, 0, 4, 8])),
        refused(|it, _| it.x = with_shape(&it.x, &[2, 20, 4, 257])),
    ];
    for error in errors {
        assert!(matches!(error, KernelError::Size { .. }), "{error}");
    }
}

#[test]
fn strides_that_the_kernels_do_not_read() {
    let strided = |tensor: &TensorBinding, strides: [usize; 4]| TensorBinding {
        strides: strides.to_vec().into(),
        ..tensor.clone()
    };
    let errors = [
        refused(|it, _| it.x = strided(&it.x, [640, 32, 1, 4])),
        refused(|it, _| it.b = strided(&it.b, [640, 32, 8, 1])),
        refused(|_, out| out.y = strided(&out.y, [1280, 64, 8, 1])),
    ];
    for error in errors {
        assert!(matches!(error, KernelError::Strides { .. }), "{error}");
    }
}
