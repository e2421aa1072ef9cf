//! One layer: what it holds and its launches.

mod mamba1;
mod mamba2;

use cubecl::prelude::*;

use super::model::Sizes;
use super::pack::{Packed, copy, fill_with_zeros, ones, pack_scaled, transposed, zeros};
use super::product::{Split, convolve_kernel, product_kernel};
use super::rows::Products;
use super::team::{Team, lanes};
use crate::KernelError;
use crate::tensors::{
    address_type, check_optional, check_shape, check_size, check_whole, present, scratch,
};

pub(super) use mamba1::Mamba1;
pub use mamba1::Mamba1Weights;
pub use mamba2::{GatedNormWeights, Mamba2Weights};
pub(super) use mamba2::{Mamba2, one_position};

/// Taps of the longest filter: a unit keeps them in registers.
const MAX_WIDTH: usize = 16;

/// The parameters of a layer: f32, contiguous but for the matrices, which may have any strides.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Scale of the norm, `[d_model]`.
    pub norm: TensorBinding,
    /// `[d_model, ..]`, its columns as [`MixerWeights`] says.
    pub in_proj: TensorBinding,
    /// A value for each of those columns.
    pub in_bias: Option<TensorBinding>,
    /// Oldest tap first, `[channels, width]`.
    pub conv_weight: TensorBinding,
    /// `[channels]`
    pub conv_bias: Option<TensorBinding>,
    /// What the kinds of layers differ in.
    pub mixer: MixerWeights,
    /// `[d_inner, d_model]`
    pub out_proj: TensorBinding,
    /// `[d_model]`
    pub out_bias: Option<TensorBinding>,
}

/// What a layer is.
#[derive(Clone, Debug)]
pub enum MixerWeights {
    /// Convolves `d_inner` channels; `in_proj` has them first, then as many of the gate.
    Mamba1(Mamba1Weights),
    /// Convolves the `nheads headdim` channels of the sequence, then `ngroups d_state` of `B` and of `C`. `in_proj` has the
    /// `d_inner = nheads headdim` columns of the gate, then these, then a time step a head.
    Mamba2(Mamba2Weights),
}

/// What a layer remembers: f32, contiguous. It is copied.
#[derive(Clone, Debug)]
pub struct LayerState {
    /// `[batch, width - 1, channels]`, oldest first.
    pub conv: TensorBinding,
    /// `[batch, d_inner, d_state]` of Mamba-1, `[batch, nheads, headdim, d_state]` of Mamba-2.
    pub ssm: TensorBinding,
}

/// A layer ready to run.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub norm: TensorBinding,
    pub in_proj: Packed,
    pub in_bias: Option<TensorBinding>,
    pub split: Split,
    pub conv_weight: TensorBinding,
    pub conv_bias: Option<TensorBinding>,
    pub mixer: Mixer,
    pub out_proj: Packed,
    pub out_bias: Option<TensorBinding>,
    pub window: TensorBinding,
    pub state: TensorBinding,
}

/// What the kinds of layers differ in.
#[derive(Clone, Debug)]
pub(super) enum Mixer {
    Mamba1(Mamba1),
    Mamba2(Mamba2),
}

impl Mixer {
    /// The scale of the norm that the output projection does, which scales by ones from here on.
    fn give_scale(&mut self, client: &Client, lanes: usize) -> Option<TensorBinding> {
        match self {
            Self::Mamba1(_) => None,
            Self::Mamba2(mixer) => mixer.give_scale(client, lanes),
        }
    }
}

/// The vectors between the launches of a layer, a row a sequence, padded with zeros.
#[derive(Clone, Debug)]
pub(super) struct Vectors {
    /// Of the rows, before padding: of `u`, of `gate` and `y`, of `extra`.
    pub widths: [usize; 3],
    /// Behind the convolution, and what the input projection passes on.
    pub u: TensorBinding,
    pub gate: TensorBinding,
    /// Behind the recurrence.
    pub y: TensorBinding,
    /// What a kind has of its own.
    pub extra: TensorBinding,
}

impl Vectors {
    pub fn new(client: &Client, batch: usize, widths: [usize; 3], lanes: usize) -> Self {
        // Not every runtime binds a buffer of nothing.
        let zeros = |len: usize| zeros(client, batch, len.max(1).next_multiple_of(lanes));
        let [u, inner, extra] = widths;
        Self {
            widths,
            u: zeros(u),
            gate: zeros(inner),
            y: zeros(inner),
            extra: zeros(extra),
        }
    }
}

impl Layer {
    /// Checks a layer and copies what it changes or reads in another order.
    pub fn new(
        client: &Client,
        weights: LayerWeights,
        state: Option<LayerState>,
        [batch, d_model]: [usize; 2],
        dtype: ElemType,
        products: Products,
    ) -> Result<Self, KernelError> {
        let conv = &weights.conv_weight.shape;
        if conv.len() != 2 {
            return Err(KernelError::Shape {
                name: "rank of conv_weight",
                expected: vec![2],
                got: vec![conv.len()],
            });
        }
        let [channels, width] = [conv[0], conv[1]];
        // One tap remembers nothing, and there would be no window to bind.
        check_size(
            "width - 1",
            "between 1 and 15",
            width.saturating_sub(1),
            MAX_WIDTH - 1,
        )?;
        let (mut mixer, split, shape) = match weights.mixer {
            MixerWeights::Mamba1(mixer) => mixer.pack(client, channels, dtype)?,
            MixerWeights::Mamba2(mixer) => mixer.pack(client, channels, dtype, products)?,
        };
        check_whole("norm", &weights.norm, &[d_model])?;
        check_shape("in_proj", &weights.in_proj, &[d_model, split.rows()])?;
        check_optional("in_bias", &weights.in_bias, &[split.rows()])?;
        check_whole("conv_weight", &weights.conv_weight, &[channels, width])?;
        check_optional("conv_bias", &weights.conv_bias, &[channels])?;
        check_shape("out_proj", &weights.out_proj, &[split.gate, d_model])?;
        check_optional("out_bias", &weights.out_bias, &[d_model])?;
        let shape: Vec<usize> = std::iter::once(batch).chain(shape).collect();
        let conv = [batch, width - 1, channels];
        let [window, state] = match state {
            Some(state) => {
                check_whole("conv state", &state.conv, &conv)?;
                check_whole("ssm state", &state.ssm, &shape)?;
                [state.conv, state.ssm].map(|state| copy(client, state, 1))
            }
            None => [conv.iter().product(), shape.iter().product()]
                .map(|len| scratch(client, &[1, len])),
        };
        let lanes = lanes(dtype.size(), &client.properties().hardware);
        let columns = |matrix, scale| pack_scaled(client, transposed(matrix), scale, dtype);
        let mut norm = copy(client, weights.norm, lanes);
        let (mut in_scale, mut out_scale) = (None, None);
        if products == Products::Narrow {
            // Whoever normalises apart, as prompts are read, scales by ones.
            let instead = ones(client, d_model, lanes);
            in_scale = Some(std::mem::replace(&mut norm, instead));
            out_scale = mixer.give_scale(client, lanes);
        }
        Ok(Self {
            norm,
            in_proj: columns(weights.in_proj, in_scale),
            in_bias: weights.in_bias,
            split,
            conv_weight: weights.conv_weight,
            conv_bias: weights.conv_bias,
            mixer,
            out_proj: columns(weights.out_proj, out_scale),
            out_bias: weights.out_bias,
            window,
            state,
        })
    }

    /// Makes the state that before any token.
    pub fn forget(&self, client: &Client) {
        fill_with_zeros(client, &self.window);
        fill_with_zeros(client, &self.state);
    }

    /// Channels of the recurrence.
    pub fn d_inner(&self) -> usize {
        self.out_proj.columns
    }

    /// Rows of the vectors between launches.
    pub fn widths(&self) -> [usize; 3] {
        let extra = match &self.mixer {
            Mixer::Mamba1(mixer) => mixer.x_proj.rows,
            Mixer::Mamba2(mixer) => mixer.normed_width(),
        };
        [self.split.before_gate(), self.d_inner(), extra]
    }

    /// All matrices.
    pub fn matrices(&self) -> Vec<&Packed> {
        let mut all = vec![&self.in_proj, &self.out_proj];
        if let Mixer::Mamba1(mixer) = &self.mixer {
            all.extend([&mixer.x_proj, &mixer.dt_proj]);
        }
        all
    }

    /// Reads `x` and adds to it.
    pub fn launch(
        &self,
        client: &Client,
        x: &TensorBinding,
        vectors: &Vectors,
        sizes: Sizes,
    ) -> Result<(), KernelError> {
        self.convolve(client, x, vectors, sizes);
        let (y, norm) = match &self.mixer {
            Mixer::Mamba1(mixer) => {
                mixer.launch(client, &self.state, vectors, sizes);
                (&vectors.y, None)
            }
            Mixer::Mamba2(mixer) => mixer.launch(client, &self.state, vectors, sizes)?,
        };
        let ends = Ends {
            x: y,
            y: x,
            norm,
            bias: self.out_bias.as_ref(),
            add: true,
        };
        launch_product(client, &self.out_proj, ends, sizes);
        Ok(())
    }

    fn convolve(&self, client: &Client, x: &TensorBinding, vectors: &Vectors, sizes: Sizes) {
        let team = self.in_proj.team(client, sizes);
        let (count, cube) = team.cubes(client);
        // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
        unsafe {
            convolve_kernel::launch_unchecked(
                client,
                count,
                cube,
                address_type([&self.in_proj.values]),
                team.lanes,
                self.in_proj.values.clone().into_tensor_arg(),
                x.clone().into_tensor_arg(),
                self.norm.clone().into_tensor_arg(),
                argument(self.in_bias.as_ref()).into(),
                self.conv_weight.clone().into_tensor_arg(),
                argument(self.conv_bias.as_ref()).into(),
                self.window.clone().into_tensor_arg(),
                vectors.u.clone().into_tensor_arg(),
                vectors.gate.clone().into_tensor_arg(),
                sizes.epsilon,
                self.conv_weight.shape[1],
                self.split,
                team,
                present([self.in_bias.is_some(), self.conv_bias.is_some()]),
                self.in_proj.dtype,
            );
        }
    }
}

/// What a step of the recurrence reads and writes, a row a sequence.
pub(super) struct ScanBuffers<'a> {
    pub u: &'a TensorBinding,
    pub gate: &'a TensorBinding,
    pub y: &'a TensorBinding,
}

/// What a product reads besides its matrix, and where it ends.
pub(super) struct Ends<'a> {
    pub x: &'a TensorBinding,
    pub y: &'a TensorBinding,
    pub norm: Option<Scale<'a>>,
    pub bias: Option<&'a TensorBinding>,
    /// Whether the product is added to `y`.
    pub add: bool,
}

/// A norm over all columns.
#[derive(Clone, Copy)]
pub(super) struct Scale<'a> {
    /// Padded with zeros.
    pub gamma: &'a TensorBinding,
    pub epsilon: f32,
}

pub(super) fn launch_product(client: &Client, matrix: &Packed, ends: Ends, sizes: Sizes) {
    let team = matrix.team(client, sizes);
    let (count, cube) = team.cubes(client);
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        product_kernel::launch_unchecked(
            client,
            count,
            cube,
            address_type([&matrix.values, ends.y]),
            team.lanes,
            matrix.values.clone().into_tensor_arg(),
            ends.x.clone().into_tensor_arg(),
            argument(ends.norm.map(|it| it.gamma)).into(),
            argument(ends.bias).into(),
            ends.y.clone().into_tensor_arg(),
            ends.norm.map_or(0.0, |it| it.epsilon),
            ends.add,
            team,
            present([ends.norm.is_some(), ends.bias.is_some()]),
            matrix.dtype,
        );
    }
}

impl Packed {
    fn team(&self, client: &Client, sizes: Sizes) -> Team {
        let shape = [sizes.batch, self.rows, self.columns];
        Team::new(shape, self.lanes, sizes.ptx, &client.properties().hardware)
    }
}

pub(super) fn argument(tensor: Option<&TensorBinding>) -> Option<TensorArg> {
    tensor.map(|it| it.clone().into_tensor_arg())
}
