//! Runs the convolution's kernels on a device and its oracle on the host, over the same numbers.

use std::ops::Range;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::*;
use mamba_kernels::causal_conv1d::{
    ConvGradients, ConvInputs, ConvOutputs, ConvUpstream, causal_conv1d, causal_conv1d_backward,
};
use mamba_kernels::oracle;

use super::blocks::{by_channels, slice};
use super::{Named, Output, Uploader, read_all, round, uniform};

/// Batch, channels, positions and taps of the shapes that speed is claimed for.
pub const SHAPES: [[usize; 4]; 4] = [
    [8, 1536, 2048, 4],
    [8, 2048, 512, 4],
    [1, 5120, 8192, 4],
    [1, 1536, 65536, 4],
];

/// Which optional inputs a case has.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub bias: bool,
    pub initial_state: bool,
    pub seq_idx: bool,
    pub silu: bool,
    pub grad_final_state: bool,
}

impl Options {
    pub const NONE: Self = Self {
        bias: false,
        initial_state: false,
        seq_idx: false,
        silu: false,
        grad_final_state: false,
    };
    pub const ALL: Self = Self {
        bias: true,
        initial_state: true,
        seq_idx: true,
        silu: true,
        grad_final_state: true,
    };
}

/// One problem.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: usize,
    pub seq_len: usize,
    pub channels: usize,
    pub width: usize,
    pub options: Options,
    pub dtype: FloatKind,
    pub index: IntKind,
    /// Columns behind those of `x` and the gradient of `y` in their rows.
    pub padding: usize,
}

impl Case {
    pub fn new([batch, seq_len, channels, width]: [usize; 4], options: Options) -> Self {
        Self {
            batch,
            seq_len,
            channels,
            width,
            options,
            dtype: FloatKind::F32,
            index: IntKind::I32,
            padding: 0,
        }
    }

    fn sequence(&self) -> [usize; 3] {
        [self.batch, self.seq_len, self.channels]
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

    fn window(&self) -> [usize; 3] {
        [self.batch, self.width - 1, self.channels]
    }
}

/// The numbers of a case, exactly representable in its dtype.
pub struct Numbers {
    pub case: Case,
    pub x: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub initial_state: Vec<f32>,
    pub seq_idx: Vec<i64>,
    pub grad_y: Vec<f32>,
    pub grad_final_state: Vec<f32>,
}

impl Numbers {
    pub fn new(case: Case) -> Self {
        let mut seed = 100;
        let mut numbers = |shape: &[usize], range: f32| -> Vec<f32> {
            seed += 1;
            uniform(seed, shape.iter().product(), -range, range)
        };
        let rounded = |values: Vec<f32>| round(values, case.dtype);
        // Runs of unequal length, one of them of length 1, other ones in every sequence.
        let run = |sequence: usize, t: usize| {
            let third = (case.seq_len + sequence) / 3;
            (t >= third) as i64 + (t > third) as i64 + (t + 2 >= case.seq_len) as i64
        };
        let positions = (0..case.batch).flat_map(|i| (0..case.seq_len).map(move |t| (i, t)));
        Self {
            case,
            x: rounded(numbers(&case.sequence(), 1.5)),
            weight: numbers(&[case.channels, case.width], 1.0),
            bias: numbers(&[case.channels], 1.0),
            initial_state: numbers(&case.window(), 1.5),
            seq_idx: positions.map(|(i, t)| run(i, t)).collect(),
            grad_y: rounded(numbers(&case.sequence(), 1.0)),
            grad_final_state: numbers(&case.window(), 1.0),
        }
    }

    /// What the oracle says.
    pub fn oracle(&self) -> Vec<Named> {
        let Case { width, .. } = self.case;
        let inner = |name: &str| match name {
            "grad_weight" => Some(width),
            _ => Some(1),
        };
        by_channels(self.case.channels, |range| self.oracle_of(range), inner)
    }

    /// What it says of some channels.
    fn oracle_of(&self, channels: Range<usize>) -> Vec<Named> {
        let Case { options, width, .. } = self.case;
        let of = |values: &[f32], inner| slice(values, self.case.channels, inner, &channels);
        let (x, weight, bias) = (of(&self.x, 1), of(&self.weight, width), of(&self.bias, 1));
        let initial = of(&self.initial_state, 1);
        let inputs = oracle::CausalConv1dInputs {
            batch: self.case.batch,
            seq_len: self.case.seq_len,
            channels: channels.len(),
            width,
            x: &x,
            weight: &weight,
            bias: options.bias.then_some(&bias[..]),
            initial_state: options.initial_state.then_some(&initial[..]),
            seq_idx: options.seq_idx.then_some(&self.seq_idx[..]),
            activation: options.silu,
        };
        let values = oracle::causal_conv1d(&inputs);
        let grad_final = of(&self.grad_final_state, 1);
        let grads = oracle::causal_conv1d_backward(
            &inputs,
            &of(&self.grad_y, 1),
            options.grad_final_state.then_some(&grad_final[..]),
        );
        let mut named = vec![
            ("y", values.y),
            ("final_state", values.final_state),
            ("grad_x", grads.x),
            ("grad_weight", grads.weight),
        ];
        named.extend(grads.bias.map(|it| ("grad_bias", it)));
        named.extend(grads.initial_state.map(|it| ("grad_initial_state", it)));
        named
    }

    /// What the kernels read.
    pub fn inputs(&self, client: &Client) -> ConvInputs {
        self.inputs_on(&self.uploader(client))
    }

    fn inputs_on(&self, device: &Uploader) -> ConvInputs {
        let case = self.case;
        let options = case.options;
        let whole = |values: &[f32], shape: &[usize]| device.whole(values, shape, FloatKind::F32);
        let short: Vec<i32> = self.seq_idx.iter().map(|&id| id as i32).collect();
        let indices = match case.index {
            IntKind::I64 => i64::as_bytes(&self.seq_idx),
            _ => i32::as_bytes(&short),
        };
        ConvInputs {
            x: device.rows(&self.x, case.sequence()),
            weight: whole(&self.weight, &[case.channels, case.width]),
            bias: options.bias.then(|| whole(&self.bias, &[case.channels])),
            initial_state: options
                .initial_state
                .then(|| self.window(device, &self.initial_state)),
            seq_idx: options
                .seq_idx
                .then(|| device.batched(indices, &[case.batch, case.seq_len])),
            silu: options.silu,
            dtype: ElemType::Float(case.dtype),
            index_dtype: ElemType::Int(case.index),
        }
    }

    fn window(&self, device: &Uploader, values: &[f32]) -> TensorBinding {
        device.batched(f32::as_bytes(values), &self.case.window())
    }

    /// What the kernels say.
    pub fn kernels(&self, client: &Client) -> Vec<Named> {
        self.kernels_on(&self.uploader(client))
    }

    /// The same, with the buffers that `device` makes.
    pub fn kernels_on(&self, device: &Uploader) -> Vec<Named> {
        let client = device.client;
        let case = self.case;
        let options = case.options;
        let window = || device.poisoned_batch(&case.window(), FloatKind::F32);
        let inputs = self.inputs_on(device);
        let y = device.poisoned_batch(&case.sequence(), case.dtype);
        let final_state = window();
        let outputs = ConvOutputs {
            y: y.binding(),
            final_state: Some(final_state.binding()),
        };
        causal_conv1d(client, inputs.clone(), outputs).expect("the convolution launches");

        let grad_x = device.poisoned_batch(&case.sequence(), case.dtype);
        let grad_weight = device.poisoned(&[case.channels, case.width], FloatKind::F32);
        let grad_bias = options
            .bias
            .then(|| device.poisoned(&[case.channels], FloatKind::F32));
        let grad_initial = options.initial_state.then(window);
        let target = |output: &Option<Output>| output.as_ref().map(Output::binding);
        let upstream = ConvUpstream {
            y: device.rows(&self.grad_y, case.sequence()),
            final_state: options
                .grad_final_state
                .then(|| self.window(device, &self.grad_final_state)),
        };
        let gradients = ConvGradients {
            x: grad_x.binding(),
            weight: grad_weight.binding(),
            bias: target(&grad_bias),
            initial_state: target(&grad_initial),
        };
        causal_conv1d_backward(client, inputs, upstream, gradients).expect("the gradients launch");
        let named = vec![
            ("y", Some(y)),
            ("final_state", Some(final_state)),
            ("grad_x", Some(grad_x)),
            ("grad_weight", Some(grad_weight)),
            ("grad_bias", grad_bias),
            ("grad_initial_state", grad_initial),
        ];
        read_all(client, named)
    }

    pub fn uploader<'a>(&self, client: &'a Client) -> Uploader<'a> {
        Uploader {
            padding: self.case.padding,
            ..Uploader::new(client, self.case.dtype)
        }
    }
}
