//! A prompt in one pass, by the kernels of whole sequences, which leaves the states ready.

use std::ops::Range;

use cubecl::ir::{FloatKind, IntKind};
use cubecl::prelude::*;
use cubecl::zspace::Shape;

use super::layer::{Layer, Mamba1, Mamba2, Mixer};
use super::model::Model;
use super::pack::copy;
use super::rows::{Stream, empty, shaped, times};
use crate::KernelError;
use crate::causal_conv1d::{ConvInputs, ConvOutputs, causal_conv1d};
use crate::selective_scan::{ScanInputs, ScanOutputs, Strategy, selective_scan};
use crate::ssd::{SsdInputs, SsdOutputs, ssd};
use crate::tensors::{address_type, check_size};

const UNITS: u32 = 256;

/// Positions between saved states, of which there are none.
const CHUNK: usize = 256;

/// Of indices, of which there are none.
const INDEX: ElemType = ElemType::Int(IntKind::I32);

/// Bytes that CUDA's vectors are aligned to.
const CUDA_ALIGNMENT: usize = 16;

/// Prompts of one length that stand side by side in the batch, and what they follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prompt {
    /// The first one's place in the batch.
    pub first: usize,
    pub batch: usize,
    pub seq_len: usize,
    /// Whether nothing came before.
    pub fresh: bool,
}

impl Prompt {
    fn rows(&self) -> usize {
        self.batch * self.seq_len
    }
}

impl Model {
    /// Reads a prompt of each sequence. Those of one length that stand side by side go together, if they are not more than
    /// `at_once` tokens.
    pub fn read(
        &self,
        client: &Client,
        prompts: &[&[u32]],
        at_once: usize,
        fresh: bool,
    ) -> Result<(), KernelError> {
        if prompts.len() != self.batch() {
            return Err(KernelError::Shape {
                name: "prompts",
                expected: vec![self.batch()],
                got: vec![prompts.len()],
            });
        }
        let shortest = prompts.iter().map(|it| it.len()).min().unwrap_or(0);
        check_size("tokens of a prompt", "at least 1", shortest, usize::MAX)?;
        self.check_rows()?;
        for layer in &self.layers {
            if let Mixer::Mamba2(mixer) = &layer.mixer {
                mixer.check_prompts()?;
            }
        }
        let parts = parts(prompts, at_once);
        if parts.len() > 1 {
            self.check_apart(client)?;
        }
        for part in parts {
            let prompt = Prompt {
                first: part.start,
                batch: part.len(),
                seq_len: prompts[part.start].len(),
                fresh,
            };
            self.read_part(client, &prompts[part].concat(), prompt)?;
        }
        self.conclude(client)
    }

    /// Kernels bind what is remembered of one sequence, and not what comes before it.
    fn check_apart(&self, client: &Client) -> Result<(), KernelError> {
        let remembered = self.layers.iter().flat_map(|it| [&it.window, &it.state]);
        let row = |tensor: &TensorBinding| tensor.size() / self.batch() * size_of::<f32>();
        let apart = |tensor| row(tensor).is_multiple_of(alignment(client));
        match remembered.chain([&self.x]).all(apart) {
            true => Ok(()),
            false => Err(KernelError::NotCovered(
                "prompts of several lengths with states of such sizes",
            )),
        }
    }

    /// Leaves the states behind prompts and their last vectors.
    fn read_part(
        &self,
        client: &Client,
        tokens: &[u32],
        prompt: Prompt,
    ) -> Result<(), KernelError> {
        // SAFETY: the handle holds a token a row.
        let tokens = unsafe {
            TensorBinding::from_raw_parts(
                client.create_from_slice(u32::as_bytes(tokens)),
                [1].into_iter().collect(),
                Shape::from([prompt.rows()]),
            )
        };
        let mut stream = Stream::new(client, self, tokens);
        for layer in &self.layers {
            let input = stream.normed(client, layer, self.sizes.epsilon)?;
            stream.add(layer.read(client, input, prompt)?);
        }
        self.finish(client, stream, prompt);
        Ok(())
    }

    /// The vectors behind the last tokens.
    fn finish(&self, client: &Client, stream: Stream, prompt: Prompt) {
        let (x, update) = stream.ends();
        let last = rows_from(&self.x, prompt.first, &[prompt.batch, self.x.shape[1]]);
        let units = CubeDim::new_1d(UNITS);
        // SAFETY: every index lies inside its tensor.
        unsafe {
            last_kernel::launch_unchecked(
                client,
                cubecl::calculate_cube_count_elemwise(client, last.size(), units),
                units,
                address_type([&x]),
                x.into_tensor_arg(),
                update.into_tensor_arg(),
                last.into_tensor_arg(),
                prompt.seq_len as u32,
            );
        }
    }
}

impl Layer {
    /// What the layer adds to the residual stream, `[rows, d_model]`, f32.
    fn read(
        &self,
        client: &Client,
        input: TensorBinding,
        prompt: Prompt,
    ) -> Result<TensorBinding, KernelError> {
        let dtype = self.in_proj.dtype;
        let channels = self.split.channels;
        let projected = times(client, input, &self.in_proj, dtype)?;
        let sequence = [prompt.batch, prompt.seq_len, channels];
        let u = empty(client, &sequence, dtype);
        let window = [prompt.batch, self.conv_weight.shape[1] - 1, channels];
        let window = rows_from(&self.window, prompt.first, &window);
        causal_conv1d(
            client,
            ConvInputs {
                x: columns(client, &projected, self.split.first, sequence, dtype),
                weight: self.conv_weight.clone(),
                bias: self.conv_bias.clone(),
                initial_state: before(client, &window, prompt),
                seq_idx: None,
                silu: true,
                dtype,
                index_dtype: INDEX,
            },
            ConvOutputs {
                y: u.clone(),
                final_state: Some(window),
            },
        )?;
        let inputs = Inputs {
            projected: &projected,
            u,
            state: &self.state,
            prompt,
            dtype,
        };
        let y = match &self.mixer {
            Mixer::Mamba1(mixer) => mixer.read(client, inputs)?,
            Mixer::Mamba2(mixer) => mixer.read(client, inputs)?,
        };
        let y = shaped(&y, &[prompt.rows(), self.d_inner()]);
        times(client, y, &self.out_proj, ElemType::Float(FloatKind::F32))
    }
}

/// What a mixer reads of a prompt, and the state that it leaves behind it.
struct Inputs<'a> {
    /// By the input projection, `[rows, ..]`.
    projected: &'a TensorBinding,
    /// Behind the convolution, `[batch, seq_len, channels]`.
    u: TensorBinding,
    state: &'a TensorBinding,
    prompt: Prompt,
    dtype: ElemType,
}

impl Mamba1 {
    /// What the output projection reads, `[batch, seq_len, d_inner]`.
    fn read(&self, client: &Client, inputs: Inputs) -> Result<TensorBinding, KernelError> {
        let Inputs {
            projected: xz,
            u,
            state: remembered,
            prompt,
            dtype,
        } = inputs;
        let (rows, d_inner, d_state) = (prompt.rows(), self.x_proj.columns, self.d_state);
        let dt_rank = self.dt_proj.columns;
        let sequence = [prompt.batch, prompt.seq_len, d_inner];
        let projected = times(client, shaped(&u, &[rows, d_inner]), &self.x_proj, dtype)?;
        let low = packed_columns(client, &projected, 0, [1, rows, dt_rank], dtype);
        let low = shaped(&low, &[rows, dt_rank]);
        let delta = times(client, low, &self.dt_proj, dtype)?;
        let states = [prompt.batch, prompt.seq_len, d_state];
        let y = empty(client, &sequence, dtype);
        let state = [prompt.batch, d_inner, d_state];
        let state = rows_from(remembered, prompt.first, &state);
        selective_scan(
            client,
            ScanInputs {
                u,
                delta: shaped(&delta, &sequence),
                a: shaped(&self.a, &[d_inner, d_state]),
                b: columns(client, &projected, dt_rank, states, dtype),
                c: columns(client, &projected, dt_rank + d_state, states, dtype),
                d: Some(self.d.clone()),
                z: Some(columns(client, xz, d_inner, sequence, dtype)),
                delta_bias: self.dt_bias.clone(),
                initial_state: before(client, &state, prompt),
                seq_idx: None,
                delta_softplus: true,
                dtype,
                index_dtype: INDEX,
            },
            ScanOutputs {
                y: y.clone(),
                final_state: state,
                checkpoints: None,
            },
            Strategy::Auto,
        )?;
        Ok(y)
    }
}

impl Mamba2 {
    fn check_prompts(&self) -> Result<(), KernelError> {
        match &self.norm {
            Some(norm) => norm.check(),
            None => Err(KernelError::NotCovered(
                "prompts of Mamba-2 layers without a norm",
            )),
        }
    }

    /// What the output projection reads, `[batch, seq_len, d_inner]`.
    fn read(&self, client: &Client, inputs: Inputs) -> Result<TensorBinding, KernelError> {
        let Inputs {
            projected,
            u,
            state: remembered,
            prompt,
            dtype,
        } = inputs;
        let (d_inner, width) = (self.d_inner(), self.ngroups * self.d_state);
        let sequence = |width| [prompt.batch, prompt.seq_len, width];
        let channels = d_inner + 2 * width;
        let u = shaped(&u, &[prompt.rows(), channels]);
        let part = |first, width| columns(client, &u, first, sequence(width), dtype);
        let group = |first| in_heads(part(first, width), self.ngroups);
        let own = |first, width| columns(client, projected, first, sequence(width), dtype);
        let y = empty(client, &sequence(d_inner), dtype);
        let state = [prompt.batch, self.nheads, self.headdim, self.d_state];
        let state = rows_from(remembered, prompt.first, &state);
        let skip = match self.d.size() == self.nheads {
            true => self.d.clone(),
            false => shaped(&self.d, &[self.nheads, self.headdim]),
        };
        ssd(
            client,
            SsdInputs {
                x: in_heads(part(0, d_inner), self.nheads),
                dt: own(d_inner + channels, self.nheads),
                a: self.a.clone(),
                b: group(d_inner),
                c: group(d_inner + width),
                d: Some(skip),
                dt_bias: self.dt_bias.clone(),
                initial_state: before(client, &state, prompt),
                seq_idx: None,
                dt_softplus: true,
                dt_limit: self.dt_limit,
                chunk_size: CHUNK,
                dtype,
                index_dtype: INDEX,
            },
            SsdOutputs {
                y: in_heads(y.clone(), self.nheads),
                final_state: state,
                checkpoints: None,
            },
        )?;
        let Some(norm) = &self.norm else {
            return Ok(y);
        };
        let normed = empty(client, &sequence(d_inner), dtype);
        norm.apply(client, y, own(0, d_inner), normed.clone(), dtype)?;
        Ok(normed)
    }
}

/// The last axis of a sequence as one of heads and one of their channels.
fn in_heads(sequence: TensorBinding, heads: usize) -> TensorBinding {
    let [batch, seq_len, width] = [0, 1, 2].map(|axis| sequence.shape[axis]);
    let (batch_stride, stride) = (sequence.strides[0], sequence.strides[1]);
    let headdim = width / heads;
    TensorBinding {
        shape: [batch, seq_len, heads, headdim].into(),
        strides: [batch_stride, stride, headdim, 1].into_iter().collect(),
        ..sequence
    }
}

/// What was remembered before the prompt, out of the way of what is written behind it.
fn before(client: &Client, state: &TensorBinding, prompt: Prompt) -> Option<TensorBinding> {
    (!prompt.fresh).then(|| shaped(&copy(client, state.clone(), 1), &state.shape))
}

/// What a batch has of some of its sequences from `first` on, f32, where it lies.
fn rows_from(batch: &TensorBinding, first: usize, shape: &[usize]) -> TensorBinding {
    let row: usize = shape[1..].iter().product();
    moved(shaped(batch, shape), first * row * size_of::<f32>())
}

/// The same tensor so many bytes further on in its buffer.
fn moved(mut tensor: TensorBinding, bytes: usize) -> TensorBinding {
    let begin = tensor.handle.offset_start.unwrap_or(0) + bytes as u64;
    tensor.handle.offset_start = Some(begin);
    tensor
}

/// Bytes at whose multiples kernels can begin to read a buffer.
fn alignment(client: &Client) -> usize {
    match client.name() {
        "cuda" => CUDA_ALIGNMENT,
        _ => client.properties().memory.alignment as usize,
    }
}

/// Runs of prompts of one length, each of not more than so many tokens, but for a single one.
fn parts(prompts: &[&[u32]], at_once: usize) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        match parts.last_mut() {
            Some(part)
                if prompts[part.start].len() == prompt.len()
                    && (part.len() + 1) * prompt.len() <= at_once =>
            {
                part.end = index + 1;
            }
            _ => parts.push(index..index + 1),
        }
    }
    parts
}

/// Columns of a matrix from `first` on as a sequence `[batch, seq_len, width]`: where they lie if the device can
/// begin there, else a copy.
fn columns(
    client: &Client,
    matrix: &TensorBinding,
    first: usize,
    shape: [usize; 3],
    dtype: ElemType,
) -> TensorBinding {
    let offset = first * dtype.size();
    if !offset.is_multiple_of(alignment(client)) {
        return packed_columns(client, matrix, first, shape, dtype);
    }
    let mut view = moved(matrix.clone(), offset);
    let row = matrix.shape[1];
    view.shape = shape.into();
    view.strides = [shape[1] * row, row, 1].into_iter().collect();
    view
}

fn packed_columns(
    client: &Client,
    matrix: &TensorBinding,
    first: usize,
    shape: [usize; 3],
    dtype: ElemType,
) -> TensorBinding {
    let out = empty(client, &shape, dtype);
    let units = CubeDim::new_1d(UNITS);
    // SAFETY: every index lies inside its tensor.
    unsafe {
        columns_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, out.size(), units),
            units,
            address_type([matrix]),
            matrix.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            first as u32,
            dtype,
        );
    }
    out
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn columns_kernel<F: Float>(
    matrix: &Tensor<F>,  // [rows, columns]
    out: &mut Tensor<F>, // [.., width]
    first: u32,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let width = out.shape(2);
    let row = ABSOLUTE_POS / width;
    let column = first as usize + ABSOLUTE_POS % width;
    out[ABSOLUTE_POS] = matrix[row * matrix.shape(1) + column];
}

/// The last position of each sequence, with what the last layer adds to it.
#[cube(launch_unchecked, address_type = "dynamic")]
fn last_kernel(
    x: &Tensor<f32>,        // [batch * seq_len, d_model]
    update: &Tensor<f32>,   // as x
    last: &mut Tensor<f32>, // [batch, d_model or more]
    seq_len: u32,
) {
    if ABSOLUTE_POS >= last.len() {
        terminate!();
    }
    let padded = last.shape(1);
    let d_model = x.shape(1);
    let column = ABSOLUTE_POS % padded;
    let row = (ABSOLUTE_POS / padded + 1) * seq_len as usize - 1;
    let mut value = 0.0f32;
    if column < d_model {
        value = x[row * d_model + column] + update[row * d_model + column];
    }
    last[ABSOLUTE_POS] = value;
}
