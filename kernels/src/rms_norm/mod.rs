//! Root mean square normalisation and its gradients as CubeCL kernels.
//!
//! ```text
//! y = x * r * gamma,   r = 1 / sqrt(mean(x^2) + epsilon) over the last axis
//! ```
//!
//! Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization". The folder's `README.md` tells
//! which unit owns what and what it costs.
//!
//! The input, which is a residual stream, and all arithmetic are f32; the output may be f32, f16 or bf16.

mod kernels;

use cubecl::prelude::*;

use crate::KernelError;
use crate::sums::{Parts, sum_parts};
use crate::tensors::{
    address_type, check_size, check_whole, cubes, present, processors, scratch, units_a_row,
};
use kernels::{rms_norm_backward_kernel, rms_norm_kernel};

/// Units of a cube, which share a row, where rows fill the device.
const UNITS: usize = 128;

/// Most columns: a unit keeps its share of a row in registers.
pub const MAX_COLUMNS: usize = 64 * UNITS;

/// Cubes a multiprocessor among which backward cuts the rows.
const CUBES_TO_FILL: usize = 8;

/// What the normalisation reads: contiguous tensors.
#[derive(Clone, Debug)]
pub struct NormInputs {
    /// `[rows, columns]`, f32.
    pub x: TensorBinding,
    /// `[columns]`, f32.
    pub gamma: TensorBinding,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Of the output: f32, f16 or bf16.
    pub dtype: ElemType,
}

/// Where the gradients go: contiguous tensors, shaped and typed as their inputs.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // one field an input, documented there
pub struct NormGradients {
    pub x: TensorBinding,
    pub gamma: TensorBinding,
}

impl NormInputs {
    /// Rows and columns, once every shape is one that the kernels read.
    fn check(&self) -> Result<[usize; 2], KernelError> {
        let (x, gamma) = (&self.x.shape, &self.gamma.shape);
        if x.len() != 2 || gamma.len() != 1 {
            return Err(KernelError::Shape {
                name: "ranks of x and gamma",
                expected: vec![2, 1],
                got: vec![x.len(), gamma.len()],
            });
        }
        let [rows, columns] = [x[0], x[1]];
        check_size("columns", "between 1 and 8192", columns, MAX_COLUMNS)?;
        check_whole("x", &self.x, &[rows, columns])?;
        check_whole("gamma", &self.gamma, &[columns])?;
        Ok([rows, columns])
    }
}

/// Writes `y`, `[rows, columns]` of the inputs' `dtype`, once the client's stream gets there.
///
/// # Errors
///
/// If a shape or a stride is not what [`NormInputs`] says. Nothing was launched then.
pub fn rms_norm(client: &Client, inputs: NormInputs, y: TensorBinding) -> Result<(), KernelError> {
    add_rms_norm(client, inputs, None, y)
}

/// What is added to `x` before it is normalised, as a layer adds to the residual stream.
#[derive(Clone, Debug)]
pub struct Update {
    /// `[rows, columns]`, f32, contiguous.
    pub update: TensorBinding,
    /// Where `x + update` goes, shaped as they are; another buffer than theirs.
    pub sum: TensorBinding,
}

/// [`rms_norm`] of `x + update`, which is written, too.
///
/// # Errors
///
/// If a shape or a stride is not what the arguments' types say. Nothing was launched then.
pub fn add_rms_norm(
    client: &Client,
    inputs: NormInputs,
    update: Option<Update>,
    y: TensorBinding,
) -> Result<(), KernelError> {
    let [rows, columns] = inputs.check()?;
    check_whole("y", &y, &[rows, columns])?;
    if let Some(Update { update, sum }) = &update {
        check_whole("update", update, &[rows, columns])?;
        check_whole("sum", sum, &[rows, columns])?;
    }
    if rows == 0 {
        return Ok(());
    }
    let (update, sum) = update.map(|it| (it.update, it.sum)).unzip();
    let given = present([update.is_some(), sum.is_some()]);
    let units = units_a_row(client, rows, columns, UNITS);
    let (count, cube) = cubes(client, rows, units);
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        rms_norm_kernel::launch_unchecked(
            client,
            count,
            cube,
            address_type([&inputs.x]),
            inputs.x.into_tensor_arg(),
            update.map(|it| it.into_tensor_arg()).into(),
            inputs.gamma.into_tensor_arg(),
            sum.map(|it| it.into_tensor_arg()).into(),
            y.into_tensor_arg(),
            inputs.epsilon,
            columns.div_ceil(units),
            units,
            given,
            inputs.dtype,
        );
    }
    Ok(())
}

/// Computes both gradients from that of `y`, `[rows, columns]` of the inputs' `dtype`, contiguous; they are
/// written once the client's stream gets there. Two runs give the same bits.
///
/// # Errors
///
/// If a shape or a stride is not what the arguments' types say. Nothing was launched then.
pub fn rms_norm_backward(
    client: &Client,
    inputs: NormInputs,
    grad_y: TensorBinding,
    gradients: NormGradients,
) -> Result<(), KernelError> {
    let [rows, columns] = inputs.check()?;
    check_whole("gradient of y", &grad_y, &[rows, columns])?;
    check_whole("gradient of x", &gradients.x, &[rows, columns])?;
    check_whole("gradient of gamma", &gradients.gamma, &[columns])?;
    let wanted = CUBES_TO_FILL * processors(&client.properties().hardware);
    let run = rows.div_ceil(wanted).max(1);
    let runs = rows.div_ceil(run);
    let parts = scratch(client, &[runs, columns]);
    if rows > 0 {
        let (count, cube) = cubes(client, runs, UNITS);
        // SAFETY: as above.
        unsafe {
            rms_norm_backward_kernel::launch_unchecked(
                client,
                count,
                cube,
                address_type([&inputs.x]),
                inputs.x.into_tensor_arg(),
                inputs.gamma.into_tensor_arg(),
                grad_y.into_tensor_arg(),
                gradients.x.into_tensor_arg(),
                parts.clone().into_tensor_arg(),
                inputs.epsilon,
                run as u32,
                columns.div_ceil(UNITS),
                inputs.dtype,
            );
        }
    }
    sum_parts(
        client,
        Parts {
            parts,
            half: 0,
            rows: runs,
            inner: columns,
            out: gradients.gamma,
            tail: None,
        },
        f32::elem_type_native(),
    );
    Ok(())
}
