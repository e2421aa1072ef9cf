//! The scan of Mamba-2 (state-space duality) as CubeCL kernels.
//!
//! ```text
//! dt_t = clamp(softplus(dt_t + dt_bias), dt_limit)
//! h_t  = exp(dt_t a) h_{t-1} + dt_t x_t B_t^T
//! y_t  = h_t C_t + d x_t
//! ```
//!
//! Source: Dao and Gu 2024, "Transformers are SSMs", sections 5 and 6. The folder's `README.md` tells which unit owns
//! what and what it costs.
//!
//! Sequences may be f32, f16 or bf16; the parameters, the states and all sums are f32. Factors of tensor-core products
//! are of the sequences' type, which is then f16 or bf16: a state or a weighted step above 65504 is an infinity in f16.

// In a kernel, what is known when it is compiled has an `if` of its own around what is not, and
// `%` is an instruction where `is_multiple_of` is not.
#![allow(
    clippy::collapsible_if,
    clippy::if_same_then_else,
    clippy::manual_is_multiple_of
)]

mod backward;
mod geometry;
mod launch;
mod load;
mod planes;
mod repair;
mod segments;
mod stages;
mod steps;
mod tile;
mod units;

use cubecl::prelude::*;

use crate::KernelError;
use crate::tensors::{check_optional, check_rows, check_shape, check_size, check_whole};

pub use backward::{ssd_backward, ssd_backward_as};
pub use launch::{ssd, ssd_as};

/// Largest number of states of a channel.
pub const MAX_STATE: usize = 256;

/// Largest number of channels of a head.
pub const MAX_HEAD: usize = 256;

/// Chunks are multiples of this.
const CHUNK_STEP: usize = 16;

/// Largest chunk.
const MAX_CHUNK: usize = 256;

/// How the work is cut and computed. The default lets sizes and device decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// About how many segments of time at once: more than one costs a pass more, to know the state before each. Left out:
    /// one where batch and heads fill the device, else as many as do. Of the gradients on plain units: how many one after the
    /// other, of whole chunks; as many as keep scratch small.
    pub segments: Option<usize>,
    /// Whether to use tensor cores where inputs are halves and the device has them.
    pub tensor_cores: bool,
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            segments: None,
            tensor_cores: true,
        }
    }
}

/// What the scan reads.
///
/// Sequences and projections may be slices of wider rows: any strides of the first two axes, the others contiguous. The
/// other tensors are contiguous.
#[derive(Clone, Debug)]
pub struct SsdInputs {
    /// `[batch, seq_len, nheads, headdim]`, of `dtype`.
    pub x: TensorBinding,
    /// `[batch, seq_len, nheads]`, of `dtype`.
    pub dt: TensorBinding,
    /// `[nheads]`, f32, negative.
    pub a: TensorBinding,
    /// `[batch, seq_len, ngroups, d_state]`, of `dtype`. Head `h` reads group `h / (nheads / ngroups)`.
    pub b: TensorBinding,
    /// `[batch, seq_len, ngroups, d_state]`, of `dtype`.
    pub c: TensorBinding,
    /// `[nheads]` or `[nheads, headdim]`, f32.
    pub d: Option<TensorBinding>,
    /// `[nheads]`, f32.
    pub dt_bias: Option<TensorBinding>,
    /// `[batch, nheads, headdim, d_state]`, f32.
    pub initial_state: Option<TensorBinding>,
    /// `[batch, seq_len]`, of `index_dtype`. The state is zeroed where it changes; the initial state belongs to the
    /// first run.
    pub seq_idx: Option<TensorBinding>,
    /// Whether `dt` goes through softplus.
    pub dt_softplus: bool,
    /// Between which values `dt` is clamped, after softplus.
    pub dt_limit: (f32, f32),
    /// Positions between two saved states: a multiple of 16 up to 256. What is computed does not depend on it but for
    /// rounding.
    pub chunk_size: usize,
    /// Of the sequences: f32, f16 or bf16.
    pub dtype: ElemType,
    /// Of `seq_idx`: any integer type.
    pub index_dtype: ElemType,
}

/// Where the scan writes: contiguous tensors.
#[derive(Clone, Debug)]
pub struct SsdOutputs {
    /// `[batch, seq_len, nheads, headdim]`, of the inputs' dtype.
    pub y: TensorBinding,
    /// `[batch, nheads, headdim, d_state]`, f32.
    pub final_state: TensorBinding,
    /// The states before positions `0, Q, 2 Q, ..` with `Q` the chunk size:
    /// `[batch, ceil(seq_len / Q), nheads, headdim, d_state]`, f32. Left out: not saved.
    pub checkpoints: Option<TensorBinding>,
}

/// Where the gradients come from.
#[derive(Clone, Debug)]
pub struct SsdUpstream {
    /// What the forward scan saved.
    pub checkpoints: TensorBinding,
    /// `[batch, seq_len, nheads, headdim]`, of the inputs' dtype; strided like the inputs.
    pub y: TensorBinding,
    /// `[batch, nheads, headdim, d_state]`, f32, contiguous. Left out: zero.
    pub final_state: Option<TensorBinding>,
}

/// Where the gradients go: contiguous tensors, shaped and typed as their inputs. One left out is
/// not written; one of an input that was left out is ignored.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // one field an input, documented there
pub struct SsdGradients {
    pub x: TensorBinding,
    pub dt: TensorBinding,
    pub a: TensorBinding,
    pub b: TensorBinding,
    pub c: TensorBinding,
    pub d: Option<TensorBinding>,
    pub dt_bias: Option<TensorBinding>,
    pub initial_state: Option<TensorBinding>,
}

/// The sizes of a problem.
#[derive(Clone, Copy, Debug)]
struct Dims {
    batch: usize,
    seq_len: usize,
    nheads: usize,
    headdim: usize,
    ngroups: usize,
    d_state: usize,
    chunk_size: usize,
}

impl Dims {
    fn sequence(&self) -> [usize; 4] {
        [self.batch, self.seq_len, self.nheads, self.headdim]
    }

    fn projection(&self) -> [usize; 4] {
        [self.batch, self.seq_len, self.ngroups, self.d_state]
    }

    fn state(&self) -> [usize; 4] {
        [self.batch, self.nheads, self.headdim, self.d_state]
    }

    fn checkpoints(&self) -> [usize; 5] {
        let chunks = self.seq_len.div_ceil(self.chunk_size);
        [self.batch, chunks, self.nheads, self.headdim, self.d_state]
    }
}

impl SsdInputs {
    /// All of them that there are.
    fn tensors(&self) -> impl Iterator<Item = &TensorBinding> {
        let needed = [&self.x, &self.dt, &self.a, &self.b, &self.c];
        let optional = [&self.d, &self.dt_bias, &self.initial_state, &self.seq_idx];
        needed.into_iter().chain(optional.into_iter().flatten())
    }

    /// The sizes, once every shape and stride is one that the kernels read.
    fn check(&self) -> Result<Dims, KernelError> {
        let (x, b) = (&self.x.shape, &self.b.shape);
        if x.len() != 4 || b.len() != 4 {
            return Err(KernelError::Shape {
                name: "x and b",
                expected: vec![4, 4],
                got: vec![x.len(), b.len()],
            });
        }
        let dims = Dims {
            batch: x[0],
            seq_len: x[1],
            nheads: x[2],
            headdim: x[3],
            ngroups: b[2],
            d_state: b[3],
            chunk_size: self.chunk_size,
        };
        for (name, got) in [
            ("batch", dims.batch),
            ("seq_len", dims.seq_len),
            ("nheads", dims.nheads),
        ] {
            // The last positions of a chunk may lie past the sequence, and are counted, too.
            check_size(name, "between 1 and 2^31 - 256", got, (1 << 31) - 256)?;
        }
        check_size("headdim", "between 1 and 256", dims.headdim, MAX_HEAD)?;
        check_size("d_state", "between 1 and 256", dims.d_state, MAX_STATE)?;
        if dims.ngroups == 0 || !dims.nheads.is_multiple_of(dims.ngroups) {
            return Err(KernelError::Size {
                name: "ngroups",
                expected: "a divisor of nheads",
                got: dims.ngroups,
            });
        }
        let chunks = CHUNK_STEP..=MAX_CHUNK;
        if !chunks.contains(&dims.chunk_size) || !dims.chunk_size.is_multiple_of(CHUNK_STEP) {
            return Err(KernelError::Size {
                name: "chunk_size",
                expected: "a multiple of 16 between 16 and 256",
                got: dims.chunk_size,
            });
        }
        check_heads("x", &self.x, dims.sequence())?;
        check_rows("dt", &self.dt, [dims.batch, dims.seq_len, dims.nheads])?;
        check_heads("b", &self.b, dims.projection())?;
        check_heads("c", &self.c, dims.projection())?;
        check_whole("a", &self.a, &[dims.nheads])?;
        match &self.d {
            Some(d) if d.shape.len() == 2 => check_whole("d", d, &[dims.nheads, dims.headdim])?,
            d => check_optional("d", d, &[dims.nheads])?,
        }
        check_optional("dt_bias", &self.dt_bias, &[dims.nheads])?;
        check_optional("initial_state", &self.initial_state, &dims.state())?;
        check_optional("seq_idx", &self.seq_idx, &[dims.batch, dims.seq_len])?;
        Ok(dims)
    }
}

/// Checks a tensor whose last two axes are contiguous together.
fn check_heads(
    name: &'static str,
    tensor: &TensorBinding,
    expected: [usize; 4],
) -> Result<(), KernelError> {
    check_shape(name, tensor, &expected)?;
    let [.., heads, width] = expected;
    let narrow = tensor.strides[3] == 1 || width == 1;
    let wide = tensor.strides[2] == width || heads == 1;
    match narrow && wide {
        true => Ok(()),
        false => Err(KernelError::Strides {
            name,
            expected: "contiguous along its last two axes",
            got: tensor.strides.to_vec(),
        }),
    }
}
