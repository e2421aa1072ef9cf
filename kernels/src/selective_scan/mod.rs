//! The selective scan of Mamba-1 and its gradients as CubeCL kernels.
//!
//! ```text
//! dt_t = softplus(delta_t + delta_bias)
//! h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t
//! y_t  = (C_t . h_t + D u_t) silu(z_t)
//! ```
//!
//! Source: Gu and Dao 2023, "Mamba", section 3.2 and algorithm 2. The folder's `README.md` tells
//! which unit owns what and what it costs.
//!
//! Sequences may be f32, f16 or bf16; the parameters, the states and all arithmetic are f32.

// In a kernel, what is known when it is compiled has an `if` of its own around what is not, and
// `%` is an instruction where `is_multiple_of` is not.
#![allow(
    clippy::collapsible_if,
    clippy::if_same_then_else,
    clippy::manual_is_multiple_of
)]

mod backward;
mod chunks;
mod forward;
mod geometry;
mod launch;
mod launch_backward;
mod pointwise;
mod slices;
mod tile;

use cubecl::prelude::*;
use cubecl::zspace::Shape;

use crate::KernelError;
use crate::tensors::{check_optional, check_rows, check_size, check_whole, checked_grid};

pub use launch::selective_scan;
pub use launch_backward::selective_scan_backward;

/// Positions between two saved states. The gradients recompute the states between them.
pub const CHECKPOINT_INTERVAL: usize = 32;

/// Largest number of states of a channel.
pub const MAX_STATE: usize = 256;

/// How time is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// [`Strategy::Sequential`] where batch and channels fill the device, else
    /// [`Strategy::Chunked`].
    #[default]
    Auto,
    /// Every channel walks its sequence from end to end: one pass.
    Sequential,
    /// About `chunks` chunks of time at once: one pass more, to know the state before each.
    Chunked {
        /// How many; a chunk's length is rounded up to [`CHECKPOINT_INTERVAL`].
        chunks: usize,
    },
}

/// What the scan reads.
///
/// Sequences and projections may be slices along their last axis: any strides of the first two
/// axes, 1 of the last. The other tensors are contiguous.
#[derive(Clone, Debug)]
pub struct ScanInputs {
    /// `[batch, seq_len, d_inner]`, of `dtype`.
    pub u: TensorBinding,
    /// `[batch, seq_len, d_inner]`, of `dtype`.
    pub delta: TensorBinding,
    /// `[d_inner, d_state]`, f32.
    pub a: TensorBinding,
    /// `[batch, seq_len, d_state]`, of `dtype`.
    pub b: TensorBinding,
    /// `[batch, seq_len, d_state]`, of `dtype`.
    pub c: TensorBinding,
    /// `[d_inner]`, f32.
    pub d: Option<TensorBinding>,
    /// `[batch, seq_len, d_inner]`, of `dtype`.
    pub z: Option<TensorBinding>,
    /// `[d_inner]`, f32.
    pub delta_bias: Option<TensorBinding>,
    /// `[batch, d_inner, d_state]`, f32.
    pub initial_state: Option<TensorBinding>,
    /// `[batch, seq_len]`, of `index_dtype`. The state is zeroed where it changes.
    pub seq_idx: Option<TensorBinding>,
    /// Whether `delta` goes through softplus.
    pub delta_softplus: bool,
    /// Of the sequences: f32, f16 or bf16.
    pub dtype: ElemType,
    /// Of `seq_idx`: any integer type.
    pub index_dtype: ElemType,
}

/// Where the scan writes: contiguous tensors.
#[derive(Clone, Debug)]
pub struct ScanOutputs {
    /// `[batch, seq_len, d_inner]`, of the inputs' dtype.
    pub y: TensorBinding,
    /// `[batch, d_inner, d_state]`, f32.
    pub final_state: TensorBinding,
    /// The states before positions `0, K, 2 K, ..` with `K =` [`CHECKPOINT_INTERVAL`]:
    /// `[batch, ceil(seq_len / K), d_state, d_inner]`, f32. Left out: not saved.
    pub checkpoints: Option<TensorBinding>,
}

/// Where the gradients come from.
#[derive(Clone, Debug)]
pub struct ScanUpstream {
    /// What the forward scan saved.
    pub checkpoints: TensorBinding,
    /// `[batch, seq_len, d_inner]`, of the inputs' dtype; strided like the inputs.
    pub y: TensorBinding,
    /// `[batch, d_inner, d_state]`, f32, contiguous. Left out: zero.
    pub final_state: Option<TensorBinding>,
}

/// Where the gradients go: contiguous tensors, shaped and typed as their inputs. One left out is
/// not written; one of an input that was left out is ignored.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // one field an input, documented there
pub struct ScanGradients {
    pub u: TensorBinding,
    pub delta: TensorBinding,
    pub a: TensorBinding,
    pub b: TensorBinding,
    pub c: TensorBinding,
    pub d: Option<TensorBinding>,
    pub z: Option<TensorBinding>,
    pub delta_bias: Option<TensorBinding>,
    pub initial_state: Option<TensorBinding>,
}

/// The sizes of a problem.
#[derive(Clone, Copy, Debug)]
struct Dims {
    batch: usize,
    seq_len: usize,
    d_inner: usize,
    d_state: usize,
}

impl Dims {
    fn sequence(&self) -> [usize; 3] {
        [self.batch, self.seq_len, self.d_inner]
    }

    fn projection(&self) -> [usize; 3] {
        [self.batch, self.seq_len, self.d_state]
    }

    fn state(&self) -> [usize; 3] {
        [self.batch, self.d_inner, self.d_state]
    }

    fn checkpoints(&self) -> [usize; 4] {
        let intervals = self.seq_len.div_ceil(CHECKPOINT_INTERVAL);
        [self.batch, intervals, self.d_state, self.d_inner]
    }
}

impl ScanInputs {
    /// All of them that there are.
    fn tensors(&self) -> impl Iterator<Item = &TensorBinding> {
        let needed = [&self.u, &self.delta, &self.a, &self.b, &self.c];
        let optional = [
            &self.d,
            &self.z,
            &self.delta_bias,
            &self.initial_state,
            &self.seq_idx,
        ];
        needed.into_iter().chain(optional.into_iter().flatten())
    }

    /// The sizes, once every shape and stride is one that the kernels read.
    fn check(&self) -> Result<Dims, KernelError> {
        let (u, a) = (&self.u.shape, &self.a.shape);
        if u.len() != 3 || a.len() != 2 {
            return Err(KernelError::Shape {
                name: "u and a",
                expected: vec![3, 2],
                got: vec![u.len(), a.len()],
            });
        }
        let dims = Dims {
            batch: u[0],
            seq_len: u[1],
            d_inner: u[2],
            d_state: a[1],
        };
        for (name, got) in [
            ("batch", dims.batch),
            ("seq_len", dims.seq_len),
            ("d_inner", dims.d_inner),
        ] {
            check_size(name, "between 1 and 2^31", got, 1 << 31)?;
        }
        check_size("d_state", "between 1 and 256", dims.d_state, MAX_STATE)?;
        check_rows("u", &self.u, dims.sequence())?;
        check_rows("delta", &self.delta, dims.sequence())?;
        check_rows("b", &self.b, dims.projection())?;
        check_rows("c", &self.c, dims.projection())?;
        check_whole("a", &self.a, &[dims.d_inner, dims.d_state])?;
        if let Some(z) = &self.z {
            check_rows("z", z, dims.sequence())?;
        }
        check_optional("d", &self.d, &[dims.d_inner])?;
        check_optional("delta_bias", &self.delta_bias, &[dims.d_inner])?;
        check_optional("initial_state", &self.initial_state, &dims.state())?;
        check_optional("seq_idx", &self.seq_idx, &[dims.batch, dims.seq_len])?;
        Ok(dims)
    }
}

/// A state `[batch, d_inner, d_state]` as the kernels read the states of chunks:
/// `[batch, 1, d_state, d_inner]`.
fn as_chunk(state: TensorBinding, dims: &Dims) -> TensorBinding {
    let states = dims.d_inner * dims.d_state;
    TensorBinding {
        shape: Shape::from(vec![dims.batch, 1, dims.d_state, dims.d_inner]),
        strides: vec![states, 0, 1, dims.d_state].into(),
        ..state
    }
}

/// The kernels' grid: blocks of channels, sequences, chunks of time.
fn cube_count(
    client: &Client,
    dims: &Dims,
    channels: usize,
    chunk_len: usize,
) -> Result<CubeCount, KernelError> {
    let counts = [
        dims.d_inner.div_ceil(channels),
        dims.batch,
        dims.seq_len.div_ceil(chunk_len),
    ];
    checked_grid(client, counts)
}
