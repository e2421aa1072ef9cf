//! What a layer of Mamba-1 has of its own.

use cubecl::ir::FloatKind;
use cubecl::prelude::*;

use super::{Ends, Mixer, ScanBuffers, Vectors, argument, launch_product};
use crate::KernelError;
use crate::decode::model::Sizes;
use crate::decode::pack::{Packed, copy, pack, transposed};
use crate::decode::product::Split;
use crate::decode::scan::{ScanStep, scan_step_kernel};
use crate::tensors::{address_type, check_optional, check_shape, check_size, check_whole};

/// The parameters that a layer of Mamba-1 has of its own.
#[derive(Clone, Debug)]
pub struct Mamba1Weights {
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
}

/// The same, ready to run.
#[derive(Clone, Debug)]
pub(in crate::decode) struct Mamba1 {
    pub x_proj: Packed,
    pub dt_proj: Packed,
    pub dt_bias: Option<TensorBinding>,
    /// `[d_inner, d_state]`
    pub a: TensorBinding,
    pub d: TensorBinding,
    pub d_state: usize,
}

impl Mamba1Weights {
    /// The mixer of `d_inner` channels, what its input projection holds, and the shape of a sequence's state.
    pub(super) fn pack(
        self,
        client: &Client,
        d_inner: usize,
        dtype: ElemType,
    ) -> Result<(Mixer, Split, Vec<usize>), KernelError> {
        let (a, dt_proj) = (&self.a.shape, &self.dt_proj.shape);
        if a.len() != 2 || dt_proj.len() != 2 {
            return Err(KernelError::Shape {
                name: "ranks of a and dt_proj",
                expected: vec![2, 2],
                got: vec![a.len(), dt_proj.len()],
            });
        }
        let (d_state, dt_rank) = (a[1], dt_proj[0]);
        check_size("d_state", "between 1 and 256", d_state, 256)?;
        check_size("dt_rank", "at least 1", dt_rank, usize::MAX)?;
        check_shape("x_proj", &self.x_proj, &[d_inner, dt_rank + 2 * d_state])?;
        check_shape("dt_proj", &self.dt_proj, &[dt_rank, d_inner])?;
        check_optional("dt_bias", &self.dt_bias, &[d_inner])?;
        check_whole("a", &self.a, &[d_inner, d_state])?;
        check_whole("d", &self.d, &[d_inner])?;
        let columns = |matrix| pack(client, transposed(matrix), dtype);
        let mixer = Mamba1 {
            x_proj: columns(self.x_proj),
            dt_proj: columns(self.dt_proj),
            dt_bias: self.dt_bias,
            a: copy(client, self.a, 1),
            d: self.d,
            d_state,
        };
        let split = Split {
            first: 0,
            channels: d_inner,
            passed: 0,
            gate: d_inner,
            silu: true,
        };
        Ok((Mixer::Mamba1(mixer), split, vec![d_inner, d_state]))
    }
}

impl Mamba1 {
    /// From `u` and `gate` to `y`.
    pub(super) fn launch(
        &self,
        client: &Client,
        state: &TensorBinding,
        vectors: &Vectors,
        sizes: Sizes,
    ) {
        let ends = Ends {
            x: &vectors.u,
            y: &vectors.extra,
            norm: None,
            bias: None,
            add: false,
        };
        launch_product(client, &self.x_proj, ends, sizes);
        let buffers = ScanBuffers {
            u: &vectors.u,
            gate: &vectors.gate,
            y: &vectors.y,
        };
        let single = ElemType::Float(FloatKind::F32);
        self.scan(client, state, &vectors.extra, buffers, sizes, single);
    }

    /// One step of the recurrence, over the vectors of `buffers`, which are of type `dtype` but for `projected`.
    pub fn scan(
        &self,
        client: &Client,
        state: &TensorBinding,
        projected: &TensorBinding,
        buffers: ScanBuffers,
        sizes: Sizes,
        dtype: ElemType,
    ) {
        let sizes_of_all = [sizes.batch, self.x_proj.columns, self.d_state];
        let (rank, lanes) = (self.dt_proj.columns, self.dt_proj.lanes);
        let step = ScanStep::new(sizes_of_all, rank, lanes, sizes.ptx);
        let (count, cube) = step.cubes(client);
        // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
        unsafe {
            scan_step_kernel::launch_unchecked(
                client,
                count,
                cube,
                address_type([state]),
                lanes,
                step.states(),
                self.dt_proj.values.clone().into_tensor_arg(),
                argument(self.dt_bias.as_ref()).into(),
                projected.clone().into_tensor_arg(),
                self.a.clone().into_tensor_arg(),
                self.d.clone().into_tensor_arg(),
                buffers.u.clone().into_tensor_arg(),
                buffers.gate.clone().into_tensor_arg(),
                state.clone().into_tensor_arg(),
                buffers.y.clone().into_tensor_arg(),
                step,
                [self.dt_proj.dtype, dtype],
            );
        }
    }
}
