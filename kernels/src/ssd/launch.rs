//! Launches the forward kernels.

use cubecl::prelude::*;
use cubecl::zspace::Shape;

use super::geometry::{Geometry, segment_len};
use super::planes::planes_kernel;
use super::segments::carry_kernel;
use super::steps::{Steps, steps};
use super::tile::has_tensor_cores;
use super::units::units_kernel;
use super::{Dims, SsdInputs, SsdOutputs, Strategy};
use crate::KernelError;
use crate::tensors::{
    address_type, check_bindings, check_optional, check_whole, checked_address_type, checked_grid,
    present, scratch,
};

/// Buffers of the scan with all options, and one for shapes and scalars.
const BINDINGS: usize = 12;

/// Runs the scan; the outputs are written once the client's stream gets there.
///
/// # Errors
///
/// If a shape or a stride is not what [`SsdInputs`] and [`SsdOutputs`] say, or the device lacks what the kernels need.
/// Nothing was launched then.
pub fn ssd(client: &Client, inputs: SsdInputs, outputs: SsdOutputs) -> Result<(), KernelError> {
    ssd_as(client, inputs, outputs, Strategy::default())
}

/// [`ssd`] as `strategy` says.
///
/// # Errors
///
/// As [`ssd`].
pub fn ssd_as(
    client: &Client,
    inputs: SsdInputs,
    outputs: SsdOutputs,
    strategy: Strategy,
) -> Result<(), KernelError> {
    let dims = inputs.check()?;
    check_whole("y", &outputs.y, &dims.sequence())?;
    check_whole("final_state", &outputs.final_state, &dims.state())?;
    check_optional("checkpoints", &outputs.checkpoints, &dims.checkpoints())?;
    check_bindings(client, BINDINGS)?;
    let hardware = &client.properties().hardware;
    let geometry = geometry(client, &inputs, &dims, strategy)?;
    let segment_len = segment_len(strategy, &dims, &geometry, hardware);
    let segments = dims.seq_len.div_ceil(segment_len);
    let count = cube_count(client, &dims, &geometry, segments)?;
    let optional = [&outputs.checkpoints].into_iter().flatten();
    let written = [&outputs.y, &outputs.final_state];
    // Nothing is launched before all indices are known to fit.
    let tensors = inputs.tensors().chain(written).chain(optional);
    checked_address_type(client, tensors)?;

    let steps = steps(client, &inputs, &dims, geometry.chunk)?;
    let whole = inputs.initial_state.clone().map(|it| as_segment(it, &dims));
    let starts = match segments {
        1 => whole,
        _ => Some(segment_states(
            client,
            &inputs,
            &steps,
            &dims,
            geometry,
            segment_len,
        )?),
    };
    launch_scan(
        client,
        &inputs,
        &steps,
        Scan {
            starts,
            y: Some(outputs.y),
            ends: outputs.final_state,
            decays: None,
            checkpoints: outputs.checkpoints,
        },
        count,
        geometry,
        segment_len,
    )
}

/// The cube that inputs, device and strategy ask for.
fn geometry(
    client: &Client,
    inputs: &SsdInputs,
    dims: &Dims,
    strategy: Strategy,
) -> Result<Geometry, KernelError> {
    let hardware = &client.properties().hardware;
    let tensor = match strategy.tensor_cores && has_tensor_cores(client, inputs.dtype) {
        true => Geometry::tensor(dims, hardware),
        false => None,
    };
    let geometry = match tensor {
        Some(geometry) => geometry,
        None => Geometry::units(dims, hardware)?,
    };
    let lanes = geometry.lanes();
    let bytes = lanes * inputs.dtype.size();
    let whole = |tensor: &TensorBinding| {
        let offset = tensor.handle.offset_start.unwrap_or(0) as usize;
        let row = tensor.shape[3].is_multiple_of(lanes);
        let strides = tensor.strides[..2].iter();
        let sizes = tensor.shape[..2].iter();
        // The stride of an axis of one is anything.
        let mut strides = strides.zip(sizes).filter(|it| *it.1 > 1).map(|it| it.0);
        row && offset.is_multiple_of(bytes) && strides.all(|it| it.is_multiple_of(lanes))
    };
    let outs = match geometry.tensor {
        true => 2,
        false => 4,
    };
    Ok(Geometry {
        width: match [&inputs.x, &inputs.b, &inputs.c].into_iter().all(whole) {
            true => lanes,
            false => 1,
        },
        out_width: match dims.headdim.is_multiple_of(outs) {
            true => outs,
            false => 1,
        },
        skips_channels: inputs.d.as_ref().is_some_and(|it| it.shape.len() == 2),
        ..geometry.compiled_for(client)
    })
}

/// What a scan over segments starts from and leaves.
struct Scan {
    /// The state before each segment.
    starts: Option<TensorBinding>,
    /// Left out where only the states are wanted.
    y: Option<TensorBinding>,
    /// The final state, or what each segment adds to it.
    ends: TensorBinding,
    /// What each segment leaves of the state before it.
    decays: Option<TensorBinding>,
    checkpoints: Option<TensorBinding>,
}

fn launch_scan(
    client: &Client,
    inputs: &SsdInputs,
    steps: &Steps,
    scan: Scan,
    count: CubeCount,
    geometry: Geometry,
    segment_len: usize,
) -> Result<(), KernelError> {
    let outputs = [&scan.starts, &scan.y, &scan.decays, &scan.checkpoints];
    let outputs = outputs.into_iter().flatten().chain([&scan.ends]);
    let tensors = inputs.tensors().chain(steps.tensors()).chain(outputs);
    let address = checked_address_type(client, tensors)?;
    let units = CubeDim::new_1d(geometry.units as u32);
    let optional = |tensor: Option<TensorBinding>| tensor.map(|it| it.into_tensor_arg());
    let given = present([
        steps.runs.is_some(),
        inputs.d.is_some(),
        scan.starts.is_some(),
        scan.y.is_some(),
        scan.decays.is_some(),
        scan.checkpoints.is_some(),
    ]);
    macro_rules! launch {
        ($kernel:ident) => {
            $kernel::launch_unchecked(
                client,
                count,
                units,
                address,
                geometry.width,
                geometry.out_width,
                inputs.x.clone().into_tensor_arg(),
                inputs.b.clone().into_tensor_arg(),
                inputs.c.clone().into_tensor_arg(),
                steps.dt.clone().into_tensor_arg(),
                steps.sums.clone().into_tensor_arg(),
                optional(steps.runs.clone()).into(),
                optional(inputs.d.clone()).into(),
                optional(scan.starts).into(),
                optional(scan.y).into(),
                scan.ends.into_tensor_arg(),
                optional(scan.decays).into(),
                optional(scan.checkpoints).into(),
                segment_len as u32,
                geometry,
                given,
                inputs.dtype,
            )
        };
    }
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        match geometry.tensor {
            true => launch!(planes_kernel),
            false => launch!(units_kernel),
        }
    }
    Ok(())
}

/// The state before each segment: `[batch, segments, nheads, headdim, d_state]`.
fn segment_states(
    client: &Client,
    inputs: &SsdInputs,
    steps: &Steps,
    dims: &Dims,
    geometry: Geometry,
    segment_len: usize,
) -> Result<TensorBinding, KernelError> {
    let segments = dims.seq_len.div_ceil(segment_len);
    let [batch, nheads, headdim, d_state] = dims.state();
    let local = scratch(client, &[batch, segments, nheads, headdim, d_state]);
    let decays = scratch(client, &[batch, segments, nheads]);
    // Nobody asks what the last segment does to the state.
    let count = cube_count(client, dims, &geometry, segments - 1)?;
    launch_scan(
        client,
        inputs,
        steps,
        Scan {
            starts: None,
            y: None,
            ends: local.clone(),
            decays: Some(decays.clone()),
            checkpoints: None,
        },
        count,
        geometry,
        segment_len,
    )?;
    let units = CubeDim::new_1d(CARRY_UNITS);
    let states = batch * nheads * headdim * d_state;
    // SAFETY: units beyond the states end at once; every index lies inside its tensor.
    unsafe {
        carry_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, states, units),
            units,
            address_type([&local]),
            local.clone().into_tensor_arg(),
            decays.into_tensor_arg(),
            (inputs.initial_state.clone())
                .map(|it| it.into_tensor_arg())
                .into(),
        );
    }
    Ok(local)
}

/// Units of a cube that walks over segments: small, so that few states spread over the device.
const CARRY_UNITS: u32 = 64;

/// A state `[batch, nheads, headdim, d_state]` as that before the only segment.
fn as_segment(state: TensorBinding, dims: &Dims) -> TensorBinding {
    let [batch, nheads, headdim, d_state] = dims.state();
    let size = headdim * d_state;
    TensorBinding {
        shape: Shape::from(vec![batch, 1, nheads, headdim, d_state]),
        strides: vec![nheads * size, nheads * size, size, d_state, 1].into(),
        ..state
    }
}

/// The kernels' grid: heads and slices of their channels, sequences, segments of time.
fn cube_count(
    client: &Client,
    dims: &Dims,
    geometry: &Geometry,
    segments: usize,
) -> Result<CubeCount, KernelError> {
    let counts = [dims.nheads * geometry.slices(), dims.batch, segments];
    checked_grid(client, counts)
}
