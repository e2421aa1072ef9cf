//! The depthwise causal convolution of Mamba and its gradients as CubeCL kernels.
//!
//! ```text
//! y_t = silu(bias + sum over k of weight[k] x_{t - (width - 1) + k})
//! ```
//!
//! The folder's `README.md` tells which unit owns what and what it costs.
//!
//! Sequences may be f32, f16 or bf16; the parameters, the windows and all arithmetic are f32.

// In a kernel, what is known when it is compiled has an `if` of its own around what is not.
#![allow(clippy::collapsible_if)]

mod backward;
mod forward;
mod geometry;
mod launch;
mod unit;

use cubecl::prelude::*;

use crate::KernelError;
use crate::tensors::{check_optional, check_rows, check_size, check_whole};

pub use launch::{causal_conv1d, causal_conv1d_backward};

/// Largest number of taps: a unit keeps all of a channel's in registers.
pub const MAX_WIDTH: usize = 16;

/// What the convolution reads.
///
/// `x` may be a slice along its last axis: any strides of the first two axes, 1 of the last. The other
/// tensors are contiguous. Any size may be 0 but `width`.
#[derive(Clone, Debug)]
pub struct ConvInputs {
    /// `[batch, seq_len, channels]`, of `dtype`.
    pub x: TensorBinding,
    /// The filters, newest tap last: `[channels, width]`, f32.
    pub weight: TensorBinding,
    /// `[channels]`, f32.
    pub bias: Option<TensorBinding>,
    /// The inputs before the first position, oldest first: `[batch, width - 1, channels]`, f32. Left
    /// out: zero.
    pub initial_state: Option<TensorBinding>,
    /// `[batch, seq_len]`, of `index_dtype`. No tap reads across a change.
    pub seq_idx: Option<TensorBinding>,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Of `x` and `y`: f32, f16 or bf16.
    pub dtype: ElemType,
    /// Of `seq_idx`: any integer type.
    pub index_dtype: ElemType,
}

/// Where the convolution writes: contiguous tensors.
#[derive(Clone, Debug)]
pub struct ConvOutputs {
    /// `[batch, seq_len, channels]`, of the inputs' dtype.
    pub y: TensorBinding,
    /// The last inputs, oldest first, zero where they belong to an earlier run than the last
    /// position: `[batch, width - 1, channels]`, f32. Left out: not written.
    pub final_state: Option<TensorBinding>,
}

/// Where the gradients come from.
#[derive(Clone, Debug)]
pub struct ConvUpstream {
    /// `[batch, seq_len, channels]`, of the inputs' dtype; strided like `x`.
    pub y: TensorBinding,
    /// `[batch, width - 1, channels]`, f32, contiguous. Left out: zero.
    pub final_state: Option<TensorBinding>,
}

/// Where the gradients go: contiguous tensors, shaped and typed as their inputs. One left out is
/// not written; one of an input that was left out is ignored.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // one field an input, documented there
pub struct ConvGradients {
    pub x: TensorBinding,
    pub weight: TensorBinding,
    pub bias: Option<TensorBinding>,
    pub initial_state: Option<TensorBinding>,
}

/// The sizes of a problem.
#[derive(Clone, Copy, Debug)]
struct Dims {
    batch: usize,
    seq_len: usize,
    channels: usize,
    width: usize,
}

impl Dims {
    fn sequence(&self) -> [usize; 3] {
        [self.batch, self.seq_len, self.channels]
    }

    fn window(&self) -> [usize; 3] {
        [self.batch, self.width - 1, self.channels]
    }
}

impl ConvInputs {
    /// All of them that there are.
    fn tensors(&self) -> impl Iterator<Item = &TensorBinding> {
        let optional = [&self.bias, &self.initial_state, &self.seq_idx];
        let needed = [&self.x, &self.weight];
        needed.into_iter().chain(optional.into_iter().flatten())
    }

    /// The sizes, once every shape and stride is one that the kernels read.
    fn check(&self) -> Result<Dims, KernelError> {
        let (x, weight) = (&self.x.shape, &self.weight.shape);
        if x.len() != 3 || weight.len() != 2 {
            return Err(KernelError::Shape {
                name: "ranks of x and weight",
                expected: vec![3, 2],
                got: vec![x.len(), weight.len()],
            });
        }
        let dims = Dims {
            batch: x[0],
            seq_len: x[1],
            channels: x[2],
            width: weight[1],
        };
        check_size("width", "between 1 and 16", dims.width, MAX_WIDTH)?;
        for (name, size) in [
            ("batch", dims.batch),
            ("seq_len", dims.seq_len),
            ("channels", dims.channels),
        ] {
            if size > 0 {
                check_size(name, "at most 2^31", size, 1 << 31)?;
            }
        }
        check_rows("x", &self.x, dims.sequence())?;
        check_whole("weight", &self.weight, &[dims.channels, dims.width])?;
        check_optional("bias", &self.bias, &[dims.channels])?;
        check_optional("initial_state", &self.initial_state, &dims.window())?;
        check_optional("seq_idx", &self.seq_idx, &[dims.batch, dims.seq_len])?;
        Ok(dims)
    }
}
