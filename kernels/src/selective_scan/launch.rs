//! Launches the forward kernels.

use cubecl::prelude::*;

use super::chunks::{carry_kernel, summary_kernel};
use super::forward::scan_kernel;
use super::geometry::{Geometry, chunk_len};
use super::{Dims, ScanInputs, ScanOutputs, Strategy, as_chunk, cube_count};
use crate::KernelError;
use crate::tensors::{
    address_type, check_bindings, check_optional, check_whole, checked_address_type, present,
    scratch,
};

/// Buffers of the scan with all options, and one for shapes and scalars.
const BINDINGS: usize = 14;

/// Runs the scan; the outputs are written once the client's stream gets there.
///
/// # Errors
///
/// If a shape or a stride is not what [`ScanInputs`] and [`ScanOutputs`] say, or the device lacks
/// what the kernels need. Nothing was launched then.
pub fn selective_scan(
    client: &Client,
    inputs: ScanInputs,
    outputs: ScanOutputs,
    strategy: Strategy,
) -> Result<(), KernelError> {
    let dims = inputs.check()?;
    check_whole("y", &outputs.y, &dims.sequence())?;
    check_whole("final_state", &outputs.final_state, &dims.state())?;
    check_optional("checkpoints", &outputs.checkpoints, &dims.checkpoints())?;
    check_bindings(client, BINDINGS)?;
    let hardware = &client.properties().hardware;
    let geometry =
        Geometry::forward(dims.d_state, inputs.delta_softplus, hardware)?.compiled_for(client);
    let chunk_len = chunk_len(strategy, &dims, &geometry, hardware);
    let count = cube_count(client, &dims, geometry.channels, chunk_len)?;

    let edge = inputs.initial_state.clone().map(|it| as_chunk(it, &dims));
    let starts = match dims.seq_len > chunk_len {
        true => Some(edge_states(
            client,
            &Summary {
                x: &inputs.u,
                projection: &inputs.b,
                z: None,
                edge,
                backwards: false,
            },
            &inputs,
            &dims,
            geometry,
            chunk_len,
        )?),
        false => edge,
    };
    let written = [&outputs.y, &outputs.final_state];
    let optional = [&outputs.checkpoints, &starts];
    let others = written.into_iter().chain(optional.into_iter().flatten());
    let address = checked_address_type(client, inputs.tensors().chain(others))?;
    let given = present([
        inputs.d.is_some(),
        inputs.z.is_some(),
        inputs.delta_bias.is_some(),
        inputs.seq_idx.is_some(),
        starts.is_some(),
        outputs.checkpoints.is_some(),
    ]);
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        scan_kernel::launch_unchecked(
            client,
            count,
            CubeDim::new_2d(geometry.channels as u32, geometry.groups as u32),
            address,
            geometry.width,
            inputs.u.into_tensor_arg(),
            inputs.delta.into_tensor_arg(),
            inputs.a.into_tensor_arg(),
            inputs.b.into_tensor_arg(),
            inputs.c.into_tensor_arg(),
            inputs.d.map(|it| it.into_tensor_arg()).into(),
            inputs.z.map(|it| it.into_tensor_arg()).into(),
            inputs.delta_bias.map(|it| it.into_tensor_arg()).into(),
            inputs.seq_idx.map(|it| it.into_tensor_arg()).into(),
            starts.map(|it| it.into_tensor_arg()).into(),
            outputs.y.into_tensor_arg(),
            outputs.final_state.into_tensor_arg(),
            outputs.checkpoints.map(|it| it.into_tensor_arg()).into(),
            chunk_len as u32,
            geometry,
            given,
            [inputs.dtype, inputs.index_dtype],
        );
    }
    Ok(())
}

/// One direction of the recurrence over chunks.
pub(super) struct Summary<'a> {
    /// `u`, or backwards the gradient of `y`.
    pub x: &'a TensorBinding,
    /// `b`, or backwards `c`.
    pub projection: &'a TensorBinding,
    /// Backwards, the gate.
    pub z: Option<&'a TensorBinding>,
    /// What the first chunk begins with, or backwards the last: `[batch, 1, d_state, d_inner]`.
    pub edge: Option<TensorBinding>,
    pub backwards: bool,
}

/// The state before each chunk, or backwards the gradient of the state after each:
/// `[batch, chunks, d_state, d_inner]`.
pub(super) fn edge_states(
    client: &Client,
    summary: &Summary,
    inputs: &ScanInputs,
    dims: &Dims,
    geometry: Geometry,
    chunk_len: usize,
) -> Result<TensorBinding, KernelError> {
    let chunks = dims.seq_len.div_ceil(chunk_len);
    // Nobody asks what the last chunk does to the state.
    let summarised = Dims {
        seq_len: (chunks - 1) * chunk_len,
        ..*dims
    };
    let count = cube_count(client, &summarised, geometry.channels, chunk_len)?;
    let shape = [dims.batch, chunks, dims.d_state, dims.d_inner];
    let local = scratch(client, &shape);
    let decay = scratch(client, &shape);
    let optional = |tensor: Option<&TensorBinding>| tensor.cloned().map(|it| it.into_tensor_arg());
    let address = checked_address_type(client, inputs.tensors().chain([summary.x, &local]))?;
    let given = present([
        summary.z.is_some(),
        inputs.delta_bias.is_some(),
        inputs.seq_idx.is_some(),
    ]);
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        summary_kernel::launch_unchecked(
            client,
            count,
            CubeDim::new_2d(geometry.channels as u32, geometry.groups as u32),
            address,
            geometry.width,
            summary.x.clone().into_tensor_arg(),
            inputs.delta.clone().into_tensor_arg(),
            inputs.a.clone().into_tensor_arg(),
            summary.projection.clone().into_tensor_arg(),
            optional(summary.z).into(),
            optional(inputs.delta_bias.as_ref()).into(),
            optional(inputs.seq_idx.as_ref()).into(),
            local.clone().into_tensor_arg(),
            decay.clone().into_tensor_arg(),
            chunk_len as u32,
            summary.backwards,
            geometry,
            given,
            [inputs.dtype, inputs.index_dtype],
        );
    }
    let carries = dims.batch * dims.d_state * dims.d_inner;
    let units = CubeDim::new_1d(CARRY_UNITS);
    let address = address_type([&local]);
    // SAFETY: units beyond the states end at once; every index lies inside its tensor.
    unsafe {
        carry_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, carries, units),
            units,
            address,
            local.clone().into_tensor_arg(),
            decay.into_tensor_arg(),
            optional(summary.edge.as_ref()).into(),
            summary.backwards,
        );
    }
    Ok(local)
}

/// Units of a cube that walks over chunks: small, so that few states spread over the device.
const CARRY_UNITS: u32 = 64;
