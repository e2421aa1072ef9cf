//! Kernels kept on disk are known by a hash: one for each set of optional tensors. On the default device of the runtime
//! built in.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod support;

use std::sync::Mutex;

use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::launched::LaunchedKernels;
use mamba_kernels::causal_conv1d::{ConvInputs, ConvOutputs, causal_conv1d};
use mamba_kernels::selective_scan::{ScanInputs, ScanOutputs, Strategy, selective_scan};
use support::{Uploader, client};

/// A collection sees every launch of the process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_convolution_has_a_hash_for_each_set_of_tensors() {
    let alone = ALONE.lock();
    let client = client();
    let uploader = Uploader::new(&client, FloatKind::F32);
    let f32 = |shape: &[usize]| {
        let values = vec![0.5; shape.iter().product()];
        uploader.whole(&values, shape, FloatKind::F32)
    };
    let kernels = LaunchedKernels::new();
    for set in 0..16 {
        let given = |tensor: usize| set >> tensor & 1 == 1;
        let [batch, seq_len, channels, width] = [1, 5, 3, 4];
        let window = [batch, width - 1, channels];
        let inputs = ConvInputs {
            x: f32(&[batch, seq_len, channels]),
            weight: f32(&[channels, width]),
            bias: given(0).then(|| f32(&[channels])),
            initial_state: given(1).then(|| f32(&window)),
            // Zeros.
            seq_idx: given(2).then(|| uploader.whole(&[0.0; 5], &[batch, seq_len], FloatKind::F32)),
            silu: true,
            dtype: ElemType::Float(FloatKind::F32),
            index_dtype: ElemType::Int(IntKind::I32),
        };
        let outputs = ConvOutputs {
            y: f32(&[batch, seq_len, channels]),
            final_state: given(3).then(|| f32(&window)),
        };
        causal_conv1d(&client, inputs, outputs).expect("it launches");
    }
    assert_eq!(kernels.finish().len(), 16);
    drop(alone);
}

/// The pair that a cache on disk once took for one kernel.
#[test]
fn a_scan_from_states_is_not_one_that_writes_checkpoints() {
    let alone = ALONE.lock();
    let client = client();
    let uploader = Uploader::new(&client, FloatKind::F32);
    let f32 = |shape: &[usize]| {
        let values = vec![0.5; shape.iter().product()];
        uploader.whole(&values, shape, FloatKind::F32)
    };
    let kernels = LaunchedKernels::new();
    for starts in [true, false] {
        let [batch, seq_len, d_inner, d_state] = [1, 5, 3, 4];
        let state = [batch, d_inner, d_state];
        let inputs = ScanInputs {
            u: f32(&[batch, seq_len, d_inner]),
            delta: f32(&[batch, seq_len, d_inner]),
            a: f32(&[d_inner, d_state]),
            b: f32(&[batch, seq_len, d_state]),
            c: f32(&[batch, seq_len, d_state]),
            d: None,
            z: None,
            delta_bias: None,
            initial_state: starts.then(|| f32(&state)),
            seq_idx: None,
            delta_softplus: true,
            dtype: ElemType::Float(FloatKind::F32),
            index_dtype: ElemType::Int(IntKind::I32),
        };
        let outputs = ScanOutputs {
            y: f32(&[batch, seq_len, d_inner]),
            final_state: f32(&state),
            checkpoints: (!starts).then(|| f32(&[batch, 1, d_state, d_inner])),
        };
        selective_scan(&client, inputs, outputs, Strategy::Sequential).expect("it launches");
    }
    assert_eq!(kernels.finish().len(), 2);
    drop(alone);
}
