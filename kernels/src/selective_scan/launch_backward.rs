//! Launches the gradient kernels.

use cubecl::prelude::*;

use super::backward::scan_backward_kernel;
use super::geometry::{Geometry, chunk_len};
use super::launch::{Summary, edge_states};
use super::slices::{Projections, Slices, sum_projections};
use super::{Dims, ScanGradients, ScanInputs, ScanUpstream, Strategy, as_chunk, cube_count};
use crate::KernelError;
use crate::sums::{Parts, sum_parts};
use crate::tensors::{
    check_bindings, check_optional, check_rows, check_whole, checked_address_type, present, scratch,
};

/// Buffers of the gradient kernel with all options, and one for shapes and scalars.
const BINDINGS: usize = 21;

/// Computes the gradients of every input; they are written once the client's stream gets there.
/// Two runs give the same bits.
///
/// # Errors
///
/// If a shape or a stride is not what the arguments' types say, or the device lacks what the kernels
/// need. Nothing was launched then.
pub fn selective_scan_backward(
    client: &Client,
    inputs: ScanInputs,
    upstream: ScanUpstream,
    gradients: ScanGradients,
    strategy: Strategy,
) -> Result<(), KernelError> {
    let dims = inputs.check()?;
    check(&dims, &inputs, &upstream, &gradients)?;
    check_bindings(client, BINDINGS)?;
    let hardware = &client.properties().hardware;
    let geometry =
        Geometry::backward(dims.d_state, inputs.delta_softplus, hardware)?.compiled_for(client);
    let chunk_len = chunk_len(strategy, &dims, &geometry, hardware);
    let chunks = dims.seq_len.div_ceil(chunk_len);
    let count = cube_count(client, &dims, geometry.channels, chunk_len)?;

    let edge = upstream.final_state.map(|it| as_chunk(it, &dims));
    let ends = match chunks > 1 {
        true => Some(edge_states(
            client,
            &Summary {
                x: &upstream.y,
                projection: &inputs.c,
                z: inputs.z.as_ref(),
                edge,
                backwards: true,
            },
            &inputs,
            &dims,
            Geometry::forward(dims.d_state, inputs.delta_softplus, hardware)?.compiled_for(client),
            chunk_len,
        )?),
        false => edge,
    };
    let [batch, seq_len, d_state] = dims.projection();
    let blocks = dims.d_inner.div_ceil(geometry.channels);
    let slices = Slices::new(chunk_len, &geometry);
    let parts_bc = scratch(client, &[2, blocks, batch, chunks * slices.len, d_state]);
    let parts_a = scratch(client, &[batch, chunks, d_state, dims.d_inner]);
    // A launch reads one and writes the other.
    let carries = [(); 2].map(|()| scratch(client, &[batch, chunks, d_state, dims.d_inner]));
    let parts_channels = scratch(client, &[2, batch, chunks, geometry.groups, dims.d_inner]);
    let grad_z = gradients.z.filter(|_| inputs.z.is_some());
    let grad_start = gradients
        .initial_state
        .filter(|_| inputs.initial_state.is_some());

    let others = [
        &upstream.checkpoints,
        &upstream.y,
        &gradients.u,
        &parts_bc,
        &parts_a,
        &parts_channels,
        &carries[0],
    ];
    let others = others.into_iter().chain(&ends).chain(&grad_start);
    let address = checked_address_type(client, inputs.tensors().chain(others))?;
    // Chunks are whole tiles, but for the last one.
    let ragged = !seq_len.is_multiple_of(geometry.tile);
    let given = present([
        inputs.d.is_some(),
        inputs.z.is_some(),
        inputs.delta_bias.is_some(),
        inputs.seq_idx.is_some(),
        grad_z.is_some(),
        grad_start.is_some(),
    ]);
    let argument = |tensor: &TensorBinding| tensor.clone().into_tensor_arg();
    let optional = |tensor: &Option<TensorBinding>| tensor.as_ref().map(argument);
    let out = Projections {
        b: &gradients.b,
        c: &gradients.c,
        dtype: inputs.dtype,
    };
    for launch in 0..slices.count {
        let slice = slices.count - 1 - launch;
        let [before, carry] = [(launch + 1) % 2, launch % 2].map(|it| &carries[it]);
        let after = match launch {
            0 => ends.as_ref(),
            _ => Some(before),
        };
        // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
        unsafe {
            scan_backward_kernel::launch_unchecked(
                client,
                count.clone(),
                CubeDim::new_2d(geometry.channels as u32, geometry.groups as u32),
                address,
                geometry.width,
                argument(&inputs.u),
                argument(&inputs.delta),
                argument(&inputs.a),
                argument(&inputs.b),
                argument(&inputs.c),
                optional(&inputs.d).into(),
                optional(&inputs.z).into(),
                optional(&inputs.delta_bias).into(),
                optional(&inputs.seq_idx).into(),
                argument(&upstream.checkpoints),
                argument(&upstream.y),
                argument(after.unwrap_or(before)),
                argument(&gradients.u),
                argument(&gradients.delta),
                optional(&grad_z).into(),
                argument(&parts_bc),
                argument(&parts_a),
                argument(&parts_channels),
                argument(carry),
                optional(&grad_start).into(),
                chunk_len as u32,
                (slice * slices.len) as u32,
                slices.len as u32,
                u32::from(after.is_some()),
                u32::from(launch > 0),
                ragged,
                geometry,
                given,
                [inputs.dtype, inputs.index_dtype],
            );
        }
        sum_projections(client, &parts_bc, &out, &dims, slices, slice, address);
    }

    let f32_type = f32::elem_type_native();
    let channel_rows = batch * chunks * geometry.groups;
    let sum = |parts: &TensorBinding, out, half, rows, inner, dtype| {
        sum_parts(
            client,
            Parts {
                parts: parts.clone(),
                half,
                rows,
                inner,
                out,
                tail: None,
            },
            dtype,
        )
    };
    sum(
        &parts_a,
        gradients.a,
        0,
        batch * chunks,
        dims.d_inner,
        f32_type,
    );
    let of_channels = [
        (gradients.d, inputs.d.is_some()),
        (gradients.delta_bias, inputs.delta_bias.is_some()),
    ];
    for (half, (gradient, wanted)) in of_channels.into_iter().enumerate() {
        if let Some(gradient) = gradient.filter(|_| wanted) {
            sum(
                &parts_channels,
                gradient,
                half,
                channel_rows,
                dims.d_inner,
                f32_type,
            );
        }
    }
    Ok(())
}

fn check(
    dims: &Dims,
    inputs: &ScanInputs,
    upstream: &ScanUpstream,
    gradients: &ScanGradients,
) -> Result<(), KernelError> {
    check_whole("checkpoints", &upstream.checkpoints, &dims.checkpoints())?;
    check_rows("grad_y", &upstream.y, dims.sequence())?;
    check_optional("grad_final_state", &upstream.final_state, &dims.state())?;
    check_whole("grad_u", &gradients.u, &dims.sequence())?;
    check_whole("grad_delta", &gradients.delta, &dims.sequence())?;
    check_whole("grad_a", &gradients.a, &inputs.a.shape)?;
    check_whole("grad_b", &gradients.b, &dims.projection())?;
    check_whole("grad_c", &gradients.c, &dims.projection())?;
    check_optional("grad_d", &gradients.d, &[dims.d_inner])?;
    check_optional("grad_z", &gradients.z, &dims.sequence())?;
    check_optional("grad_delta_bias", &gradients.delta_bias, &[dims.d_inner])?;
    check_optional(
        "grad_initial_state",
        &gradients.initial_state,
        &dims.state(),
    )
}
