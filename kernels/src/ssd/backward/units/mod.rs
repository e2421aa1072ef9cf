//! The gradients on plain units: for every device, and small enough for every compiler.
//!
//! 1. what every interval adds to the state's gradient ([`states`]), and the walk over intervals, as on tensor cores;
//! 2. some intervals at a time, so that scratch is bounded: the states before their tiles and the gradients after them
//!    ([`states`]), what is for pairs of positions ([`pairs`]), the gradients of `c` and `b` ([`projections`]) and of `x`
//!    ([`inputs`]);
//! 3. the steps' gradients and sums, as on tensor cores.
//!
//! Sizes are no part of what is compiled: one compile serves all models. There are no atomics.

mod inputs;
mod pairs;
mod plan;
mod positions;
mod projections;
mod states;
mod tiles;

use cubecl::prelude::*;

use super::super::steps::steps as forward_steps;
use super::super::{Dims, SsdGradients, SsdInputs, SsdUpstream, Strategy};
use super::{Common, Finish, heads_a_part};
use crate::KernelError;
use crate::sums::{Parts, sum_parts};
use crate::tensors::{
    check_bindings, checked_address_type, checked_grid, present, processors, scratch,
};
use inputs::inputs_kernel;
use pairs::pairs_kernel;
use plan::Plan;
use positions::PLANES;
use projections::projections_kernel;
use states::states_kernel;

/// Buffers of the kernel that has most, with all options, and one for shapes and scalars.
const BINDINGS: usize = 12;

/// Bytes of the states before tiles, and of their gradients, that intervals are taken for at once: what every device binds.
const MAX_STATES: usize = 128 << 20;

/// Cubes that run on a multiprocessor at once, about.
const CUBES_A_PROCESSOR: usize = 4;

/// Launches all of it; `dims` and the tensors were checked.
pub(super) fn launch(
    client: &Client,
    inputs: SsdInputs,
    upstream: SsdUpstream,
    gradients: SsdGradients,
    dims: &Dims,
    strategy: Strategy,
) -> Result<(), KernelError> {
    check_bindings(client, BINDINGS)?;
    let plan = Plan::new(client, dims, inputs.seq_idx.is_some())?;
    let [batch, nheads, headdim, d_state] = dims.state();
    let Dims {
        seq_len, ngroups, ..
    } = *dims;
    let edge = plan.edge;
    let intervals = seq_len.div_ceil(dims.chunk_size);
    let tail = seq_len - (intervals - 1) * dims.chunk_size;
    let tiles = (intervals - 1) * plan.tiles(dims) + tail.div_ceil(edge);
    let state_bytes = size_of::<f32>() * batch * nheads * headdim * d_state;
    let at_once = match strategy.segments {
        Some(segments) => intervals.div_ceil(segments.max(1)),
        None => (MAX_STATES / (state_bytes * plan.tiles(dims))).clamp(1, intervals),
    };
    let tiles_at_once = (at_once * plan.tiles(dims)).min(tiles);
    let processors = CUBES_A_PROCESSOR * processors(&client.properties().hardware);
    let heads = heads_a_part(dims, batch * tiles_at_once, processors);
    let parts = (nheads / ngroups).div_ceil(heads);
    let blocks = nheads * plan.blocks(dims) * plan.slices(dims);
    // The largest grids; the last intervals may have fewer cubes.
    checked_grid(client, [blocks, batch, intervals])?;
    checked_grid(client, [tiles_at_once, batch, ngroups * parts])?;
    checked_grid(client, [tiles_at_once, batch, nheads])?;

    let states = scratch(client, &[batch, intervals, nheads, headdim, d_state]);
    let [befores, afters] =
        [(); 2].map(|_| scratch(client, &[batch, tiles_at_once, nheads, headdim, d_state]));
    let pairs = scratch(
        client,
        &[1 + parts, batch, tiles_at_once, ngroups, edge * edge],
    );
    let sheet = scratch(client, &[PLANES, batch, seq_len, nheads]);
    let grad_d = gradients.d.clone().filter(|_| inputs.d.is_some());
    let parts_d = (grad_d.as_ref()).map(|_| scratch(client, &[batch, tiles, nheads, headdim]));
    // One part is the gradient itself.
    let [grad_b, grad_c] = match parts {
        1 => [gradients.b.clone(), gradients.c.clone()],
        _ => [(); 2].map(|_| scratch(client, &[parts, batch, seq_len, ngroups, d_state])),
    };
    let f32_type = f32::elem_type_native();
    let projection_type = match parts {
        1 => inputs.dtype,
        _ => f32_type,
    };
    let given = [&upstream.checkpoints, &upstream.y, &gradients.x];
    let made = [&befores, &pairs, &sheet, &grad_b];
    let tensors = inputs.tensors().chain(given).chain(made);
    let address = checked_address_type(client, tensors.chain(&parts_d))?;
    let steps = forward_steps(client, &inputs, dims, dims.chunk_size)?;
    let common = Common {
        client,
        inputs: &inputs,
        steps: &steps,
        dims,
        address,
        ptx: plan.ptx,
    };
    let runs = common.runs();
    let units = CubeDim::new_1d(plan.units() as u32);
    let optional = |tensor: Option<&TensorBinding>| tensor.cloned().map(|it| it.into_tensor_arg());

    /// A walk over the tiles of intervals.
    struct Walk<'a> {
        backwards: bool,
        first: usize,
        count: usize,
        starts: Option<&'a TensorBinding>,
        tiles: Option<&'a TensorBinding>,
        ends: Option<&'a TensorBinding>,
    }
    let walk = |walk: Walk| -> Result<(), KernelError> {
        let [rows, projection] = match walk.backwards {
            true => [&upstream.y, &inputs.c],
            false => [&inputs.x, &inputs.b],
        };
        let count = checked_grid(client, [blocks, batch, walk.count])?;
        let given = present([
            walk.starts.is_some(),
            walk.tiles.is_some(),
            walk.ends.is_some(),
        ]);
        // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
        unsafe {
            states_kernel::launch_unchecked(
                client,
                count,
                units,
                address,
                rows.clone().into_tensor_arg(),
                projection.clone().into_tensor_arg(),
                steps.dt.clone().into_tensor_arg(),
                steps.sums.clone().into_tensor_arg(),
                runs.clone().into_tensor_arg(),
                optional(walk.starts).into(),
                optional(walk.tiles).into(),
                optional(walk.ends).into(),
                walk.first as u32,
                dims.chunk_size as u32,
                walk.backwards as u32,
                plan,
                given,
                inputs.dtype,
            );
        }
        Ok(())
    };

    walk(Walk {
        backwards: true,
        first: 0,
        count: intervals,
        starts: None,
        tiles: None,
        ends: Some(&states),
    })?;
    common.carry(&states, &upstream.final_state, &gradients.initial_state);
    for first in (0..intervals).step_by(at_once) {
        let count = at_once.min(intervals - first);
        let cubes = (tiles - first * plan.tiles(dims)).min(tiles_at_once);
        let by_part = checked_grid(client, [cubes, batch, ngroups * parts])?;
        let by_head = checked_grid(client, [cubes, batch, nheads])?;
        for (backwards, starts, tiles) in [
            (false, &upstream.checkpoints, &befores),
            (true, &states, &afters),
        ] {
            walk(Walk {
                backwards,
                first,
                count,
                starts: Some(starts),
                tiles: Some(tiles),
                ends: None,
            })?;
        }
        let scalars = [first as u32, dims.chunk_size as u32, heads as u32];
        // SAFETY: as above.
        unsafe {
            pairs_kernel::launch_unchecked(
                client,
                by_part.clone(),
                units,
                address,
                inputs.x.clone().into_tensor_arg(),
                inputs.b.clone().into_tensor_arg(),
                inputs.c.clone().into_tensor_arg(),
                upstream.y.clone().into_tensor_arg(),
                steps.dt.clone().into_tensor_arg(),
                steps.sums.clone().into_tensor_arg(),
                runs.clone().into_tensor_arg(),
                pairs.clone().into_tensor_arg(),
                sheet.clone().into_tensor_arg(),
                scalars[0],
                scalars[1],
                scalars[2],
                plan,
                inputs.dtype,
            );
        }
        for (writing, rows, own, other, states, out) in [
            (0, &upstream.y, &inputs.c, &inputs.b, &befores, &grad_c),
            (1, &inputs.x, &inputs.b, &inputs.c, &afters, &grad_b),
        ] {
            // SAFETY: as above.
            unsafe {
                projections_kernel::launch_unchecked(
                    client,
                    by_part.clone(),
                    units,
                    address,
                    rows.clone().into_tensor_arg(),
                    own.clone().into_tensor_arg(),
                    other.clone().into_tensor_arg(),
                    states.clone().into_tensor_arg(),
                    afters.clone().into_tensor_arg(),
                    pairs.clone().into_tensor_arg(),
                    sheet.clone().into_tensor_arg(),
                    out.clone().into_tensor_arg(),
                    scalars[0],
                    scalars[1],
                    scalars[2],
                    writing,
                    plan,
                    [inputs.dtype, projection_type],
                );
            }
        }
        // SAFETY: as above.
        unsafe {
            inputs_kernel::launch_unchecked(
                client,
                by_head,
                units,
                address,
                inputs.x.clone().into_tensor_arg(),
                inputs.b.clone().into_tensor_arg(),
                upstream.y.clone().into_tensor_arg(),
                steps.sums.clone().into_tensor_arg(),
                runs.clone().into_tensor_arg(),
                optional(inputs.d.as_ref()).into(),
                afters.clone().into_tensor_arg(),
                pairs.clone().into_tensor_arg(),
                sheet.clone().into_tensor_arg(),
                gradients.x.clone().into_tensor_arg(),
                optional(parts_d.as_ref()).into(),
                scalars[0],
                scalars[1],
                plan,
                present([inputs.d.is_some(), parts_d.is_some()]),
                inputs.dtype,
            );
        }
    }

    // A head's weight is one of each of its channels: their gradients' sum.
    let parts_d = match (parts_d, &grad_d) {
        (Some(parts_d), Some(grad_d)) if grad_d.shape.len() == 1 => {
            let channels = scratch(client, &[headdim, nheads]);
            sum_parts(
                client,
                Parts {
                    parts: parts_d,
                    half: 0,
                    rows: batch * tiles,
                    inner: headdim,
                    out: channels.clone(),
                    tail: None,
                },
                f32_type,
            );
            Some((channels, headdim))
        }
        (parts_d, _) => parts_d.map(|it| (it, batch * tiles)),
    };
    common.finish(Finish {
        gradients,
        sheet,
        parts_b: grad_b,
        parts_c: grad_c,
        parts,
        parts_d,
        tiles,
        positions: edge,
    });
    Ok(())
}
