//! Operations of mamba-core on tensors, on any device.

use anyhow::{Context, Result};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use mamba_core::Precision;
use mamba_core::ops::{CausalConv1d, SelectiveScan, Skip, causal_conv1d, selective_scan, ssd};
use mamba_core::transformer::causal_attention;

use crate::problems::{Conv, Heads, Op, Scan, Ssd};

/// An operation with its inputs on a device.
pub struct OpEngine {
    call: Call,
    device: Device,
}

/// What is called, again and again.
enum Call {
    Scan(Box<SelectiveScan>),
    Ssd(Box<mamba_core::ops::Ssd>),
    Conv(Box<CausalConv1d>),
    Attention(Box<[Tensor<4>; 3]>),
}

impl OpEngine {
    /// Makes reproducible inputs; activations are of `precision`.
    pub fn new(op: &Op, precision: Precision, device: &Device) -> Self {
        let call = match op {
            Op::Scan(problem) => Call::Scan(Box::new(scan(problem, precision.dtype(), device))),
            Op::Ssd(problem) => Call::Ssd(Box::new(two(problem, precision.dtype(), device))),
            Op::Conv(problem) => Call::Conv(Box::new(conv(problem, precision.dtype(), device))),
            Op::Attention(problem) => {
                Call::Attention(Box::new(attention(problem, precision.dtype(), device)))
            }
        };
        Self {
            call,
            device: device.clone(),
        }
    }

    /// Runs it and waits for it. The output is `[batch, seq_len, channels]`.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn run(&self) -> Result<Tensor<3>> {
        let output = self.call();
        self.finish()?;
        Ok(output)
    }

    /// Hands it to the device without a wait.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn queue(&self) -> Result<()> {
        let output = self.call();
        // Before the output goes: what nobody will read may not be computed.
        self.device
            .flush()
            .context("the device did not take an operation")?;
        drop(output);
        Ok(())
    }

    /// Waits for the device.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn finish(&self) -> Result<()> {
        self.device
            .sync()
            .context("the device did not finish an operation")
    }

    fn call(&self) -> Tensor<3> {
        match &self.call {
            Call::Scan(scan) => selective_scan((**scan).clone()).0,
            Call::Ssd(two) => ssd((**two).clone()).0,
            Call::Conv(conv) => causal_conv1d((**conv).clone()).0,
            Call::Attention(inputs) => attend((**inputs).clone()),
        }
    }
}

/// Queries, keys and values to the output, whose heads lie side by side.
fn attend([query, key, value]: [Tensor<4>; 3]) -> Tensor<3> {
    let [batch, heads, seq_len, width] = query.dims();
    let context = causal_attention(query, key, value, None);
    context
        .swap_dims(1, 2)
        .reshape([batch, seq_len, heads * width])
}

fn scan(problem: &Scan, dtype: FloatDType, device: &Device) -> SelectiveScan {
    let Scan {
        batch,
        seq_len,
        d_inner,
        d_state,
    } = *problem;
    let data = problem.data();
    let sequence = |values, width| tensor(values, [batch, seq_len, width], device).cast(dtype);
    let mut scan = SelectiveScan::new(
        sequence(data.u, d_inner),
        sequence(data.delta, d_inner),
        tensor(data.a, [d_inner, d_state], device),
        sequence(data.b, d_state),
        sequence(data.c, d_state),
    );
    scan.d = Some(tensor(data.d, [d_inner], device));
    scan.z = Some(sequence(data.z, d_inner));
    scan.delta_bias = Some(tensor(data.delta_bias, [d_inner], device));
    scan.initial_state =
        (seq_len == 1).then(|| tensor(problem.state(), [batch, d_inner, d_state], device));
    scan
}

fn two(problem: &Ssd, dtype: FloatDType, device: &Device) -> mamba_core::ops::Ssd {
    let Ssd {
        batch,
        seq_len,
        nheads,
        headdim,
        d_state,
    } = *problem;
    let data = problem.data();
    let sequence = |values, width| tensor(values, [batch, seq_len, width], device).cast(dtype);
    let mut two = mamba_core::ops::Ssd::new(
        sequence(data.x, nheads * headdim),
        sequence(data.dt, nheads),
        tensor(data.a, [nheads], device),
        sequence(data.b, d_state),
        sequence(data.c, d_state),
    );
    two.d = Some(Skip::PerHead(tensor(data.d, [nheads], device)));
    two.dt_bias = Some(tensor(data.dt_bias, [nheads], device));
    two.initial_state = data
        .initial_state
        .map(|state| tensor(state, [batch, nheads, headdim, d_state], device));
    two
}

fn conv(problem: &Conv, dtype: FloatDType, device: &Device) -> CausalConv1d {
    let Conv {
        batch,
        seq_len,
        channels,
        width,
    } = *problem;
    let [x, weight, bias] = problem.data();
    let mut conv = CausalConv1d::new(
        tensor(x, [batch, seq_len, channels], device).cast(dtype),
        tensor(weight, [channels, width], device),
    );
    conv.bias = Some(tensor(bias, [channels], device));
    conv.silu = true;
    conv
}

fn attention(problem: &Heads, dtype: FloatDType, device: &Device) -> [Tensor<4>; 3] {
    let Heads {
        batch,
        seq_len,
        num_heads,
        head_dim,
    } = *problem;
    let shape = [batch, num_heads, seq_len, head_dim];
    problem
        .data()
        .map(|values| tensor(values, shape, device).cast(dtype))
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
