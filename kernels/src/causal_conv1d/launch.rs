//! Launches the kernels.

use cubecl::prelude::*;

use super::backward::conv_backward_kernel;
use super::forward::conv_kernel;
use super::geometry::{BACKWARD, FORWARD, cubes};
use super::{ConvGradients, ConvInputs, ConvOutputs, ConvUpstream, Dims};
use crate::KernelError;
use crate::pointwise::takes_ptx;
use crate::sums::{Parts, sum_parts};
use crate::tensors::{
    check_bindings, check_optional, check_rows, check_whole, checked_address_type, present,
    processors, scratch,
};

/// Buffers of the convolution with all options, and one for shapes and scalars.
const BINDINGS: usize = 8;

/// Buffers of the gradient kernel with all options, and one for shapes and scalars.
const BINDINGS_BACKWARD: usize = 11;

/// Runs the convolution; the outputs are written once the client's stream gets there.
///
/// # Errors
///
/// If a shape or a stride is not what [`ConvInputs`] and [`ConvOutputs`] say, or the device lacks what
/// the kernel needs. Nothing was launched then.
pub fn causal_conv1d(
    client: &Client,
    inputs: ConvInputs,
    outputs: ConvOutputs,
) -> Result<(), KernelError> {
    let dims = inputs.check()?;
    check_whole("y", &outputs.y, &dims.sequence())?;
    check_optional("final_state", &outputs.final_state, &dims.window())?;
    check_bindings(client, BINDINGS)?;
    let tensors = inputs.tensors().chain([&outputs.y]);
    let address = checked_address_type(client, tensors.chain(&outputs.final_state))?;
    if dims.batch * dims.channels == 0 {
        return Ok(());
    }
    // A window of no entries is not bound.
    let windowed = dims.width > 1;
    let initial_state = inputs.initial_state.filter(|_| windowed);
    let final_state = outputs.final_state.filter(|_| windowed);

    let hardware = &client.properties().hardware;
    let size = inputs.dtype.size();
    let optional = [&inputs.bias, &initial_state, &final_state];
    let parameters = optional.into_iter().flatten().chain([&inputs.weight]);
    let lanes = FORWARD.lanes(
        dims.channels,
        &[(&inputs.x, size), (&outputs.y, size)],
        parameters.map(|it| (it, size_of::<f32>())),
        hardware,
    );
    let geometry = FORWARD.geometry(dims.width, lanes, inputs.silu, takes_ptx(client));
    let runs = FORWARD.runs(&dims, lanes, processors(hardware));
    let given = present([
        inputs.bias.is_some(),
        initial_state.is_some(),
        inputs.seq_idx.is_some(),
        final_state.is_some(),
    ]);
    let (count, cube) = cubes(client, &dims, lanes, runs);
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        conv_kernel::launch_unchecked(
            client,
            count,
            cube,
            address,
            lanes,
            inputs.x.into_tensor_arg(),
            inputs.weight.into_tensor_arg(),
            inputs.bias.map(|it| it.into_tensor_arg()).into(),
            initial_state.map(|it| it.into_tensor_arg()).into(),
            inputs.seq_idx.map(|it| it.into_tensor_arg()).into(),
            outputs.y.into_tensor_arg(),
            final_state.map(|it| it.into_tensor_arg()).into(),
            runs.len as u32,
            runs.count as u32,
            geometry,
            given,
            [inputs.dtype, inputs.index_dtype],
        );
    }
    Ok(())
}

/// Computes the gradients of every input; they are written once the client's stream gets there.
/// Two runs give the same bits.
///
/// # Errors
///
/// If a shape or a stride is not what the arguments' types say, or the device lacks what the kernels
/// need. Nothing was launched then.
pub fn causal_conv1d_backward(
    client: &Client,
    inputs: ConvInputs,
    upstream: ConvUpstream,
    gradients: ConvGradients,
) -> Result<(), KernelError> {
    let dims = inputs.check()?;
    check(&dims, &upstream, &gradients)?;
    check_bindings(client, BINDINGS_BACKWARD)?;
    let windowed = dims.width > 1;
    let initial_state = inputs.initial_state.filter(|_| windowed);
    let grad_final = upstream.final_state.filter(|_| windowed);
    let grad_bias = gradients.bias.filter(|_| inputs.bias.is_some());
    let grad_initial = gradients.initial_state.filter(|_| initial_state.is_some());

    let hardware = &client.properties().hardware;
    let size = inputs.dtype.size();
    let optional = [&inputs.bias, &initial_state, &grad_final, &grad_initial];
    let parameters = optional.into_iter().flatten().chain([&inputs.weight]);
    let lanes = BACKWARD.lanes(
        dims.channels,
        &[(&inputs.x, size), (&upstream.y, size), (&gradients.x, size)],
        parameters.map(|it| (it, size_of::<f32>())),
        hardware,
    );
    let geometry = BACKWARD.geometry(dims.width, lanes, inputs.silu, takes_ptx(client));
    let runs = BACKWARD.runs(&dims, lanes, processors(hardware));
    let rows = dims.width + usize::from(grad_bias.is_some());
    let parts = scratch(client, &[dims.batch, runs.count, rows, dims.channels]);
    let needed = [&inputs.x, &inputs.weight, &upstream.y, &gradients.x, &parts];
    let windows = [&initial_state, &grad_final, &grad_initial, &inputs.seq_idx];
    let tensors = needed.into_iter().chain(windows.into_iter().flatten());
    let address = checked_address_type(client, tensors)?;
    if dims.batch * dims.channels > 0 {
        let (count, cube) = cubes(client, &dims, lanes, runs);
        let given = present([
            inputs.bias.is_some(),
            initial_state.is_some(),
            inputs.seq_idx.is_some(),
            grad_final.is_some(),
            grad_initial.is_some(),
        ]);
        // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
        unsafe {
            conv_backward_kernel::launch_unchecked(
                client,
                count,
                cube,
                address,
                lanes,
                inputs.x.into_tensor_arg(),
                inputs.weight.into_tensor_arg(),
                inputs.bias.map(|it| it.into_tensor_arg()).into(),
                initial_state.map(|it| it.into_tensor_arg()).into(),
                inputs.seq_idx.map(|it| it.into_tensor_arg()).into(),
                upstream.y.into_tensor_arg(),
                grad_final.map(|it| it.into_tensor_arg()).into(),
                gradients.x.into_tensor_arg(),
                grad_initial.map(|it| it.into_tensor_arg()).into(),
                parts.clone().into_tensor_arg(),
                runs.len as u32,
                runs.count as u32,
                geometry,
                given,
                [inputs.dtype, inputs.index_dtype],
            );
        }
    }
    let sums = Parts {
        parts,
        half: 0,
        rows: dims.batch * runs.count,
        inner: dims.channels,
        out: gradients.weight,
        tail: grad_bias,
    };
    sum_parts(client, sums, f32::elem_type_native());
    Ok(())
}

fn check(
    dims: &Dims,
    upstream: &ConvUpstream,
    gradients: &ConvGradients,
) -> Result<(), KernelError> {
    check_rows("grad_y", &upstream.y, dims.sequence())?;
    check_optional("grad_final_state", &upstream.final_state, &dims.window())?;
    check_whole("grad_x", &gradients.x, &dims.sequence())?;
    check_whole(
        "grad_weight",
        &gradients.weight,
        &[dims.channels, dims.width],
    )?;
    check_optional("grad_bias", &gradients.bias, &[dims.channels])?;
    check_optional(
        "grad_initial_state",
        &gradients.initial_state,
        &dims.window(),
    )
}
