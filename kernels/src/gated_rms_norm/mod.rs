//! The gate and the grouped normalisation of Mamba-2, and their gradients, as CubeCL kernels.
//!
//! ```text
//! y = v * r * gamma,            v = x silu(z)     gated before it is normalised
//! y = x * r * gamma * silu(z),  v = x             gated after
//! r = 1 / sqrt(mean(v^2) + epsilon) over each group of neighbouring columns
//! ```
//!
//! Source: Dao and Gu 2024, "Transformers are SSMs", section 7, and `RMSNormGated` of the official code. The folder's
//! `README.md` tells which unit owns what and what it costs.
//!
//! `x`, `z` and `y` are f32, f16 or bf16; all arithmetic is f32.

mod kernels;

use cubecl::prelude::*;

use crate::KernelError;
use crate::pointwise::takes_ptx;
use crate::sums::{Parts, sum_parts};
use crate::tensors::{
    check_rows, check_size, check_whole, checked_address_type, cubes, processors, scratch,
    units_a_row,
};
use kernels::{backward_kernel, forward_kernel};

/// Units of a cube, which share a group of a row, where groups fill the device.
const UNITS: usize = 128;

/// Most columns of a group: a unit keeps its share in registers.
pub const MAX_GROUP: usize = 64 * UNITS;

/// Cubes a multiprocessor among which backward cuts the rows.
const CUBES_TO_FILL: usize = 8;

/// What the normalisation reads. `x` and `z` may be slices along their last axis: any strides of the first two axes,
/// 1 of the last.
#[derive(Clone, Debug)]
pub struct GatedNormInputs {
    /// `[batch, seq_len, columns]`, of `dtype`.
    pub x: TensorBinding,
    /// The gate before SiLU, `[batch, seq_len, columns]`, of `dtype`.
    pub z: TensorBinding,
    /// `[columns]`, f32, contiguous.
    pub gamma: TensorBinding,
    /// Columns that are normalised together; a divisor of their number.
    pub group_size: usize,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Whether the gate multiplies what is normalised already.
    pub norm_before_gate: bool,
    /// Of `x`, `z` and `y`: f32, f16 or bf16.
    pub dtype: ElemType,
}

/// Where the gradients go: contiguous tensors, shaped and typed as their inputs.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // one field an input, documented there
pub struct GatedNormGradients {
    pub x: TensorBinding,
    pub z: TensorBinding,
    pub gamma: TensorBinding,
}

impl GatedNormInputs {
    /// Batch, length and columns, once every shape is one that the kernels read.
    fn check(&self) -> Result<[usize; 3], KernelError> {
        let (x, gamma) = (&self.x.shape, &self.gamma.shape);
        if x.len() != 3 || gamma.len() != 1 {
            return Err(KernelError::Shape {
                name: "ranks of x and gamma",
                expected: vec![3, 1],
                got: vec![x.len(), gamma.len()],
            });
        }
        let dims = [x[0], x[1], x[2]];
        let columns = dims[2];
        check_size(
            "group_size",
            "between 1 and 8192",
            self.group_size,
            MAX_GROUP,
        )?;
        if !columns.is_multiple_of(self.group_size) {
            return Err(KernelError::Size {
                name: "group_size",
                expected: "a divisor of the columns",
                got: self.group_size,
            });
        }
        check_rows("x", &self.x, dims)?;
        check_rows("z", &self.z, dims)?;
        check_whole("gamma", &self.gamma, &[columns])?;
        Ok(dims)
    }
}

/// Writes `y`, `[batch, seq_len, columns]` of the inputs' `dtype`, contiguous, once the client's stream gets there.
///
/// # Errors
///
/// If a shape or a stride is not what [`GatedNormInputs`] says. Nothing was launched then.
pub fn gated_rms_norm(
    client: &Client,
    inputs: GatedNormInputs,
    y: TensorBinding,
) -> Result<(), KernelError> {
    let [batch, seq_len, columns] = inputs.check()?;
    check_whole("y", &y, &[batch, seq_len, columns])?;
    let groups = columns / inputs.group_size;
    let rows = batch * seq_len;
    if rows == 0 {
        return Ok(());
    }
    let units = units_a_row(client, rows * groups, inputs.group_size, UNITS);
    let (count, cube) = cubes(client, rows * groups, units);
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        forward_kernel::launch_unchecked(
            client,
            count,
            cube,
            checked_address_type(client, [&inputs.x, &inputs.z, &y])?,
            inputs.x.into_tensor_arg(),
            inputs.z.into_tensor_arg(),
            inputs.gamma.into_tensor_arg(),
            y.into_tensor_arg(),
            inputs.epsilon,
            inputs.group_size,
            units,
            inputs.norm_before_gate,
            takes_ptx(client),
            inputs.dtype,
        );
    }
    Ok(())
}

/// Computes all gradients from that of `y`, `[batch, seq_len, columns]` of the inputs' `dtype`, strided as they may be;
/// they are written once the client's stream gets there. Two runs give the same bits.
///
/// # Errors
///
/// If a shape or a stride is not what the arguments' types say. Nothing was launched then.
pub fn gated_rms_norm_backward(
    client: &Client,
    inputs: GatedNormInputs,
    grad_y: TensorBinding,
    gradients: GatedNormGradients,
) -> Result<(), KernelError> {
    let dims = inputs.check()?;
    let [batch, seq_len, columns] = dims;
    check_rows("gradient of y", &grad_y, dims)?;
    check_whole("gradient of x", &gradients.x, &dims)?;
    check_whole("gradient of z", &gradients.z, &dims)?;
    check_whole("gradient of gamma", &gradients.gamma, &[columns])?;
    let (rows, groups) = (batch * seq_len, columns / inputs.group_size);
    let wanted = CUBES_TO_FILL * processors(&client.properties().hardware);
    let run = (rows * groups).div_ceil(wanted).clamp(1, rows.max(1));
    let runs = rows.div_ceil(run);
    let parts = scratch(client, &[runs, columns]);
    if rows > 0 {
        let (count, cube) = cubes(client, runs * groups, UNITS);
        let tensors = [&inputs.x, &inputs.z, &grad_y, &gradients.x];
        // SAFETY: as above.
        unsafe {
            backward_kernel::launch_unchecked(
                client,
                count,
                cube,
                checked_address_type(client, tensors)?,
                inputs.x.into_tensor_arg(),
                inputs.z.into_tensor_arg(),
                inputs.gamma.into_tensor_arg(),
                grad_y.into_tensor_arg(),
                gradients.x.into_tensor_arg(),
                gradients.z.into_tensor_arg(),
                parts.clone().into_tensor_arg(),
                inputs.epsilon,
                run as u32,
                inputs.group_size,
                inputs.norm_before_gate,
                takes_ptx(client),
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
