//! What all launchers need: checks, scratch tensors, the size of the device.

use cubecl::ir::HardwareProperties;
use cubecl::prelude::*;
use cubecl::zspace::Shape;

use crate::KernelError;

/// Assumed where a device does not tell how many multiprocessors it has.
const DEFAULT_PROCESSORS: usize = 64;

/// The multiprocessors of a device.
pub(crate) fn processors(hardware: &HardwareProperties) -> usize {
    hardware
        .num_streaming_multiprocessors
        .map_or(DEFAULT_PROCESSORS, |count| count as usize)
}

pub(crate) fn check_size(
    name: &'static str,
    expected: &'static str,
    got: usize,
    most: usize,
) -> Result<(), KernelError> {
    match (1..=most).contains(&got) {
        true => Ok(()),
        false => Err(KernelError::Size {
            name,
            expected,
            got,
        }),
    }
}

pub(crate) fn check_shape(
    name: &'static str,
    tensor: &TensorBinding,
    expected: &[usize],
) -> Result<(), KernelError> {
    match tensor.shape[..] == *expected {
        true => Ok(()),
        false => Err(KernelError::Shape {
            name,
            expected: expected.to_vec(),
            got: tensor.shape.to_vec(),
        }),
    }
}

/// Checks a tensor whose rows are contiguous.
pub(crate) fn check_rows(
    name: &'static str,
    tensor: &TensorBinding,
    expected: [usize; 3],
) -> Result<(), KernelError> {
    check_shape(name, tensor, &expected)?;
    match tensor.strides[2] == 1 || expected[2] == 1 {
        true => Ok(()),
        false => Err(KernelError::Strides {
            name,
            expected: "contiguous along its last axis",
            got: tensor.strides.to_vec(),
        }),
    }
}

/// Checks a tensor that is contiguous.
pub(crate) fn check_whole(
    name: &'static str,
    tensor: &TensorBinding,
    expected: &[usize],
) -> Result<(), KernelError> {
    check_shape(name, tensor, expected)?;
    let mut stride = 1;
    for (&size, &got) in expected.iter().zip(tensor.strides.iter()).rev() {
        if size != 1 && got != stride {
            return Err(KernelError::Strides {
                name,
                expected: "contiguous",
                got: tensor.strides.to_vec(),
            });
        }
        stride *= size;
    }
    Ok(())
}

pub(crate) fn check_optional(
    name: &'static str,
    tensor: &Option<TensorBinding>,
    expected: &[usize],
) -> Result<(), KernelError> {
    match tensor {
        Some(tensor) => check_whole(name, tensor, expected),
        None => Ok(()),
    }
}

/// A contiguous f32 tensor of this call's own.
pub(crate) fn scratch(client: &Client, shape: &[usize]) -> TensorBinding {
    let len: usize = shape.iter().product();
    // Not every runtime binds a buffer of nothing.
    contiguous(client.empty(len.max(1) * size_of::<f32>()), shape)
}

fn contiguous(handle: cubecl::server::Handle, shape: &[usize]) -> TensorBinding {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    // SAFETY: the strides are those of the shape, and the handle holds that many values.
    unsafe { TensorBinding::from_raw_parts(handle, strides.into(), Shape::from(shape.to_vec())) }
}

/// Units of a cube that has a multiprocessor to itself.
const MANY_UNITS: usize = 512;

/// `count` cubes of `units` units along one axis, or a few more.
pub(crate) fn cubes(client: &Client, count: usize, units: usize) -> (CubeCount, CubeDim) {
    let cube = CubeDim::new_1d(units as u32);
    let count = cubecl::calculate_cube_count_elemwise(client, count * units, cube);
    (count, cube)
}

/// A grid of cubes, if the device has one as large.
pub(crate) fn checked_grid(client: &Client, counts: [usize; 3]) -> Result<CubeCount, KernelError> {
    let limits = client.properties().hardware.max_cube_count;
    for (needed, limit) in counts.into_iter().zip([limits.0, limits.1, limits.2]) {
        if needed > limit as usize {
            return Err(KernelError::Device {
                resource: "cubes along one axis",
                needed,
                available: limit as usize,
            });
        }
    }
    let [x, y, z] = counts.map(|count| count as u32);
    Ok(CubeCount::Static(x, y, z))
}

/// Units for each of `rows` sums over `columns` values: `usual` where rows fill the device, else up to [`MANY_UNITS`],
/// a few values each. A power of two if `usual` is.
pub(crate) fn units_a_row(client: &Client, rows: usize, columns: usize, usual: usize) -> usize {
    let hardware = &client.properties().hardware;
    let most = MANY_UNITS.min(hardware.max_units_per_cube as usize);
    let mut units = usual;
    while rows <= processors(hardware) && 2 * units <= most && 2 * units < columns {
        units *= 2;
    }
    units
}

/// The widest index that any of the tensors needs.
pub(crate) fn address_type<'a>(
    tensors: impl IntoIterator<Item = &'a TensorBinding>,
) -> AddressType {
    // Two bytes is the smallest element.
    tensors
        .into_iter()
        .map(|tensor| tensor.required_address_type(2))
        .max()
        .unwrap_or_default()
}

/// The same, if the device has an index as wide.
pub(crate) fn checked_address_type<'a>(
    client: &Client,
    tensors: impl IntoIterator<Item = &'a TensorBinding>,
) -> Result<AddressType, KernelError> {
    let address = address_type(tensors);
    match client.properties().supports_address(address) {
        true => Ok(address),
        false => Err(KernelError::Device {
            resource: "bits of an index",
            needed: 64,
            available: 32,
        }),
    }
}

/// Refuses a kernel with more buffers than the device binds.
pub(crate) fn check_bindings(client: &Client, needed: usize) -> Result<(), KernelError> {
    let available = client.properties().hardware.max_bindings as usize;
    match needed <= available {
        true => Ok(()),
        false => Err(KernelError::Device {
            resource: "buffers",
            needed,
            available,
        }),
    }
}
