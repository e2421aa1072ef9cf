//! A model of Mamba-1 layers on the device and, in f64, on the host.

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use mamba_kernels::KernelError;
use mamba_kernels::decode::{Before, Choice, Decoder, LayerState, LayerWeights, Weights};
use mamba_kernels::oracle::{
    CausalConv1dInputs, RmsNormInputs, SelectiveScanInputs, causal_conv1d, rms_norm, selective_scan,
};

use super::{Uploader, round, uniform};

const EPSILON: f32 = 1e-3;

/// One problem.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: usize,
    pub layers: usize,
    pub d_model: usize,
    pub d_inner: usize,
    pub d_state: usize,
    pub dt_rank: usize,
    pub width: usize,
    pub vocab_size: usize,
    /// Rows of the embedding behind those of the vocabulary.
    pub padding: usize,
    /// Of the convolution and the time step.
    pub biases: bool,
    /// Of the projections into and out of a layer.
    pub projection_biases: bool,
    /// Whether the head is a matrix of its own.
    pub head: bool,
    /// Of the packed matrices.
    pub dtype: FloatKind,
}

struct LayerNumbers {
    norm: Vec<f32>,
    in_proj: Vec<f32>,
    in_bias: Vec<f32>,
    conv_weight: Vec<f32>,
    conv_bias: Vec<f32>,
    x_proj: Vec<f32>,
    dt_proj: Vec<f32>,
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
    out_proj: Vec<f32>,
    out_bias: Vec<f32>,
    conv: Vec<f32>,
    ssm: Vec<f32>,
}

/// The numbers of a case, the matrices exactly representable in its dtype.
pub struct Numbers {
    case: Case,
    embedding: Vec<f32>,
    layers: Vec<LayerNumbers>,
    norm: Vec<f32>,
    head: Vec<f32>,
}

impl Numbers {
    pub fn new(case: Case) -> Self {
        let Case {
            batch,
            d_model,
            d_inner,
            d_state,
            dt_rank,
            width,
            dtype,
            ..
        } = case;
        let rows = case.vocab_size + case.padding;
        let mut seed = 0;
        let mut next = |len: usize, low: f32, high: f32| {
            seed += 1;
            uniform(seed, len, low, high)
        };
        let mut layer = || {
            let mut matrix = |from: usize, to: usize| {
                let bound = (from as f32).sqrt().recip() * 1.7;
                round(next(from * to, -bound, bound), dtype)
            };
            let in_proj = matrix(d_model, 2 * d_inner);
            let x_proj = matrix(d_inner, dt_rank + 2 * d_state);
            let dt_proj = matrix(dt_rank, d_inner);
            let out_proj = matrix(d_inner, d_model);
            LayerNumbers {
                norm: next(d_model, 0.5, 1.5),
                in_proj,
                in_bias: next(2 * d_inner, -0.5, 0.5),
                conv_weight: next(d_inner * width, -0.5, 0.5),
                conv_bias: next(d_inner, -0.5, 0.5),
                x_proj,
                dt_proj,
                dt_bias: next(d_inner, -4.0, 0.0),
                a: next(d_inner * d_state, -4.0, -0.1),
                d: next(d_inner, -1.0, 1.0),
                out_proj,
                out_bias: next(d_model, -0.5, 0.5),
                conv: next(batch * (width - 1) * d_inner, -1.0, 1.0),
                ssm: next(batch * d_inner * d_state, -1.0, 1.0),
            }
        };
        let layers = (0..case.layers).map(|_| layer()).collect();
        Self {
            case,
            // The head reads it in the type of the matrices.
            embedding: round(next(rows * d_model, -1.0, 1.0), dtype),
            layers,
            norm: next(d_model, 0.5, 1.5),
            head: round(next(rows * d_model, -1.0, 1.0), dtype),
        }
    }

    /// Makes a token's vector no number at all.
    pub fn poison(&mut self, token: usize) {
        let d_model = self.case.d_model;
        self.embedding[token * d_model..][..d_model].fill(f32::NAN);
    }

    /// A decoder behind the numbers' states.
    pub fn decoder(&self, client: &Client, choice: Choice) -> Result<Decoder, KernelError> {
        self.decoder_behind(client, choice, true)
    }

    /// A decoder behind the numbers' states or, without `states`, nothing.
    pub fn decoder_behind(
        &self,
        client: &Client,
        choice: Choice,
        states: bool,
    ) -> Result<Decoder, KernelError> {
        let case = &self.case;
        let uploader = Uploader::new(client, FloatKind::F32);
        let up = |values: &[f32], shape: &[usize]| uploader.whole(values, shape, FloatKind::F32);
        let vector = |values: &[f32]| up(values, &[values.len()]);
        let bias = |values: &[f32]| case.biases.then(|| vector(values));
        let projection_bias = |values: &[f32]| case.projection_biases.then(|| vector(values));
        let rows = case.vocab_size + case.padding;
        let projected = case.dt_rank + 2 * case.d_state;
        let weights = |layer: &LayerNumbers| LayerWeights {
            norm: up(&layer.norm, &[case.d_model]),
            in_proj: up(&layer.in_proj, &[case.d_model, 2 * case.d_inner]),
            in_bias: projection_bias(&layer.in_bias),
            conv_weight: up(&layer.conv_weight, &[case.d_inner, case.width]),
            conv_bias: bias(&layer.conv_bias),
            x_proj: up(&layer.x_proj, &[case.d_inner, projected]),
            dt_proj: up(&layer.dt_proj, &[case.dt_rank, case.d_inner]),
            dt_bias: bias(&layer.dt_bias),
            a: up(&layer.a, &[case.d_inner, case.d_state]),
            d: up(&layer.d, &[case.d_inner]),
            out_proj: up(&layer.out_proj, &[case.d_inner, case.d_model]),
            out_bias: projection_bias(&layer.out_bias),
        };
        let state = |layer: &LayerNumbers| LayerState {
            conv: up(&layer.conv, &[case.batch, case.width - 1, case.d_inner]),
            ssm: up(&layer.ssm, &[case.batch, case.d_inner, case.d_state]),
        };
        Decoder::new(
            client,
            Weights {
                embedding: up(&self.embedding, &[rows, case.d_model]),
                layers: self.layers.iter().map(weights).collect(),
                norm: up(&self.norm, &[case.d_model]),
                epsilon: EPSILON,
                head: case.head.then(|| up(&self.head, &[rows, case.d_model])),
                vocab_size: case.vocab_size,
            },
            match states {
                true => Before::States(self.layers.iter().map(state).collect()),
                false => Before::Nothing { batch: case.batch },
            },
            ElemType::Float(case.dtype),
            choice,
        )
    }

    /// The model behind the numbers' states.
    pub fn host(&self) -> Host<'_> {
        Host {
            numbers: self,
            states: self
                .layers
                .iter()
                .map(|layer| [double(&layer.conv), double(&layer.ssm)])
                .collect(),
        }
    }
}

/// The model in f64.
pub struct Host<'a> {
    numbers: &'a Numbers,
    states: Vec<[Vec<f64>; 2]>,
}

impl Host<'_> {
    pub fn forget(&mut self) {
        self.states
            .iter_mut()
            .flatten()
            .for_each(|state| state.fill(0.0));
    }

    /// The logits behind one token a sequence, `[batch, vocab_size]`.
    pub fn step(&mut self, tokens: &[u32]) -> Vec<f64> {
        let case = &self.numbers.case;
        let embedding = double(&self.numbers.embedding);
        let row = |token: &u32| &embedding[*token as usize * case.d_model..][..case.d_model];
        let mut x: Vec<f64> = tokens.iter().flat_map(row).copied().collect();
        for (layer, state) in self.numbers.layers.iter().zip(&mut self.states) {
            let y = mix(case, layer, state, &normed(case, &x, &layer.norm));
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
        let hidden = normed(case, &x, &self.numbers.norm);
        let head = match case.head {
            true => double(&self.numbers.head),
            false => embedding,
        };
        let mut logits = Vec::new();
        for hidden in hidden.chunks(case.d_model) {
            for row in head.chunks(case.d_model).take(case.vocab_size) {
                logits.push(hidden.iter().zip(row).map(|(x, w)| x * w).sum());
            }
        }
        logits
    }
}

fn mix(case: &Case, layer: &LayerNumbers, state: &mut [Vec<f64>; 2], x: &[f64]) -> Vec<f64> {
    let Case {
        batch,
        d_inner,
        d_state,
        dt_rank,
        ..
    } = *case;
    let bias = |values: &[f32]| case.biases.then(|| double(values));
    let projection_bias = |values: &[f32]| case.projection_biases.then(|| double(values));
    let xz = times(
        x,
        &layer.in_proj,
        case.d_model,
        projection_bias(&layer.in_bias),
    );
    let conv = causal_conv1d(&CausalConv1dInputs {
        batch,
        seq_len: 1,
        channels: d_inner,
        width: case.width,
        x: &columns(&xz, 2 * d_inner, 0..d_inner),
        weight: &double(&layer.conv_weight),
        bias: bias(&layer.conv_bias).as_deref(),
        initial_state: Some(&state[0]),
        seq_idx: None,
        activation: true,
    });
    let wide = dt_rank + 2 * d_state;
    let projected = times(&conv.y, &layer.x_proj, d_inner, None);
    let low = columns(&projected, wide, 0..dt_rank);
    let scan = selective_scan(&SelectiveScanInputs {
        batch,
        seq_len: 1,
        d_inner,
        d_state,
        u: &conv.y,
        delta: &times(&low, &layer.dt_proj, dt_rank, None),
        a: &double(&layer.a),
        b: &columns(&projected, wide, dt_rank..dt_rank + d_state),
        c: &columns(&projected, wide, dt_rank + d_state..wide),
        d: Some(&double(&layer.d)),
        z: Some(&columns(&xz, 2 * d_inner, d_inner..2 * d_inner)),
        delta_bias: bias(&layer.dt_bias).as_deref(),
        initial_state: Some(&state[1]),
        seq_idx: None,
        delta_softplus: true,
    });
    *state = [conv.final_state, scan.final_state];
    times(
        &scan.y,
        &layer.out_proj,
        d_inner,
        projection_bias(&layer.out_bias),
    )
}

fn normed(case: &Case, x: &[f64], gamma: &[f32]) -> Vec<f64> {
    rms_norm(&RmsNormInputs {
        rows: case.batch,
        columns: case.d_model,
        x,
        gamma: &double(gamma),
        epsilon: EPSILON.into(),
    })
}

/// Rows of `from` values times a matrix `[from, to]`.
fn times(x: &[f64], matrix: &[f32], from: usize, bias: Option<Vec<f64>>) -> Vec<f64> {
    let to = matrix.len() / from;
    let mut y = Vec::new();
    for x in x.chunks(from) {
        for column in 0..to {
            let bias = bias.as_ref().map_or(0.0, |bias| bias[column]);
            let products = x.iter().enumerate();
            let sum: f64 = products
                .map(|(k, x)| x * f64::from(matrix[k * to + column]))
                .sum();
            y.push(sum + bias);
        }
    }
    y
}

fn columns(matrix: &[f64], width: usize, range: std::ops::Range<usize>) -> Vec<f64> {
    matrix
        .chunks(width)
        .flat_map(|row| row[range.clone()].iter().copied())
        .collect()
}

fn double(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}
