//! Launches the gradient kernels.
//!
//! 1. the steps, as forward;
//! 2. what every interval between two checkpoints adds to the state's gradient, and the walk over intervals
//!    ([`states`]);
//! 3. all intervals' tiles at once ([`gradients`]);
//! 4. the steps' gradients ([`steps`]), and sums over tiles and parts of heads.
//!
//! That is on tensor cores. Elsewhere [`units`] launches kernels of its own for 2 and 3.

mod gradients;
mod load;
mod others;
mod plan;
mod reduce;
mod states;
mod steps;
mod units;

use cubecl::prelude::*;

use super::steps::{Steps, steps as forward_steps};
use super::tile::has_tensor_cores;
use super::{Dims, SsdGradients, SsdInputs, SsdUpstream, Strategy, check_heads};
use crate::KernelError;
use crate::sums::{Parts, sum_parts};
use crate::tensors::{
    check_bindings, check_optional, check_whole, checked_address_type, checked_grid, present,
    processors, scratch,
};
use gradients::gradients_kernel;
use plan::{LANES, Plan};
use states::{carry_kernel, contributions_kernel};
use steps::{StepForm, grad_steps_kernel};

/// Buffers of the gradient kernel with all options, and one for shapes and scalars.
const BINDINGS: usize = 16;

/// Units of a cube that walks over intervals or tiles: few, so that few walks spread over the device.
const WALKERS: u32 = 64;

/// What a cube of the gradient kernel costs beside its heads, in heads.
const CUBE_COST: usize = 2;

/// Computes the gradients of every input; they are written once the client's stream gets there. Two runs give the same
/// bits.
///
/// # Errors
///
/// If a shape or a stride is not what the arguments' types say, or the device lacks what the kernels need. Nothing was
/// launched then.
pub fn ssd_backward(
    client: &Client,
    inputs: SsdInputs,
    upstream: SsdUpstream,
    gradients: SsdGradients,
) -> Result<(), KernelError> {
    ssd_backward_as(client, inputs, upstream, gradients, Strategy::default())
}

/// [`ssd_backward`] as `strategy` says; on tensor cores it has no segments.
///
/// # Errors
///
/// As [`ssd_backward`].
pub fn ssd_backward_as(
    client: &Client,
    inputs: SsdInputs,
    upstream: SsdUpstream,
    gradients: SsdGradients,
    strategy: Strategy,
) -> Result<(), KernelError> {
    let dims = inputs.check()?;
    check(&dims, &inputs, &upstream, &gradients)?;
    match plan(client, &inputs, &upstream, &dims, strategy) {
        Some(plan) => launch(client, inputs, upstream, gradients, &dims, plan),
        None => units::launch(client, inputs, upstream, gradients, &dims, strategy),
    }
}

/// Launches all of it on tensor cores.
fn launch(
    client: &Client,
    inputs: SsdInputs,
    upstream: SsdUpstream,
    gradients: SsdGradients,
    dims: &Dims,
    plan: Plan,
) -> Result<(), KernelError> {
    check_bindings(client, BINDINGS)?;
    let hardware = &client.properties().hardware;
    let [batch, nheads, headdim, d_state] = dims.state();
    let intervals = dims.seq_len.div_ceil(dims.chunk_size);
    let tail = dims.seq_len - (intervals - 1) * dims.chunk_size;
    let tiles = (intervals - 1) * plan.tiles() + tail.div_ceil(plan.positions);
    let heads = heads_a_part(dims, batch * tiles, processors(hardware));
    let parts = (nheads / dims.ngroups).div_ceil(heads);
    let counts = [
        checked_grid(client, [nheads * plan.blocks(), batch, intervals])?,
        checked_grid(client, [tiles, batch, dims.ngroups * parts])?,
    ];

    let upstream_tensors = [&upstream.checkpoints, &upstream.y];
    let outputs = [&gradients.x, &gradients.b, &gradients.c];
    let given = inputs.tensors().chain(upstream_tensors).chain(outputs);
    let address = checked_address_type(client, given)?;
    let steps = forward_steps(client, &inputs, dims, plan.interval)?;
    let common = Common {
        client,
        inputs: &inputs,
        steps: &steps,
        dims,
        address,
        ptx: plan.ptx,
    };
    let runs = common.runs();
    let states = scratch(client, &[batch, intervals, nheads, headdim, d_state]);
    let [count_states, count_tiles] = counts;
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        contributions_kernel::launch_unchecked(
            client,
            count_states,
            CubeDim::new_1d(plan.units as u32),
            address,
            plan.width,
            LANES,
            plan.pair,
            upstream.y.clone().into_tensor_arg(),
            inputs.c.clone().into_tensor_arg(),
            steps.dt.clone().into_tensor_arg(),
            steps.sums.clone().into_tensor_arg(),
            runs.clone().into_tensor_arg(),
            states.clone().into_tensor_arg(),
            plan,
            inputs.dtype,
        );
    }
    common.carry(&states, &upstream.final_state, &gradients.initial_state);

    let step_sums = scratch(client, &[3, batch, dims.seq_len, nheads]);
    let grad_d = gradients.d.clone().filter(|_| inputs.d.is_some());
    let parts_d = grad_d.as_ref().map(|_| match plan.skips_channels {
        true => scratch(client, &[batch * tiles, nheads, headdim]),
        false => scratch(client, &[batch * tiles, nheads]),
    });
    // One part is the gradient itself.
    let [grad_b, grad_c] = match parts {
        1 => [gradients.b.clone(), gradients.c.clone()],
        _ => [(); 2].map(|_| scratch(client, &[parts, batch, dims.seq_len, dims.ngroups, d_state])),
    };
    let projection_type = match parts {
        1 => inputs.dtype,
        _ => f32::elem_type_native(),
    };
    // SAFETY: as above.
    unsafe {
        gradients_kernel::launch_unchecked(
            client,
            count_tiles,
            CubeDim::new_1d(plan.units as u32),
            address,
            plan.width,
            LANES,
            plan.pair,
            inputs.x.clone().into_tensor_arg(),
            inputs.b.clone().into_tensor_arg(),
            inputs.c.clone().into_tensor_arg(),
            upstream.y.into_tensor_arg(),
            steps.dt.clone().into_tensor_arg(),
            steps.sums.clone().into_tensor_arg(),
            runs.into_tensor_arg(),
            inputs.d.clone().map(|it| it.into_tensor_arg()).into(),
            upstream.checkpoints.into_tensor_arg(),
            states.into_tensor_arg(),
            gradients.x.clone().into_tensor_arg(),
            grad_b.clone().into_tensor_arg(),
            grad_c.clone().into_tensor_arg(),
            step_sums.clone().into_tensor_arg(),
            parts_d.clone().map(|it| it.into_tensor_arg()).into(),
            heads as u32,
            plan,
            present([inputs.d.is_some(), parts_d.is_some()]),
            [inputs.dtype, projection_type],
        );
    }

    common.finish(Finish {
        gradients,
        sheet: step_sums,
        parts_b: grad_b,
        parts_c: grad_c,
        parts,
        parts_d: parts_d.map(|it| (it, batch * tiles)),
        tiles,
        positions: plan.positions,
    });
    Ok(())
}

/// What both ways launch alike.
struct Common<'a> {
    client: &'a Client,
    inputs: &'a SsdInputs,
    steps: &'a Steps,
    dims: &'a Dims,
    /// Of all tensors.
    address: AddressType,
    /// Whether kernels take inline PTX.
    ptx: bool,
}

impl Common<'_> {
    /// Not read without `seq_idx`.
    fn runs(&self) -> TensorBinding {
        self.steps.runs.clone().unwrap_or(self.steps.dt.clone())
    }

    /// Walks over the intervals: of what each adds to the state's gradient, `states`, becomes the gradient of the state
    /// after it.
    fn carry(
        &self,
        states: &TensorBinding, // [batch, intervals, nheads, headdim, d_state]
        grad_final: &Option<TensorBinding>,
        grad_initial: &Option<TensorBinding>,
    ) {
        let units = CubeDim::new_1d(WALKERS);
        let lanes = [4, 2, 1].into_iter();
        let lanes = lanes.filter(|&it| self.dims.d_state.is_multiple_of(it));
        let lanes = lanes.max().expect("one divides every number");
        let vectors = self.dims.state().iter().product::<usize>() / lanes;
        let grad_initial = grad_initial
            .as_ref()
            .filter(|_| self.inputs.initial_state.is_some());
        let given = present([grad_final.is_some(), grad_initial.is_some()]);
        // SAFETY: units beyond the vectors end at once; every index lies inside its tensor.
        unsafe {
            carry_kernel::launch_unchecked(
                self.client,
                cubecl::calculate_cube_count_elemwise(self.client, vectors, units),
                units,
                self.address,
                lanes,
                states.clone().into_tensor_arg(),
                self.steps.sums.clone().into_tensor_arg(),
                self.runs().into_tensor_arg(),
                grad_final.clone().map(|it| it.into_tensor_arg()).into(),
                grad_initial.cloned().map(|it| it.into_tensor_arg()).into(),
                self.dims.chunk_size,
                self.steps.runs.is_some(),
                self.ptx,
                given,
            );
        }
    }

    /// Launches the steps' gradients and the sums.
    fn finish(&self, left: Finish) {
        let Finish {
            gradients,
            sheet,
            parts,
            tiles,
            ..
        } = left;
        let Self {
            client,
            inputs,
            steps,
            dims,
            ..
        } = *self;
        let Dims { batch, nheads, .. } = *dims;
        let parts_steps = scratch(client, &[2, batch, tiles, nheads]);
        let units = CubeDim::new_1d(WALKERS);
        let form = StepForm {
            interval: dims.chunk_size,
            positions: left.positions,
            softplus: inputs.dt_softplus,
            resettable: inputs.seq_idx.is_some(),
            ptx: self.ptx,
        };
        // SAFETY: units beyond the tiles end at once; else as above.
        unsafe {
            grad_steps_kernel::launch_unchecked(
                client,
                cubecl::calculate_cube_count_elemwise(client, batch * tiles * nheads, units),
                units,
                self.address,
                inputs.dt.clone().into_tensor_arg(),
                inputs.a.clone().into_tensor_arg(),
                inputs.dt_bias.clone().map(|it| it.into_tensor_arg()).into(),
                steps.dt.clone().into_tensor_arg(),
                self.runs().into_tensor_arg(),
                sheet.into_tensor_arg(),
                gradients.dt.into_tensor_arg(),
                parts_steps.clone().into_tensor_arg(),
                inputs.dt_limit.0,
                inputs.dt_limit.1,
                form,
                inputs.dtype,
            );
        }

        let sum = |parts: TensorBinding, half, rows, out: TensorBinding, dtype| {
            let inner = out.size();
            let tail = None;
            sum_parts(
                client,
                Parts {
                    parts,
                    half,
                    rows,
                    inner,
                    out,
                    tail,
                },
                dtype,
            );
        };
        let f32_type = f32::elem_type_native();
        if parts > 1 {
            sum(left.parts_b, 0, parts, gradients.b, inputs.dtype);
            sum(left.parts_c, 0, parts, gradients.c, inputs.dtype);
        }
        let rows = batch * tiles;
        sum(parts_steps.clone(), 0, rows, gradients.a, f32_type);
        if let Some(grad_bias) = gradients.dt_bias.filter(|_| inputs.dt_bias.is_some()) {
            sum(parts_steps, 1, rows, grad_bias, f32_type);
        }
        if let (Some((parts_d, rows)), Some(grad_d)) = (left.parts_d, gradients.d) {
            sum(parts_d, 0, rows, grad_d, f32_type);
        }
    }
}

/// What tiles and parts of heads left.
struct Finish {
    gradients: SsdGradients,
    /// Reads, writes and `x . gX` of every position and head: `[3 or more, batch, seq_len, nheads]`.
    sheet: TensorBinding,
    /// Of the heads of a group: the gradients of `b` and `c` where `parts` is 1.
    parts_b: TensorBinding,
    parts_c: TensorBinding,
    parts: usize,
    /// Rows that add up to the gradient of `d`, and how many.
    parts_d: Option<(TensorBinding, usize)>,
    /// Of a sequence, and positions of each.
    tiles: usize,
    positions: usize,
}

/// The cube on tensor cores, where inputs, device and strategy ask for it.
fn plan(
    client: &Client,
    inputs: &SsdInputs,
    upstream: &SsdUpstream,
    dims: &Dims,
    strategy: Strategy,
) -> Option<Plan> {
    if !strategy.tensor_cores || !has_tensor_cores(client, inputs.dtype) {
        return None;
    }
    let plan = Plan::new(client, dims)?;
    let bytes = LANES * inputs.dtype.size();
    let whole = |tensor: &TensorBinding| {
        let offset = tensor.handle.offset_start.unwrap_or(0) as usize;
        let row = tensor.shape[3].is_multiple_of(LANES);
        let axes = tensor.strides[..2].iter().zip(&tensor.shape[..2]);
        // The stride of an axis of one is anything.
        let mut strides = axes.filter(|it| *it.1 > 1).map(|it| it.0);
        row && offset.is_multiple_of(bytes) && strides.all(|it| it.is_multiple_of(LANES))
    };
    let read = [&inputs.x, &inputs.b, &inputs.c, &upstream.y];
    Some(
        Plan {
            width: match read.into_iter().all(whole) {
                true => LANES,
                false => 1,
            },
            pair: match dims.headdim.is_multiple_of(2) && dims.d_state.is_multiple_of(2) {
                true => 2,
                false => 1,
            },
            resettable: inputs.seq_idx.is_some(),
            skips_channels: inputs.d.as_ref().is_some_and(|d| d.shape.len() == 2),
            ..plan
        }
        .coming_ahead(&client.properties().hardware),
    )
}

/// Into how many heads to cut a group: the least time of the busiest multiprocessor.
fn heads_a_part(dims: &Dims, tiles: usize, processors: usize) -> usize {
    let heads = dims.nheads / dims.ngroups;
    let time = |part: usize| {
        let cubes = tiles * dims.ngroups * heads.div_ceil(part);
        cubes.div_ceil(processors) * (part + CUBE_COST)
    };
    // The most of those that take as long: fewer parts to add.
    (1..=heads)
        .rev()
        .min_by_key(|&part| time(part))
        .unwrap_or(1)
}

fn check(
    dims: &Dims,
    inputs: &SsdInputs,
    upstream: &SsdUpstream,
    gradients: &SsdGradients,
) -> Result<(), KernelError> {
    let steps = [dims.batch, dims.seq_len, dims.nheads];
    check_whole("checkpoints", &upstream.checkpoints, &dims.checkpoints())?;
    check_heads("grad_y", &upstream.y, dims.sequence())?;
    check_optional("grad_final_state", &upstream.final_state, &dims.state())?;
    check_whole("grad_x", &gradients.x, &dims.sequence())?;
    check_whole("grad_dt", &gradients.dt, &steps)?;
    check_whole("grad_a", &gradients.a, &[dims.nheads])?;
    check_whole("grad_b", &gradients.b, &dims.projection())?;
    check_whole("grad_c", &gradients.c, &dims.projection())?;
    if let Some(d) = &inputs.d {
        check_optional("grad_d", &gradients.d, &d.shape)?;
    }
    check_optional("grad_dt_bias", &gradients.dt_bias, &[dims.nheads])?;
    check_optional(
        "grad_initial_state",
        &gradients.initial_state,
        &dims.state(),
    )
}
