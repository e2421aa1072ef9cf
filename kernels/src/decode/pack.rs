//! Copies as the kernels read them: a row of the result is a row in memory, in whole vectors.

use cubecl::prelude::*;
use cubecl::zspace::Shape;

use super::layer::argument;
use super::narrow::EDGE;
use super::team::lanes;
use crate::bits::round_to;
use crate::tensors::{address_type, present};

const UNITS: u32 = 256;

/// A matrix `[rows, columns]`, its rows padded with zeros to whole vectors.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub values: TensorBinding,
    pub rows: usize,
    pub columns: usize,
    /// Of its elements.
    pub dtype: ElemType,
    /// Values of a vector.
    pub lanes: usize,
}

/// Copies an f32 matrix of any strides.
pub(super) fn pack(client: &Client, source: TensorBinding, dtype: ElemType) -> Packed {
    pack_scaled(client, source, None, dtype)
}

/// The same, each column times its entry of `scale`, `[columns or more]`.
pub(super) fn pack_scaled(
    client: &Client,
    source: TensorBinding,
    scale: Option<TensorBinding>,
    dtype: ElemType,
) -> Packed {
    let [rows, columns] = [source.shape[0], source.shape[1]];
    let lanes = lanes(dtype.size(), &client.properties().hardware);
    Packed {
        // Narrow products load whole cubes, and nobody uses what the last rows give.
        values: padded(
            client,
            source,
            scale,
            dtype,
            [lanes, rows.next_multiple_of(EDGE)],
        ),
        rows,
        columns,
        dtype,
        lanes,
    }
}

/// The same matrix, its axes exchanged.
pub(super) fn transposed(matrix: TensorBinding) -> TensorBinding {
    let shape = [matrix.shape[1], matrix.shape[0]];
    let strides = [matrix.strides[1], matrix.strides[0]];
    view(matrix, shape, strides)
}

/// Copies a contiguous f32 tensor, as one row padded with zeros to a multiple of `lanes`.
pub(super) fn copy(client: &Client, source: TensorBinding, lanes: usize) -> TensorBinding {
    let len = source.size();
    let row = view(source, [1, len], [len, 1]);
    padded(client, row, None, f32::elem_type_native(), [lanes, 1])
}

/// An f32 vector of ones, as one row padded with ones to a multiple of `lanes`.
pub(super) fn ones(client: &Client, len: usize, lanes: usize) -> TensorBinding {
    let len = len.next_multiple_of(lanes);
    let handle = client.create_from_slice(f32::as_bytes(&vec![1.0; len]));
    let strides = [len, 1].into_iter().collect();
    // SAFETY: the handle holds that many values.
    unsafe { TensorBinding::from_raw_parts(handle, strides, Shape::from([1, len])) }
}

/// An f32 matrix of zeros.
pub(super) fn zeros(client: &Client, rows: usize, columns: usize) -> TensorBinding {
    let handle = client.empty(rows * columns * size_of::<f32>());
    let strides = [columns, 1].into_iter().collect();
    // SAFETY: the handle holds that many values.
    let zeros =
        unsafe { TensorBinding::from_raw_parts(handle, strides, Shape::from([rows, columns])) };
    fill_with_zeros(client, &zeros);
    zeros
}

/// Overwrites an f32 tensor.
pub(super) fn fill_with_zeros(client: &Client, tensor: &TensorBinding) {
    let units = CubeDim::new_1d(UNITS);
    // SAFETY: units beyond the tensor write nothing.
    unsafe {
        zero_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, tensor.size(), units),
            units,
            address_type([tensor]),
            tensor.clone().into_tensor_arg(),
        );
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn zero_kernel(tensor: &mut Tensor<f32>) {
    if ABSOLUTE_POS < tensor.len() {
        tensor[ABSOLUTE_POS] = 0.0f32;
    }
}

fn view(mut tensor: TensorBinding, shape: [usize; 2], strides: [usize; 2]) -> TensorBinding {
    tensor.shape = shape.into();
    tensor.strides = strides.into_iter().collect();
    tensor
}

/// Rows of whole vectors, in memory for `whole` rows, each column times its scale.
fn padded(
    client: &Client,
    source: TensorBinding,
    scale: Option<TensorBinding>,
    dtype: ElemType,
    [lanes, whole]: [usize; 2],
) -> TensorBinding {
    let [rows, columns] = [source.shape[0], source.shape[1]];
    let padded = columns.next_multiple_of(lanes);
    let handle = client.empty(whole * padded * dtype.size());
    let strides = [padded, 1].into_iter().collect();
    // SAFETY: the handle holds that many values and more.
    let values =
        unsafe { TensorBinding::from_raw_parts(handle, strides, Shape::from([rows, padded])) };
    let units = CubeDim::new_1d(UNITS);
    // SAFETY: every index lies inside its tensor.
    unsafe {
        pack_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, rows * padded, units),
            units,
            address_type([&source, &values]),
            source.into_tensor_arg(),
            argument(scale.as_ref()).into(),
            values.clone().into_tensor_arg(),
            present([scale.is_some()]),
            dtype,
        );
    }
    values
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn pack_kernel<W: Float>(
    source: &Tensor<f32>,                // [rows, columns]
    scale: ComptimeOption<&Tensor<f32>>, // [columns or more]
    values: &mut Tensor<W>,              // [rows, columns or more]
    #[comptime] _present: u32,
    #[define(W)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= values.len() {
        terminate!();
    }
    let padded = values.shape(1);
    let row = ABSOLUTE_POS / padded;
    let column = ABSOLUTE_POS % padded;
    let mut value = 0.0f32;
    if column < source.shape(1) {
        value = source[row * source.stride(0) + column * source.stride(1)];
        #[comptime]
        if let ComptimeOption::Some(scale) = scale {
            value *= scale[column];
        }
    }
    values[ABSOLUTE_POS] = round_to::<W>(value);
}
