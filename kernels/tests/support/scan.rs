//! Runs the scan's kernels on a device and its oracle on the host, over the same numbers.

use std::ops::Range;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::*;
use mamba_kernels::oracle;
use mamba_kernels::selective_scan::{
    CHECKPOINT_INTERVAL, ScanGradients, ScanInputs, ScanOutputs, ScanUpstream, Strategy,
    selective_scan, selective_scan_backward,
};

use super::blocks::{by_channels, slice};
use super::{Named, Output, Uploader, read_all, round, uniform};

/// Batch, channels, positions and states of the shapes that speed is claimed for.
pub const SHAPES: [[usize; 4]; 4] = [
    [8, 1536, 2048, 16],
    [8, 2048, 512, 16],
    [1, 5120, 8192, 16],
    [1, 1536, 65536, 16],
];

/// Which optional inputs a case has.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub d: bool,
    pub z: bool,
    pub delta_bias: bool,
    pub initial_state: bool,
    pub seq_idx: bool,
    pub delta_softplus: bool,
    pub grad_final_state: bool,
}

impl Options {
    pub const NONE: Self = Self {
        d: false,
        z: false,
        delta_bias: false,
        initial_state: false,
        seq_idx: false,
        delta_softplus: false,
        grad_final_state: false,
    };
    pub const ALL: Self = Self {
        d: true,
        z: true,
        delta_bias: true,
        initial_state: true,
        seq_idx: true,
        delta_softplus: true,
        grad_final_state: true,
    };
}

/// One problem.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: usize,
    pub seq_len: usize,
    pub d_inner: usize,
    pub d_state: usize,
    pub options: Options,
    pub dtype: FloatKind,
    /// Whether the sequences are slices of wider rows.
    pub sliced: bool,
}

impl Case {
    pub fn new([batch, seq_len, d_inner, d_state]: [usize; 4], options: Options) -> Self {
        Self {
            batch,
            seq_len,
            d_inner,
            d_state,
            options,
            dtype: FloatKind::F32,
            sliced: false,
        }
    }

    fn sequence(&self) -> [usize; 3] {
        [self.batch, self.seq_len, self.d_inner]
    }

    fn projection(&self) -> [usize; 3] {
        [self.batch, self.seq_len, self.d_state]
    }

    /// What an entry may be off, as [`assert_close`](super::assert_close) takes it. In f32 there is room
    /// for another order of sums and another exponential; halves are rounded where they are stored, by
    /// half a unit in the last place.
    pub fn tolerance(&self) -> [f64; 2] {
        // The gradients of parameters are sums over all positions.
        let sums = if self.seq_len > 1000 { 1e-5 } else { 2e-6 };
        match self.dtype {
            FloatKind::F16 => [5e-4, 1e-5],
            FloatKind::BF16 => [4e-3, 1e-5],
            _ => [1e-5, sums],
        }
    }

    fn state(&self) -> [usize; 3] {
        [self.batch, self.d_inner, self.d_state]
    }
}

/// The numbers of a case, exactly representable in its dtype.
pub struct Numbers {
    pub case: Case,
    pub u: Vec<f32>,
    pub delta: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub c: Vec<f32>,
    pub d: Vec<f32>,
    pub z: Vec<f32>,
    pub delta_bias: Vec<f32>,
    pub initial_state: Vec<f32>,
    pub seq_idx: Vec<i32>,
    pub grad_y: Vec<f32>,
    pub grad_final_state: Vec<f32>,
}

impl Numbers {
    pub fn new(case: Case) -> Self {
        let mut seed = 1;
        let mut numbers = |shape: &[usize], low: f32, high: f32| -> Vec<f32> {
            seed += 1;
            uniform(seed, shape.iter().product(), low, high)
        };
        let rounded = |values: Vec<f32>| round(values, case.dtype);
        // Runs of unequal length, one of them of length 1, one across a checkpoint.
        let run = |t: usize| {
            let third = case.seq_len / 3;
            (t >= third) as i32 + (t > third) as i32 + (t >= 5 * case.seq_len / 6) as i32
        };
        Self {
            case,
            u: rounded(numbers(&case.sequence(), -1.0, 1.0)),
            // Without softplus the step must not be negative: the state would grow.
            delta: rounded(match case.options.delta_softplus {
                true => numbers(&case.sequence(), -4.0, 1.0),
                false => numbers(&case.sequence(), 0.0, 0.7),
            }),
            a: numbers(&[case.d_inner, case.d_state], -2.0, -0.1),
            b: rounded(numbers(&case.projection(), -1.0, 1.0)),
            c: rounded(numbers(&case.projection(), -1.0, 1.0)),
            d: numbers(&[case.d_inner], -1.0, 1.0),
            z: rounded(numbers(&case.sequence(), -2.0, 2.0)),
            delta_bias: numbers(&[case.d_inner], -0.5, 0.5),
            initial_state: numbers(&case.state(), -1.0, 1.0),
            seq_idx: (0..case.batch * case.seq_len)
                .map(|i| run(i % case.seq_len))
                .collect(),
            grad_y: rounded(numbers(&case.sequence(), -1.0, 1.0)),
            grad_final_state: numbers(&case.state(), -1.0, 1.0),
        }
    }

    /// What the oracle says.
    pub fn oracle(&self) -> Vec<Named> {
        let Case { d_state, .. } = self.case;
        let inner = |name: &str| match name {
            "grad_b" | "grad_c" => None,
            "final_state" | "grad_a" | "grad_initial_state" => Some(d_state),
            _ => Some(1),
        };
        by_channels(self.case.d_inner, |range| self.oracle_of(range), inner)
    }

    /// What it says of some channels.
    fn oracle_of(&self, channels: Range<usize>) -> Vec<Named> {
        let Case {
            options, d_state, ..
        } = self.case;
        let of = |values: &[f32], inner| slice(values, self.case.d_inner, inner, &channels);
        let all = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
        let (u, delta, z) = (of(&self.u, 1), of(&self.delta, 1), of(&self.z, 1));
        let (a, b, c) = (of(&self.a, d_state), all(&self.b), all(&self.c));
        let (d, bias) = (of(&self.d, 1), of(&self.delta_bias, 1));
        let initial = of(&self.initial_state, d_state);
        let ids: Vec<i64> = self.seq_idx.iter().map(|&id| id.into()).collect();
        let inputs = oracle::SelectiveScanInputs {
            batch: self.case.batch,
            seq_len: self.case.seq_len,
            d_inner: channels.len(),
            d_state,
            u: &u,
            delta: &delta,
            a: &a,
            b: &b,
            c: &c,
            d: options.d.then_some(&d[..]),
            z: options.z.then_some(&z[..]),
            delta_bias: options.delta_bias.then_some(&bias[..]),
            initial_state: options.initial_state.then_some(&initial[..]),
            seq_idx: options.seq_idx.then_some(&ids[..]),
            delta_softplus: options.delta_softplus,
        };
        let values = oracle::selective_scan(&inputs);
        let grad_final = of(&self.grad_final_state, d_state);
        let grads = oracle::selective_scan_backward(
            &inputs,
            &of(&self.grad_y, 1),
            options.grad_final_state.then_some(&grad_final[..]),
        );
        let mut named = vec![
            ("y", values.y),
            ("final_state", values.final_state),
            ("grad_u", grads.u),
            ("grad_delta", grads.delta),
            ("grad_a", grads.a),
            ("grad_b", grads.b),
            ("grad_c", grads.c),
        ];
        named.extend(grads.d.map(|it| ("grad_d", it)));
        named.extend(grads.z.map(|it| ("grad_z", it)));
        named.extend(grads.delta_bias.map(|it| ("grad_delta_bias", it)));
        named.extend(grads.initial_state.map(|it| ("grad_initial_state", it)));
        named
    }

    /// What the kernels say.
    pub fn kernels(&self, client: &Client, strategy: Strategy) -> Vec<Named> {
        self.kernels_on(&self.uploader(client), strategy)
    }

    /// The same, with the buffers that `device` makes.
    pub fn kernels_on(&self, device: &Uploader, strategy: Strategy) -> Vec<Named> {
        let client = device.client;
        let case = self.case;
        let options = case.options;
        let inputs = self.inputs(device);
        let intervals = case.seq_len.div_ceil(CHECKPOINT_INTERVAL);
        let y = device.poisoned_batch(&case.sequence(), case.dtype);
        let final_state = device.poisoned_batch(&case.state(), FloatKind::F32);
        let checkpoints = [case.batch, intervals, case.d_state, case.d_inner];
        let checkpoints = device.poisoned_batch(&checkpoints, FloatKind::F32);
        let outputs = ScanOutputs {
            y: y.binding(),
            final_state: final_state.binding(),
            checkpoints: Some(checkpoints.binding()),
        };
        selective_scan(client, inputs.clone(), outputs, strategy).expect("the scan launches");

        let sequence = || device.poisoned_batch(&case.sequence(), case.dtype);
        let channels = || device.poisoned(&[case.d_inner], FloatKind::F32);
        let (grad_u, grad_delta) = (sequence(), sequence());
        let grad_a = device.poisoned(&[case.d_inner, case.d_state], FloatKind::F32);
        let grad_b = device.poisoned_batch(&case.projection(), case.dtype);
        let grad_c = device.poisoned_batch(&case.projection(), case.dtype);
        let grad_d = options.d.then(channels);
        let grad_z = options.z.then(sequence);
        let grad_bias = options.delta_bias.then(channels);
        let grad_initial = options
            .initial_state
            .then(|| device.poisoned_batch(&case.state(), FloatKind::F32));
        let target = |output: &Option<Output>| output.as_ref().map(Output::binding);
        let upstream = ScanUpstream {
            checkpoints: checkpoints.binding(),
            y: device.rows(&self.grad_y, case.sequence()),
            final_state: options
                .grad_final_state
                .then(|| self.states(device, &self.grad_final_state)),
        };
        let gradients = ScanGradients {
            u: grad_u.binding(),
            delta: grad_delta.binding(),
            a: grad_a.binding(),
            b: grad_b.binding(),
            c: grad_c.binding(),
            d: target(&grad_d),
            z: target(&grad_z),
            delta_bias: target(&grad_bias),
            initial_state: target(&grad_initial),
        };
        selective_scan_backward(client, inputs, upstream, gradients, strategy)
            .expect("the gradients launch");

        let named = vec![
            ("y", Some(y)),
            ("final_state", Some(final_state)),
            ("grad_u", Some(grad_u)),
            ("grad_delta", Some(grad_delta)),
            ("grad_a", Some(grad_a)),
            ("grad_b", Some(grad_b)),
            ("grad_c", Some(grad_c)),
            ("grad_d", grad_d),
            ("grad_z", grad_z),
            ("grad_delta_bias", grad_bias),
            ("grad_initial_state", grad_initial),
        ];
        read_all(client, named)
    }

    /// What the kernels read.
    fn inputs(&self, device: &Uploader) -> ScanInputs {
        let case = self.case;
        let options = case.options;
        let whole = |values: &[f32], shape: &[usize]| device.whole(values, shape, FloatKind::F32);
        ScanInputs {
            u: device.rows(&self.u, case.sequence()),
            delta: device.rows(&self.delta, case.sequence()),
            a: whole(&self.a, &[case.d_inner, case.d_state]),
            b: device.rows(&self.b, case.projection()),
            c: device.rows(&self.c, case.projection()),
            d: options.d.then(|| whole(&self.d, &[case.d_inner])),
            z: options.z.then(|| device.rows(&self.z, case.sequence())),
            delta_bias: options
                .delta_bias
                .then(|| whole(&self.delta_bias, &[case.d_inner])),
            initial_state: options
                .initial_state
                .then(|| self.states(device, &self.initial_state)),
            seq_idx: options.seq_idx.then(|| {
                let indices = i32::as_bytes(&self.seq_idx);
                device.batched(indices, &[case.batch, case.seq_len])
            }),
            delta_softplus: options.delta_softplus,
            dtype: ElemType::Float(case.dtype),
            index_dtype: ElemType::Int(IntKind::I32),
        }
    }

    fn states(&self, device: &Uploader, values: &[f32]) -> TensorBinding {
        device.batched(f32::as_bytes(values), &self.case.state())
    }

    pub fn uploader<'a>(&self, client: &'a Client) -> Uploader<'a> {
        Uploader {
            padding: if self.case.sliced { 3 } else { 0 },
            ..Uploader::new(client, self.case.dtype)
        }
    }
}
