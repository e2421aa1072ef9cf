//! One layer: what it holds and its four launches.

use cubecl::ir::FloatKind;
use cubecl::prelude::*;

use super::model::{Buffers, Sizes};
use super::pack::{Packed, copy, fill_with_zeros, pack, transposed};
use super::product::{convolve_kernel, product_kernel};
use super::scan::{ScanStep, scan_step_kernel};
use super::team::{Team, lanes};
use crate::KernelError;
use crate::tensors::{address_type, check_optional, check_shape, check_size, check_whole, scratch};

/// Taps of the longest filter: a unit keeps them in registers.
const MAX_WIDTH: usize = 16;

/// The parameters of a layer: f32, contiguous but for the matrices, which may have any strides.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Scale of the norm, `[d_model]`.
    pub norm: TensorBinding,
    /// `[d_model, 2 d_inner]`: the sequence, then the gate.
    pub in_proj: TensorBinding,
    /// `[2 d_inner]`
    pub in_bias: Option<TensorBinding>,
    /// Oldest tap first, `[d_inner, width]`.
    pub conv_weight: TensorBinding,
    /// `[d_inner]`
    pub conv_bias: Option<TensorBinding>,
    /// `[d_inner, dt_rank + 2 d_state]`: the low-rank time step, then `B`, then `C`.
    pub x_proj: TensorBinding,
    /// `[dt_rank, d_inner]`
    pub dt_proj: TensorBinding,
    /// `[d_inner]`
    pub dt_bias: Option<TensorBinding>,
    /// `A` itself, not its logarithm, `[d_inner, d_state]`.
    pub a: TensorBinding,
    /// Skip connection, `[d_inner]`.
    pub d: TensorBinding,
    /// `[d_inner, d_model]`
    pub out_proj: TensorBinding,
    /// `[d_model]`
    pub out_bias: Option<TensorBinding>,
}

/// What a layer remembers: f32, contiguous. It is copied.
#[derive(Clone, Debug)]
pub struct LayerState {
    /// `[batch, width - 1, d_inner]`, oldest first.
    pub conv: TensorBinding,
    /// `[batch, d_inner, d_state]`
    pub ssm: TensorBinding,
}

/// A layer ready to run.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub norm: TensorBinding,
    pub in_proj: Packed,
    pub in_bias: Option<TensorBinding>,
    pub conv_weight: TensorBinding,
    pub conv_bias: Option<TensorBinding>,
    pub x_proj: Packed,
    pub dt_proj: Packed,
    pub dt_bias: Option<TensorBinding>,
    /// `[d_inner, d_state]`
    pub a: TensorBinding,
    pub d: TensorBinding,
    pub d_state: usize,
    pub out_proj: Packed,
    pub out_bias: Option<TensorBinding>,
    pub window: TensorBinding,
    pub state: TensorBinding,
}

impl LayerWeights {
    /// `d_inner`, `width` and `d_state`, once every shape fits them.
    fn check(&self, d_model: usize) -> Result<[usize; 3], KernelError> {
        let (conv, a) = (&self.conv_weight.shape, &self.a.shape);
        if conv.len() != 2 || a.len() != 2 || self.dt_proj.shape.len() != 2 {
            return Err(KernelError::Shape {
                name: "ranks of conv_weight, a and dt_proj",
                expected: vec![2, 2, 2],
                got: vec![conv.len(), a.len(), self.dt_proj.shape.len()],
            });
        }
        let ([d_inner, width], d_state) = ([conv[0], conv[1]], a[1]);
        let dt_rank = self.dt_proj.shape[0];
        // One tap remembers nothing, and there would be no window to bind.
        check_size(
            "width - 1",
            "between 1 and 15",
            width.saturating_sub(1),
            MAX_WIDTH - 1,
        )?;
        check_size("d_state", "between 1 and 256", d_state, 256)?;
        check_size("dt_rank", "at least 1", dt_rank, usize::MAX)?;
        check_whole("norm", &self.norm, &[d_model])?;
        check_shape("in_proj", &self.in_proj, &[d_model, 2 * d_inner])?;
        check_optional("in_bias", &self.in_bias, &[2 * d_inner])?;
        check_whole("conv_weight", &self.conv_weight, &[d_inner, width])?;
        check_optional("conv_bias", &self.conv_bias, &[d_inner])?;
        check_shape("x_proj", &self.x_proj, &[d_inner, dt_rank + 2 * d_state])?;
        check_shape("dt_proj", &self.dt_proj, &[dt_rank, d_inner])?;
        check_optional("dt_bias", &self.dt_bias, &[d_inner])?;
        check_whole("a", &self.a, &[d_inner, d_state])?;
        check_whole("d", &self.d, &[d_inner])?;
        check_shape("out_proj", &self.out_proj, &[d_inner, d_model])?;
        check_optional("out_bias", &self.out_bias, &[d_model])?;
        Ok([d_inner, width, d_state])
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
    ) -> Result<Self, KernelError> {
        let [d_inner, width, d_state] = weights.check(d_model)?;
        let (conv, ssm) = (batch * (width - 1) * d_inner, batch * d_inner * d_state);
        let [window, state] = match state {
            Some(LayerState { conv, ssm }) => {
                check_whole("conv state", &conv, &[batch, width - 1, d_inner])?;
                check_whole("ssm state", &ssm, &[batch, d_inner, d_state])?;
                [conv, ssm].map(|state| copy(client, state, 1))
            }
            None => [conv, ssm].map(|len| scratch(client, &[1, len])),
        };
        let lanes = lanes(dtype.size(), &client.properties().hardware);
        let columns = |matrix| pack(client, transposed(matrix), dtype);
        Ok(Self {
            norm: copy(client, weights.norm, lanes),
            in_proj: columns(weights.in_proj),
            in_bias: weights.in_bias,
            conv_weight: weights.conv_weight,
            conv_bias: weights.conv_bias,
            x_proj: columns(weights.x_proj),
            dt_proj: columns(weights.dt_proj),
            dt_bias: weights.dt_bias,
            a: copy(client, weights.a, 1),
            d: weights.d,
            d_state,
            out_proj: columns(weights.out_proj),
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
        self.x_proj.columns
    }

    /// Channels, and columns of the projection that the recurrence reads: the rows of the vectors between launches.
    pub fn widths(&self) -> [usize; 2] {
        [self.d_inner(), self.x_proj.rows]
    }

    /// Reads `x` and adds to it.
    pub fn launch(&self, client: &Client, buffers: &Buffers, sizes: Sizes) {
        self.convolve(client, buffers, sizes);
        launch_product(
            client,
            &self.x_proj,
            Ends {
                x: &buffers.u,
                y: &buffers.projected,
                norm: None,
                bias: None,
                add: false,
            },
            sizes,
        );
        let vectors = ScanBuffers {
            projected: &buffers.projected,
            u: &buffers.u,
            gate: &buffers.gate,
            y: &buffers.y,
        };
        self.scan(client, vectors, sizes, ElemType::Float(FloatKind::F32));
        launch_product(
            client,
            &self.out_proj,
            Ends {
                x: &buffers.y,
                y: &buffers.x,
                norm: None,
                bias: self.out_bias.as_ref(),
                add: true,
            },
            sizes,
        );
    }

    fn convolve(&self, client: &Client, buffers: &Buffers, sizes: Sizes) {
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
                buffers.x.clone().into_tensor_arg(),
                self.norm.clone().into_tensor_arg(),
                argument(self.in_bias.as_ref()).into(),
                self.conv_weight.clone().into_tensor_arg(),
                argument(self.conv_bias.as_ref()).into(),
                self.window.clone().into_tensor_arg(),
                buffers.u.clone().into_tensor_arg(),
                buffers.gate.clone().into_tensor_arg(),
                sizes.epsilon,
                self.conv_weight.shape[1],
                team,
                self.in_proj.dtype,
            );
        }
    }

    /// One step of the recurrence, over the vectors of `buffers`, which are of type `dtype` but for `projected`.
    pub fn scan(&self, client: &Client, buffers: ScanBuffers, sizes: Sizes, dtype: ElemType) {
        let sizes_of_all = [sizes.batch, self.d_inner(), self.d_state];
        let (rank, lanes) = (self.dt_proj.columns, self.dt_proj.lanes);
        let step = ScanStep::new(sizes_of_all, rank, lanes, sizes.ptx);
        let (count, cube) = step.cubes(client);
        // SAFETY: as above.
        unsafe {
            scan_step_kernel::launch_unchecked(
                client,
                count,
                cube,
                address_type([&self.state]),
                lanes,
                step.states(),
                self.dt_proj.values.clone().into_tensor_arg(),
                argument(self.dt_bias.as_ref()).into(),
                buffers.projected.clone().into_tensor_arg(),
                self.a.clone().into_tensor_arg(),
                self.d.clone().into_tensor_arg(),
                buffers.u.clone().into_tensor_arg(),
                buffers.gate.clone().into_tensor_arg(),
                self.state.clone().into_tensor_arg(),
                buffers.y.clone().into_tensor_arg(),
                step,
                [self.dt_proj.dtype, dtype],
            );
        }
    }
}

/// What a step of the recurrence reads and writes, a row a sequence.
pub(super) struct ScanBuffers<'a> {
    pub projected: &'a TensorBinding,
    pub u: &'a TensorBinding,
    pub gate: &'a TensorBinding,
    pub y: &'a TensorBinding,
}

/// What a product reads besides its matrix, and where it ends.
pub(super) struct Ends<'a> {
    pub x: &'a TensorBinding,
    pub y: &'a TensorBinding,
    pub norm: Option<&'a TensorBinding>,
    pub bias: Option<&'a TensorBinding>,
    /// Whether the product is added to `y`.
    pub add: bool,
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
            argument(ends.norm).into(),
            argument(ends.bias).into(),
            ends.y.clone().into_tensor_arg(),
            sizes.epsilon,
            ends.add,
            team,
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

fn argument(tensor: Option<&TensorBinding>) -> Option<TensorArg> {
    tensor.map(|it| it.clone().into_tensor_arg())
}
