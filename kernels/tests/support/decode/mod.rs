//! A model of Mamba-1 and Mamba-2 layers on the device and, in f64, on the host.

mod mamba1;
mod mamba2;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::TensorBinding;
use mamba_kernels::KernelError;
use mamba_kernels::decode::{
    Before, Choice, Decoder, LayerState, LayerWeights, MixerWeights, Weights,
};
use mamba_kernels::oracle::{CausalConv1dInputs, RmsNormInputs, causal_conv1d, rms_norm};

use super::{Uploader, round, uniform};

const EPSILON: f32 = 1e-3;

/// One problem.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: usize,
    pub layers: usize,
    pub d_model: usize,
    pub d_inner: usize,
    /// States a channel of Mamba-1.
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
    /// The kinds of the layers, over and over.
    pub kinds: &'static [Kind],
    /// Of the layers of Mamba-2.
    pub heads: Heads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Mamba1,
    Mamba2,
}

/// What layers of Mamba-2 have.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub headdim: usize,
    pub ngroups: usize,
    pub d_state: usize,
    /// Whether the gate comes behind the norm; no norm at all where it is left out.
    pub norm_before_gate: Option<bool>,
    /// Whether every channel has a skip of its own.
    pub skips_channels: bool,
    pub dt_limit: (f32, f32),
}

impl Heads {
    /// Those of the official models, but for their number.
    pub const OFFICIAL: Self = Self {
        headdim: 64,
        ngroups: 1,
        d_state: 128,
        norm_before_gate: Some(false),
        skips_channels: false,
        dt_limit: (0.0, f32::INFINITY),
    };
}

impl Case {
    fn kind(&self, layer: usize) -> Kind {
        self.kinds[layer % self.kinds.len()]
    }

    fn nheads(&self) -> usize {
        self.d_inner / self.heads.headdim
    }

    /// Channels of the convolution.
    fn channels(&self, kind: Kind) -> usize {
        match kind {
            Kind::Mamba1 => self.d_inner,
            Kind::Mamba2 => self.d_inner + 2 * self.heads.ngroups * self.heads.d_state,
        }
    }

    /// Columns of the input projection, and where those of the convolution and of the gate begin.
    fn in_columns(&self, kind: Kind) -> [usize; 3] {
        let channels = self.channels(kind);
        match kind {
            Kind::Mamba1 => [2 * self.d_inner, 0, self.d_inner],
            Kind::Mamba2 => [self.d_inner + channels + self.nheads(), self.d_inner, 0],
        }
    }

    fn state(&self, kind: Kind) -> Vec<usize> {
        match kind {
            Kind::Mamba1 => vec![self.batch, self.d_inner, self.d_state],
            Kind::Mamba2 => {
                let Heads {
                    headdim, d_state, ..
                } = self.heads;
                vec![self.batch, self.nheads(), headdim, d_state]
            }
        }
    }
}

struct LayerNumbers {
    kind: Kind,
    norm: Vec<f32>,
    in_proj: Vec<f32>,
    in_bias: Vec<f32>,
    conv_weight: Vec<f32>,
    conv_bias: Vec<f32>,
    mixer: Mixer,
    out_proj: Vec<f32>,
    out_bias: Vec<f32>,
    conv: Vec<f32>,
    ssm: Vec<f32>,
}

enum Mixer {
    Mamba1(mamba1::Numbers),
    Mamba2(mamba2::Numbers),
}

/// The numbers of a case, the matrices exactly representable in its dtype.
pub struct Numbers {
    case: Case,
    embedding: Vec<f32>,
    layers: Vec<LayerNumbers>,
    norm: Vec<f32>,
    head: Vec<f32>,
}

/// Draws numbers, no two vectors alike.
struct Draw {
    seed: u64,
    dtype: FloatKind,
}

impl Draw {
    fn next(&mut self, len: usize, low: f32, high: f32) -> Vec<f32> {
        self.seed += 1;
        uniform(self.seed, len, low, high)
    }

    /// Exactly representable.
    fn matrix(&mut self, from: usize, to: usize) -> Vec<f32> {
        let bound = (from as f32).sqrt().recip() * 1.7;
        round(self.next(from * to, -bound, bound), self.dtype)
    }
}

impl LayerNumbers {
    fn new(case: &Case, kind: Kind, draw: &mut Draw) -> Self {
        let (channels, [columns, ..]) = (case.channels(kind), case.in_columns(kind));
        Self {
            kind,
            norm: draw.next(case.d_model, 0.5, 1.5),
            in_proj: draw.matrix(case.d_model, columns),
            in_bias: draw.next(columns, -0.5, 0.5),
            conv_weight: draw.next(channels * case.width, -0.5, 0.5),
            conv_bias: draw.next(channels, -0.5, 0.5),
            mixer: match kind {
                Kind::Mamba1 => Mixer::Mamba1(mamba1::Numbers::new(case, draw)),
                Kind::Mamba2 => Mixer::Mamba2(mamba2::Numbers::new(case, draw)),
            },
            out_proj: draw.matrix(case.d_inner, case.d_model),
            out_bias: draw.next(case.d_model, -0.5, 0.5),
            conv: draw.next(case.batch * (case.width - 1) * channels, -1.0, 1.0),
            ssm: draw.next(case.state(kind).iter().product(), -1.0, 1.0),
        }
    }

    fn weights(&self, case: &Case, upload: &Upload) -> LayerWeights {
        let (channels, [columns, ..]) = (case.channels(self.kind), case.in_columns(self.kind));
        let projection_bias =
            |values: &[f32]| case.projection_biases.then(|| upload.vector(values));
        LayerWeights {
            norm: upload.vector(&self.norm),
            in_proj: upload.whole(&self.in_proj, &[case.d_model, columns]),
            in_bias: projection_bias(&self.in_bias),
            conv_weight: upload.whole(&self.conv_weight, &[channels, case.width]),
            conv_bias: case.biases.then(|| upload.vector(&self.conv_bias)),
            mixer: match &self.mixer {
                Mixer::Mamba1(mixer) => MixerWeights::Mamba1(mixer.weights(case, upload)),
                Mixer::Mamba2(mixer) => MixerWeights::Mamba2(mixer.weights(case, upload)),
            },
            out_proj: upload.whole(&self.out_proj, &[case.d_inner, case.d_model]),
            out_bias: projection_bias(&self.out_bias),
        }
    }

    fn state(&self, case: &Case, upload: &Upload) -> LayerState {
        let window = [case.batch, case.width - 1, case.channels(self.kind)];
        LayerState {
            conv: upload.whole(&self.conv, &window),
            ssm: upload.whole(&self.ssm, &case.state(self.kind)),
        }
    }
}

/// Puts f32 numbers on the device.
struct Upload<'a> {
    uploader: Uploader<'a>,
}

impl Upload<'_> {
    fn whole(&self, values: &[f32], shape: &[usize]) -> TensorBinding {
        self.uploader.whole(values, shape, FloatKind::F32)
    }

    fn vector(&self, values: &[f32]) -> TensorBinding {
        self.whole(values, &[values.len()])
    }
}

impl Numbers {
    pub fn new(case: Case) -> Self {
        let mut draw = Draw {
            seed: 0,
            dtype: case.dtype,
        };
        let layers = (0..case.layers).map(|i| LayerNumbers::new(&case, case.kind(i), &mut draw));
        let layers = layers.collect();
        let rows = case.vocab_size + case.padding;
        Self {
            case,
            // The head reads it in the type of the matrices.
            embedding: round(draw.next(rows * case.d_model, -1.0, 1.0), case.dtype),
            layers,
            norm: draw.next(case.d_model, 0.5, 1.5),
            head: round(draw.next(rows * case.d_model, -1.0, 1.0), case.dtype),
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
        let upload = Upload {
            uploader: Uploader::new(client, FloatKind::F32),
        };
        let rows = case.vocab_size + case.padding;
        let layers = self.layers.iter();
        let table = |values: &[f32]| upload.whole(values, &[rows, case.d_model]);
        Decoder::new(
            client,
            Weights {
                embedding: table(&self.embedding),
                layers: layers.clone().map(|it| it.weights(case, &upload)).collect(),
                norm: upload.vector(&self.norm),
                epsilon: EPSILON,
                head: case.head.then(|| table(&self.head)),
                vocab_size: case.vocab_size,
            },
            match states {
                true => Before::States(layers.map(|it| it.state(case, &upload)).collect()),
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
    let bias = |values: &[f32]| case.biases.then(|| double(values));
    let projection_bias = |values: &[f32]| case.projection_biases.then(|| double(values));
    let channels = case.channels(layer.kind);
    let [wide, convolved, gate] = case.in_columns(layer.kind);
    let projected = times(
        x,
        &layer.in_proj,
        case.d_model,
        projection_bias(&layer.in_bias),
    );
    let conv = causal_conv1d(&CausalConv1dInputs {
        batch: case.batch,
        seq_len: 1,
        channels,
        width: case.width,
        x: &columns(&projected, wide, convolved..convolved + channels),
        weight: &double(&layer.conv_weight),
        bias: bias(&layer.conv_bias).as_deref(),
        initial_state: Some(&state[0]),
        seq_idx: None,
        activation: true,
    });
    let z = columns(&projected, wide, gate..gate + case.d_inner);
    let (y, ssm) = match &layer.mixer {
        Mixer::Mamba1(mixer) => mixer.mix(case, &state[1], &conv.y, &z),
        Mixer::Mamba2(mixer) => {
            let dt = columns(&projected, wide, wide - case.nheads()..wide);
            mixer.mix(case, &state[1], &conv.y, &dt, &z)
        }
    };
    *state = [conv.final_state, ssm];
    times(
        &y,
        &layer.out_proj,
        case.d_inner,
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
