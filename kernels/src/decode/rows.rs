//! One token of many sequences: products of whole matrices, on tensor cores where the device has them.

use cubecl::ir::FloatKind;
use cubecl::prelude::*;
use cubecl::zspace::Shape;

use super::choose::embed;
use super::layer::{
    Layer, LayerWeights, Mamba1, Mamba2, Mixer, MixerWeights, ScanBuffers, one_position,
};
use super::model::{MAX_TEAM_BATCH, Model, Sizes, Weights};
use super::narrow::{self, Addition, EDGE, Extras, RowNorm, WHOLE_ROWS, narrow_product};
use super::pack::{Packed, transposed};
use super::product::{Split, gated};
use crate::KernelError;
use crate::bits::round_to;
use crate::matmul::{Elements, fills_warpgroups, matmul};
use crate::pointwise::sigmoid;
use crate::rms_norm::{NormInputs, Update, add_rms_norm};
use crate::tensors::address_type;

const UNITS: u32 = 128;

/// Sequences that teams of units serve as fast as products of whole matrices do.
const FEW: usize = 4;

/// Rows from which on tiles of the head's product read it less often than fragments do.
const MANY_ROWS: usize = 32;

/// How the products of a step are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Products {
    /// By teams of units that share a row of the matrix. Norms come along.
    Teams,
    /// Of whole matrices. Norms are launches of their own.
    Whole,
    /// Of whole matrices by [`narrow_product`]. Norms come along, their scales are part of the matrices.
    Narrow,
}

impl Products {
    /// Those of so many sequences with matrices of type `dtype`.
    pub fn new(client: &Client, weights: &Weights, batch: usize, dtype: ElemType) -> Self {
        // What is not normalised yet may be more than f16 holds.
        let narrow = dtype == ElemType::Float(FloatKind::BF16)
            && weights.layers.iter().all(|layer| {
                let biased = layer.in_bias.is_some() || layer.out_bias.is_some();
                let mut columns = layer.inner_axes();
                !biased && columns.all(|columns| narrow::covers(client, batch, columns, dtype))
            });
        if narrow && batch > FEW {
            Self::Narrow
        } else if batch <= MAX_TEAM_BATCH {
            Self::Teams
        } else {
            Self::Whole
        }
    }
}

impl LayerWeights {
    /// Over what the products with its matrices add up. A matrix of a wrong rank is refused elsewhere.
    fn inner_axes(&self) -> impl Iterator<Item = usize> {
        let mut matrices = vec![&self.in_proj, &self.out_proj];
        if let MixerWeights::Mamba1(mixer) = &self.mixer {
            matrices.extend([&mixer.x_proj, &mixer.dt_proj]);
        }
        matrices
            .into_iter()
            .filter_map(|it| it.shape.first().copied())
    }
}

/// Vectors of the residual stream, `[rows, d_model]`, f32, and what the layer before adds to them.
pub(super) struct Stream {
    x: TensorBinding,
    /// For products that normalise.
    rounded: Option<Rounded>,
    update: Option<TensorBinding>,
}

/// The vectors in the type of the matrices, and sums of the squares of parts of them.
struct Rounded {
    x: TensorBinding,
    squares: TensorBinding,
}

impl Stream {
    /// The embeddings of `tokens`, `[rows]`.
    pub fn new(client: &Client, model: &Model, tokens: TensorBinding) -> Self {
        let x = empty(client, &[tokens.size(), model.d_model()], single());
        embed(client, model.embedding.clone(), tokens, x.clone());
        Self {
            x,
            rounded: None,
            update: None,
        }
    }

    /// Adds what is to be added, and normalises it for a layer.
    pub fn normed(
        &mut self,
        client: &Client,
        layer: &Layer,
        epsilon: f32,
    ) -> Result<TensorBinding, KernelError> {
        self.normed_by(client, &layer.norm, epsilon, layer.in_proj.dtype)
    }

    /// The same by a scale, to a type.
    pub fn normed_by(
        &mut self,
        client: &Client,
        scale: &TensorBinding,
        epsilon: f32,
        dtype: ElemType,
    ) -> Result<TensorBinding, KernelError> {
        let [rows, d_model] = [self.x.shape[0], self.x.shape[1]];
        let normed = empty(client, &[rows, d_model], dtype);
        let inputs = NormInputs {
            x: self.x.clone(),
            gamma: shaped(scale, &[d_model]),
            epsilon,
            dtype,
        };
        let update = self.update.take().map(|update| Update {
            update,
            sum: empty(client, &[rows, d_model], single()),
        });
        if let Some(Update { sum, .. }) = &update {
            self.x = sum.clone();
        }
        add_rms_norm(client, inputs, update, normed.clone())?;
        Ok(normed)
    }

    /// Adds a product, whose rows may be normalised on the way, and keeps what the next one needs for that.
    fn add_product(
        &mut self,
        client: &Client,
        rows: &TensorBinding,
        matrix: &Packed,
        norm: Option<RowNorm>,
    ) {
        let shape = [rows.shape[0], matrix.rows];
        let parts = [rows.shape[0], matrix.rows.div_ceil(EDGE)];
        let rounded = Rounded {
            x: empty(client, &shape, matrix.dtype),
            squares: empty(client, &parts, single()),
        };
        let stream = Some(Addition {
            stream: self.x.clone(),
            squares: rounded.squares.clone(),
        });
        let extras = Extras { norm, stream };
        narrow_product(client, rows, matrix, &rounded.x, matrix.dtype, extras);
        self.rounded = Some(rounded);
    }

    /// Leaves an addition to whoever reads next.
    pub fn add(&mut self, update: TensorBinding) {
        self.update = Some(update);
    }

    /// The vectors, and what is to be added to them.
    ///
    /// # Panics
    /// If nothing is: a model has a layer.
    pub fn ends(self) -> (TensorBinding, TensorBinding) {
        (self.x, self.update.expect("a layer has added something"))
    }
}

impl Model {
    /// A step of more sequences than a team of units takes.
    pub fn launch_rows(&self, client: &Client, tokens: TensorBinding) -> Result<(), KernelError> {
        let mut stream = Stream::new(client, self, tokens);
        for layer in &self.layers {
            layer.launch_rows(client, &mut stream, self.sizes, self.products)?;
        }
        self.conclude_rows(client, stream)
    }

    /// From the residual stream to the logits.
    pub fn conclude_rows(&self, client: &Client, mut stream: Stream) -> Result<(), KernelError> {
        let dtype = self.head.dtype;
        let hidden = stream.normed_by(client, &self.norm, self.sizes.epsilon, dtype)?;
        product(client, hidden, &self.head, self.logits.clone(), single())
    }

    /// The residual stream behind a prompt.
    pub fn last(&self) -> Stream {
        let shape = [self.batch(), self.d_model()];
        Stream {
            x: shaped(&self.x, &shape),
            rounded: None,
            update: None,
        }
    }

    /// Products over many rows read packed rows without padding and add no bias.
    pub fn check_rows(&self) -> Result<(), KernelError> {
        for layer in &self.layers {
            if layer.in_bias.is_some() || layer.out_bias.is_some() {
                return Err(KernelError::NotCovered(
                    "prompts or many sequences with projections that have a bias",
                ));
            }
            for matrix in layer.matrices() {
                if !matrix.columns.is_multiple_of(matrix.lanes) {
                    return Err(KernelError::NotCovered(
                        "prompts or many sequences with sizes that fill no vectors",
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Layer {
    /// Reads the residual stream and adds to it.
    fn launch_rows(
        &self,
        client: &Client,
        stream: &mut Stream,
        sizes: Sizes,
        products: Products,
    ) -> Result<(), KernelError> {
        let dtype = self.in_proj.dtype;
        let projected = match stream.rounded.take() {
            Some(Rounded { x, squares }) => {
                let norm = Some(RowNorm {
                    squares,
                    epsilon: sizes.epsilon,
                });
                let projected = empty(client, &[sizes.batch, self.in_proj.rows], dtype);
                let extras = Extras { norm, stream: None };
                narrow_product(client, &x, &self.in_proj, &projected, dtype, extras);
                projected
            }
            None => {
                let input = stream.normed(client, self, sizes.epsilon)?;
                times(client, input, &self.in_proj, dtype)?
            }
        };
        let vectors = |width| empty(client, &[sizes.batch, width], dtype);
        let u = vectors(self.split.before_gate());
        let gate = vectors(self.split.gate);
        let units = CubeDim::new_1d(UNITS);
        // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
        unsafe {
            conv_step_kernel::launch_unchecked(
                client,
                cubecl::calculate_cube_count_elemwise(client, projected.size(), units),
                units,
                address_type([&projected]),
                projected.into_tensor_arg(),
                self.conv_weight.clone().into_tensor_arg(),
                self.conv_bias.clone().map(|it| it.into_tensor_arg()).into(),
                self.window.clone().into_tensor_arg(),
                u.clone().into_tensor_arg(),
                gate.clone().into_tensor_arg(),
                self.conv_weight.shape[1],
                self.split,
                sizes.ptx,
                dtype,
            );
        }
        let y = vectors(self.split.gate);
        let buffers = ScanBuffers {
            u: &u,
            gate: &gate,
            y: &y,
        };
        let (y, norm) = match &self.mixer {
            Mixer::Mamba1(mixer) => {
                let y = mixer.step_rows(client, &self.state, buffers, sizes, dtype)?;
                (y, None)
            }
            Mixer::Mamba2(mixer) => mixer.step_rows(client, &self.state, buffers, sizes, dtype)?,
        };
        match products {
            Products::Narrow => stream.add_product(client, &y, &self.out_proj, norm),
            _ => stream.add(times(client, y, &self.out_proj, single())?),
        }
        Ok(())
    }
}

impl Mamba1 {
    /// From `u` and `gate` to what the output projection reads.
    fn step_rows(
        &self,
        client: &Client,
        state: &TensorBinding,
        buffers: ScanBuffers,
        sizes: Sizes,
        dtype: ElemType,
    ) -> Result<TensorBinding, KernelError> {
        let projected = times(client, buffers.u.clone(), &self.x_proj, single())?;
        let y = buffers.y.clone();
        self.scan(client, state, &projected, buffers, sizes, dtype);
        Ok(y)
    }
}

impl Mamba2 {
    /// From `u` and `gate` to what the output projection reads, and the norm that it does.
    fn step_rows(
        &self,
        client: &Client,
        state: &TensorBinding,
        buffers: ScanBuffers,
        sizes: Sizes,
        dtype: ElemType,
    ) -> Result<(TensorBinding, Option<RowNorm>), KernelError> {
        let Some(norm) = self.own_norm() else {
            let norm = self.norm.as_ref().map(|norm| RowNorm {
                squares: empty(
                    client,
                    &[sizes.batch, self.squares(client, sizes)],
                    single(),
                ),
                epsilon: norm.epsilon,
            });
            let squares = norm.as_ref().map(|it| &it.squares);
            self.step(client, state, &buffers, squares, sizes, dtype);
            return Ok((buffers.y.clone(), norm));
        };
        self.step(client, state, &buffers, None, sizes, dtype);
        let shape = [sizes.batch, self.d_inner()];
        let normed = empty(client, &shape, dtype);
        let [y, gate, out] =
            [buffers.y, buffers.gate, &normed].map(|it| one_position(it, shape[1]));
        norm.apply(client, y, gate, out, dtype)?;
        Ok((normed, None))
    }
}

/// One step of the convolution on its channels of the input projection, SiLU on them and on the gate. A unit owns a
/// column of one sequence.
#[cube(launch_unchecked, address_type = "dynamic")]
fn conv_step_kernel<F: Float>(
    projected: &Tensor<F>,                   // [batch, rows of in_proj]
    taps: &Tensor<f32>,                      // [channels, width]
    conv_bias: ComptimeOption<&Tensor<f32>>, // [channels]
    window: &mut Tensor<f32>,                // [batch, width - 1, channels]
    u: &mut Tensor<F>,                       // [batch, channels + passed]
    gate: &mut Tensor<F>,                    // [batch, gate]
    #[comptime] width: usize,
    #[comptime] split: Split,
    #[comptime] ptx: bool,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= projected.len() {
        terminate!();
    }
    let rows = comptime!(split.rows());
    let channels = comptime!(split.channels);
    let sequence = ABSOLUTE_POS / rows;
    let place = (ABSOLUTE_POS % rows + comptime!(rows - split.first)) % rows;
    let value = f32::cast_from(projected[ABSOLUTE_POS]);
    let kept_at = sequence * u.shape(1) + place;
    if place < channels {
        let first = sequence * comptime!((width - 1) * split.channels) + place;
        let mut sum = 0.0f32;
        #[comptime]
        if let ComptimeOption::Some(bias) = conv_bias {
            sum = bias[place];
        }
        #[unroll]
        for k in 0..comptime!(width - 1) {
            let kept = window[first + k * channels];
            sum += taps[place * width + k] * kept;
            if comptime!(k > 0) {
                window[first + comptime!(k.max(1) - 1) * channels] = kept;
            }
        }
        sum += taps[place * width + comptime!(width - 1)] * value;
        window[first + comptime!(width - 2) * channels] = value;
        u[kept_at] = round_to::<F>(sum * sigmoid(sum, ptx));
    } else if place < comptime!(split.before_gate()) {
        u[kept_at] = F::cast_from(value);
    } else {
        let at = sequence * gate.shape(1) + place - comptime!(split.before_gate());
        gate[at] = round_to::<F>(gated(value, split, ptx));
    }
}

/// `rows matrix'`, of type `out`.
pub(super) fn times(
    client: &Client,
    rows: TensorBinding,
    matrix: &Packed,
    out: ElemType,
) -> Result<TensorBinding, KernelError> {
    let result = empty(client, &[rows.shape[0], matrix.rows], out);
    product(client, rows, matrix, result.clone(), out)?;
    Ok(result)
}

fn product(
    client: &Client,
    rows: TensorBinding,
    matrix: &Packed,
    result: TensorBinding,
    out: ElemType,
) -> Result<(), KernelError> {
    let turned = transposed(matrix.values.clone());
    let wide = matrix.dtype.size() == 2
        && rows.shape[0] >= MANY_ROWS
        && fills_warpgroups(client, &rows, &turned);
    if !wide && narrow::covers(client, rows.shape[0], matrix.columns, matrix.dtype) {
        narrow_product(client, &rows, matrix, &result, out, Extras::default());
        return Ok(());
    }
    let elements = Elements {
        factors: matrix.dtype,
        out,
    };
    matmul(client, rows, turned, result, elements)
}

fn single() -> ElemType {
    ElemType::Float(FloatKind::F32)
}

/// An uninitialised contiguous tensor. Its memory goes on to whole cubes of narrow products.
pub(super) fn empty(client: &Client, shape: &[usize], dtype: ElemType) -> TensorBinding {
    let len: usize = shape.iter().product();
    let row = shape.last().copied().unwrap_or(1);
    let whole = (len / row.max(1)).next_multiple_of(WHOLE_ROWS) * row;
    let handle = client.empty(whole * dtype.size());
    let flat = [1].into_iter().collect();
    // SAFETY: the handle holds that many values.
    let tensor = unsafe { TensorBinding::from_raw_parts(handle, flat, Shape::from([len])) };
    shaped(&tensor, shape)
}

/// A contiguous tensor in another shape.
pub(super) fn shaped(tensor: &TensorBinding, shape: &[usize]) -> TensorBinding {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    TensorBinding {
        shape: Shape::from(shape.to_vec()),
        strides: strides.into(),
        ..tensor.clone()
    }
}
