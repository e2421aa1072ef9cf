//! Cross-entropy of logits, and the gradient of the logits with it, as CubeCL kernels.
//!
//! ```text
//! loss_t   = ln(sum over v of exp(l_tv)) - l_t,target
//! grad_tv  = (exp(l_tv) / sum over v of exp(l_tv) - [v = target]) * scale
//! ```
//!
//! The folder's `README.md` tells which unit owns what and what it costs.

mod kernels;

use cubecl::prelude::*;

use crate::KernelError;
use crate::tensors::{address_type, check_size, check_whole, present};
use kernels::cross_entropy_kernel;

/// Units of a cube, which share a token.
const UNITS: usize = 256;

/// What the loss reads: contiguous tensors.
#[derive(Clone, Debug)]
pub struct LossInputs {
    /// `[tokens, rows]`, f32. Those past `vocab_size` are padding and take no part.
    pub logits: TensorBinding,
    /// `[tokens]`, of `index_dtype`, below `vocab_size`; one that is negative is not counted.
    pub targets: TensorBinding,
    /// Entries of the vocabulary, at most `rows`.
    pub vocab_size: usize,
    /// Any integer type.
    pub index_dtype: ElemType,
}

/// Where the gradient of the logits goes.
#[derive(Clone, Debug)]
pub struct LogitsGradient {
    /// `[tokens, rows]`, of `dtype`; zero for padding and tokens that are not counted.
    pub logits: TensorBinding,
    /// `[1]`, f32: the gradient of every token's loss, one over the number of tokens for a mean.
    pub scale: TensorBinding,
    /// f32, f16 or bf16.
    pub dtype: ElemType,
}

/// Writes the loss of each token, `[tokens]` in f32, zero where it is not counted, and the gradient if it is
/// asked for, once the client's stream gets there. Two runs give the same bits.
///
/// # Errors
///
/// If a shape or a stride is not what the arguments' types say. Nothing was launched then.
pub fn cross_entropy(
    client: &Client,
    inputs: LossInputs,
    losses: TensorBinding,
    gradient: Option<LogitsGradient>,
) -> Result<(), KernelError> {
    let shape = &inputs.logits.shape;
    if shape.len() != 2 {
        return Err(KernelError::Size {
            name: "axes of logits",
            expected: "2",
            got: shape.len(),
        });
    }
    let [tokens, rows] = [shape[0], shape[1]];
    check_whole("logits", &inputs.logits, &[tokens, rows])?;
    check_whole("targets", &inputs.targets, &[tokens])?;
    check_whole("losses", &losses, &[tokens])?;
    check_size(
        "vocab_size",
        "between 1 and the rows of logits",
        inputs.vocab_size,
        rows,
    )?;
    if let Some(gradient) = &gradient {
        check_whole("gradient of logits", &gradient.logits, &[tokens, rows])?;
        check_whole("scale", &gradient.scale, &[1])?;
    }
    if tokens == 0 {
        return Ok(());
    }
    let cube = CubeDim::new_1d(UNITS as u32);
    let count = cubecl::calculate_cube_count_elemwise(client, tokens * UNITS, cube);
    let address = address_type([&inputs.logits]);
    let (dtype, gradient) = match gradient {
        Some(it) => (it.dtype, Some((it.logits, it.scale))),
        None => (f32::elem_type_native(), None),
    };
    let (gradient, scale) = gradient.unzip();
    let given = present([scale.is_some(), gradient.is_some()]);
    // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
    unsafe {
        cross_entropy_kernel::launch_unchecked(
            client,
            count,
            cube,
            address,
            inputs.logits.into_tensor_arg(),
            inputs.targets.into_tensor_arg(),
            losses.into_tensor_arg(),
            scale.map(|it| it.into_tensor_arg()).into(),
            gradient.map(|it| it.into_tensor_arg()).into(),
            inputs.vocab_size as u32,
            given,
            [dtype, inputs.index_dtype],
        );
    }
    Ok(())
}
