//! Runs Mamba-2's kernels on a device and their oracle on the host, over the same numbers.

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::*;
use cubecl::zspace::Shape;
use mamba_kernels::oracle;
use mamba_kernels::ssd::{SsdInputs, SsdOutputs, Strategy, ssd_as};

use super::{Named, Uploader, read_all, round, uniform};

/// Batch, positions, heads, channels of a head and states of the shapes that speed is claimed for, in one group.
pub const SHAPES: [[usize; 5]; 3] = [
    [8, 2048, 24, 64, 128],
    [1, 8192, 80, 64, 128],
    [1, 65536, 24, 64, 128],
];

/// Channels of a head and numbers of states at which cards are tested: all, or those that `MAMBA_TEST_CHANNELS` and
/// `MAMBA_TEST_STATES` name. Kernels are compiled for each, so processes share the work.
pub fn card_sizes() -> impl Iterator<Item = [usize; 2]> {
    let channels = named("MAMBA_TEST_CHANNELS", [16, 32, 48, 64, 128]);
    let states = named("MAMBA_TEST_STATES", [16, 64, 100, 128, 256]);
    let of = move |headdim| states.clone().into_iter().map(move |it| [headdim, it]);
    channels.into_iter().flat_map(of)
}

/// All of them, or the one that `variable` names.
fn named(variable: &str, all: [usize; 5]) -> Vec<usize> {
    match std::env::var(variable) {
        Ok(named) => {
            let named = named.parse().ok().filter(|it| all.contains(it));
            vec![named.unwrap_or_else(|| panic!("{variable}: one of {all:?}"))]
        }
        Err(_) => all.to_vec(),
    }
}

/// What is skipped past the scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    None,
    /// One weight a head.
    Heads,
    /// One weight a channel.
    Channels,
}

/// Which optional inputs a case has.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub skip: Skip,
    pub dt_bias: bool,
    pub initial_state: bool,
    pub seq_idx: bool,
    pub dt_softplus: bool,
    pub dt_limit: (f32, f32),
}

impl Options {
    pub const NONE: Self = Self {
        skip: Skip::None,
        dt_bias: false,
        initial_state: false,
        seq_idx: false,
        dt_softplus: false,
        dt_limit: (0.0, f32::INFINITY),
    };
    pub const ALL: Self = Self {
        skip: Skip::Heads,
        dt_bias: true,
        initial_state: true,
        seq_idx: true,
        dt_softplus: true,
        dt_limit: (0.05, 1.0),
    };
}

/// One problem.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: usize,
    pub seq_len: usize,
    pub nheads: usize,
    pub headdim: usize,
    pub ngroups: usize,
    pub d_state: usize,
    pub chunk_size: usize,
    pub options: Options,
    pub dtype: FloatKind,
    /// Columns that the sequences' rows have beside theirs.
    pub padding: usize,
}

impl Case {
    /// In two groups where heads are even, in chunks of 256 positions.
    pub fn new([batch, seq_len, nheads, headdim, d_state]: [usize; 5], options: Options) -> Self {
        Self {
            batch,
            seq_len,
            nheads,
            headdim,
            ngroups: if nheads.is_multiple_of(2) { 2 } else { 1 },
            d_state,
            chunk_size: 256,
            options,
            dtype: FloatKind::F32,
            padding: 0,
        }
    }

    fn sequence(&self) -> [usize; 4] {
        [self.batch, self.seq_len, self.nheads, self.headdim]
    }

    fn steps(&self) -> [usize; 3] {
        [self.batch, self.seq_len, self.nheads]
    }

    fn projection(&self) -> [usize; 4] {
        [self.batch, self.seq_len, self.ngroups, self.d_state]
    }

    fn state(&self) -> [usize; 4] {
        [self.batch, self.nheads, self.headdim, self.d_state]
    }

    fn skips(&self) -> Vec<usize> {
        match self.options.skip {
            Skip::Channels => vec![self.nheads, self.headdim],
            _ => vec![self.nheads],
        }
    }

    /// What an entry may be off, as [`assert_close`](super::assert_close) takes it. In f32 there is room for another order
    /// of sums and another exponential. Halves are rounded where they are stored, and as factors of tensor-core
    /// products: the weights of a chunk, and the states.
    pub fn tolerance(&self) -> [f64; 2] {
        match self.dtype {
            FloatKind::F16 => [1e-3, 1e-3],
            FloatKind::BF16 => [8e-3, 8e-3],
            _ => [1e-5, 2e-6],
        }
    }
}

/// The numbers of a case, exactly representable in its dtype.
pub struct Numbers {
    pub case: Case,
    pub x: Vec<f32>,
    pub dt: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub c: Vec<f32>,
    pub d: Vec<f32>,
    pub dt_bias: Vec<f32>,
    pub initial_state: Vec<f32>,
    pub seq_idx: Vec<i32>,
}

impl Numbers {
    pub fn new(case: Case) -> Self {
        let mut seed = 1;
        let mut numbers = |shape: &[usize], low: f32, high: f32| -> Vec<f32> {
            seed += 1;
            uniform(seed, shape.iter().product(), low, high)
        };
        let rounded = |values: Vec<f32>| round(values, case.dtype);
        // Runs of unequal length, one of them of length 1, one across a chunk.
        let run = |t: usize| {
            let third = case.seq_len / 3;
            (t >= third) as i32 + (t > third) as i32 + (t >= 5 * case.seq_len / 6) as i32
        };
        Self {
            case,
            x: rounded(numbers(&case.sequence(), -1.0, 1.0)),
            // Without softplus the step must not be negative: the state would grow.
            dt: rounded(match case.options.dt_softplus {
                true => numbers(&case.steps(), -4.0, 1.0),
                false => numbers(&case.steps(), 0.0, 0.7),
            }),
            a: numbers(&[case.nheads], -2.0, -0.1),
            b: rounded(numbers(&case.projection(), -1.0, 1.0)),
            c: rounded(numbers(&case.projection(), -1.0, 1.0)),
            d: numbers(&case.skips(), -1.0, 1.0),
            dt_bias: numbers(&[case.nheads], -0.5, 0.5),
            initial_state: numbers(&case.state(), -1.0, 1.0),
            seq_idx: (0..case.batch * case.seq_len)
                .map(|i| run(i % case.seq_len))
                .collect(),
        }
    }

    /// The first `seq_len` positions of a batch of one.
    pub fn beginning(&self, seq_len: usize) -> Self {
        assert_eq!(self.case.batch, 1, "positions are contiguous");
        let case = Case {
            seq_len,
            ..self.case
        };
        let first = |values: &[f32], shape: &[usize]| values[..shape.iter().product()].to_vec();
        Self {
            case,
            x: first(&self.x, &case.sequence()),
            dt: first(&self.dt, &case.steps()),
            b: first(&self.b, &case.projection()),
            c: first(&self.c, &case.projection()),
            seq_idx: self.seq_idx[..seq_len].to_vec(),
            a: self.a.clone(),
            d: self.d.clone(),
            dt_bias: self.dt_bias.clone(),
            initial_state: self.initial_state.clone(),
        }
    }

    /// What the oracle says.
    pub fn oracle(&self) -> Vec<Named> {
        let values = self.with_oracle(oracle::ssd);
        vec![("y", values.y), ("final_state", values.final_state)]
    }

    /// What `run` makes of the oracle's inputs.
    pub fn with_oracle<T>(&self, run: impl FnOnce(&oracle::SsdInputs) -> T) -> T {
        let case = self.case;
        let options = case.options;
        let all = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
        let [x, dt, a, b, c] = [&self.x, &self.dt, &self.a, &self.b, &self.c].map(|it| all(it));
        let [d, bias, initial] = [&self.d, &self.dt_bias, &self.initial_state].map(|it| all(it));
        let ids: Vec<i64> = self.seq_idx.iter().map(|&id| id.into()).collect();
        run(&oracle::SsdInputs {
            batch: case.batch,
            seq_len: case.seq_len,
            nheads: case.nheads,
            headdim: case.headdim,
            ngroups: case.ngroups,
            d_state: case.d_state,
            x: &x,
            dt: &dt,
            a: &a,
            b: &b,
            c: &c,
            d: (options.skip != Skip::None).then_some(&d[..]),
            dt_bias: options.dt_bias.then_some(&bias[..]),
            initial_state: options.initial_state.then_some(&initial[..]),
            seq_idx: options.seq_idx.then_some(&ids[..]),
            dt_softplus: options.dt_softplus,
            dt_limit: (options.dt_limit.0.into(), options.dt_limit.1.into()),
        })
    }

    /// What the kernels say, without checkpoints.
    pub fn values(&self, client: &Client, strategy: Strategy) -> Vec<Named> {
        self.run(&self.uploader(client), strategy, false)
    }

    /// The same and the checkpoints.
    pub fn values_saved(&self, client: &Client, strategy: Strategy) -> Vec<Named> {
        self.run(&self.uploader(client), strategy, true)
    }

    /// The same, with the buffers that `device` makes.
    pub fn run(&self, device: &Uploader, strategy: Strategy, save: bool) -> Vec<Named> {
        let case = self.case;
        let y = device.poisoned_batch(&case.sequence(), case.dtype);
        let final_state = device.poisoned_batch(&case.state(), FloatKind::F32);
        let chunks = case.seq_len.div_ceil(case.chunk_size);
        let [batch, nheads, headdim, d_state] = case.state();
        let shape = [batch, chunks, nheads, headdim, d_state];
        let checkpoints = save.then(|| device.poisoned_batch(&shape, FloatKind::F32));
        let outputs = SsdOutputs {
            y: y.binding(),
            final_state: final_state.binding(),
            checkpoints: checkpoints.as_ref().map(|it| it.binding()),
        };
        ssd_as(device.client, self.inputs(device), outputs, strategy).expect("the scan launches");
        let named = vec![
            ("y", Some(y)),
            ("final_state", Some(final_state)),
            ("checkpoints", checkpoints),
        ];
        read_all(device.client, named)
    }

    /// What the kernels read.
    pub fn inputs(&self, device: &Uploader) -> SsdInputs {
        let case = self.case;
        let options = case.options;
        let whole = |values: &[f32], shape: &[usize]| device.whole(values, shape, FloatKind::F32);
        let heads = |values: &[f32], shape: [usize; 4]| heads(device, values, shape);
        SsdInputs {
            x: heads(&self.x, case.sequence()),
            dt: device.rows(&self.dt, case.steps()),
            a: whole(&self.a, &[case.nheads]),
            b: heads(&self.b, case.projection()),
            c: heads(&self.c, case.projection()),
            d: (options.skip != Skip::None).then(|| whole(&self.d, &case.skips())),
            dt_bias: (options.dt_bias).then(|| whole(&self.dt_bias, &[case.nheads])),
            initial_state: (options.initial_state)
                .then(|| device.batched(f32::as_bytes(&self.initial_state), &case.state())),
            seq_idx: options.seq_idx.then(|| {
                let indices = i32::as_bytes(&self.seq_idx);
                device.batched(indices, &[case.batch, case.seq_len])
            }),
            dt_softplus: options.dt_softplus,
            dt_limit: options.dt_limit,
            chunk_size: case.chunk_size,
            dtype: ElemType::Float(case.dtype),
            index_dtype: ElemType::Int(IntKind::I32),
        }
    }

    pub fn uploader<'a>(&self, client: &'a Client) -> Uploader<'a> {
        Uploader {
            padding: self.case.padding,
            ..Uploader::new(client, self.case.dtype)
        }
    }
}

/// A tensor of heads as the first columns of wider rows.
fn heads(device: &Uploader, values: &[f32], shape: [usize; 4]) -> TensorBinding {
    let [batch, seq_len, heads, width] = shape;
    let rows = device.rows(values, [batch, seq_len, heads * width]);
    let strides = [rows.strides[0], rows.strides[1], width, 1];
    TensorBinding {
        shape: Shape::from(vec![rows.shape[0], seq_len, heads, width]),
        strides: strides.to_vec().into(),
        ..rows
    }
}
