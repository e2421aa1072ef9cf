//! What all launchers need: checks, scratch tensors, the size of the device and what it multiplies.

use cubecl::features::MmaConfig;
use cubecl::ir::HardwareProperties;
use cubecl::prelude::*;
use cubecl::zspace::Shape;

use crate::KernelError;

/// Assumed where a device does not tell how many multiprocessors it has.
const DEFAULT_PROCESSORS: usize = 64;

/// Whether planes multiply fragments of 16 x 16 by 16 x 8 values of `dtype` and add up in f32.
pub(crate) fn multiplies_fragments(client: &Client, dtype: ElemType) -> bool {
    let fragment = MmaConfig {
        a_type: dtype,
        b_type: dtype,
        cd_type: f32::elem_type_native(),
        m: 16,
        n: 8,
        k: 16,
    };
    let features = &client.properties().features;
    features.matmul.mma.contains(&fragment)
}

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

/// Which of a kernel's optional tensors there are, a bit each: a kernel that may take several is told, so that CubeCL's
/// cache on disk holds one entry for each combination.
///
/// That cache knows a kernel by a hash alone, and CubeCL 0.11.3 hashes an optional argument by what is in it, nothing if
/// nothing is: that only the first of two is there, and that only the second is, hash alike.
pub(crate) fn present<const N: usize>(tensors: [bool; N]) -> u32 {
    const { assert!(N <= 32) };
    tensors
        .iter()
        .rev()
        .fold(0, |bits, &it| bits << 1 | u32::from(it))
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn no_two_sets_of_tensors_look_alike() {
        let sets = (0u32..32).map(|bits| present([0, 1, 2, 3, 4].map(|it| bits >> it & 1 == 1)));
        assert_eq!(sets.collect::<HashSet<_>>().len(), 32);
    }

    /// Of every kernel of this crate, by its source: a new one is easily forgotten.
    #[test]
    fn kernels_that_may_take_several_tensors_are_told_which() {
        let mut told = 0;
        for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let source = fs::read_to_string(&path).expect("a source file");
            for kernel in source.split("#[cube(launch").skip(1) {
                // Up to the body.
                let signature = kernel.split(") {").next().unwrap_or_default();
                if signature.matches("ComptimeOption<").count() > 1 {
                    let name = signature.split('<').next().unwrap_or_default();
                    assert!(
                        signature.contains("#[comptime] _present: u32"),
                        "in {}: {name}",
                        path.display()
                    );
                    told += 1;
                }
            }
        }
        assert!(told > 10, "only {told} were found");
    }

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                found.extend(sources(&path));
            } else if path.extension().is_some_and(|it| it == "rs") {
                found.push(path);
            }
        }
        found
    }
}
