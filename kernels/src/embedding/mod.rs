//! The gradient of an embedding as a CubeCL kernel.
//!
//! ```text
//! grad_weight[v] = sum of grad[i] over the positions i whose token is v
//! ```
//!
//! Sums run in the order of the positions, so that two runs agree to the bit. The folder's `README.md` tells which unit
//! owns what and what it costs.

use cubecl::prelude::*;

use crate::KernelError;
use crate::tensors::{address_type, check_size, check_whole};

/// Units of a cube.
const UNITS: usize = 256;

/// Values that a unit loads at once, where rows are whole vectors of them.
const VECTOR: usize = 4;

/// Positions of a word, a bit each.
const WORD: usize = 32;

/// Most positions: each one's cube looks at all of them, and keeps a bit of each in 4 KiB of shared memory.
pub const MAX_POSITIONS: usize = 1 << 15;

/// What the gradient is made of: contiguous tensors.
#[derive(Clone, Debug)]
pub struct EmbeddingUpstream {
    /// `[positions]`, each below the rows of the weight.
    pub tokens: TensorBinding,
    /// Of the tokens: i32, u32, i64 or u64.
    pub index_dtype: ElemType,
    /// `[positions, columns]`, f32: gradient of what was looked up.
    pub grad: TensorBinding,
}

/// Writes the rows of `grad_weight`, `[rows, columns]`, f32, that tokens name; the others stay as they are, which is zero if
/// it is to be the gradient. Its rows are contiguous and may lie apart, as CUDA allocates them.
///
/// # Errors
///
/// If a shape or a stride is not what [`EmbeddingUpstream`] says, or there are more than [`MAX_POSITIONS`] positions. Nothing
/// was launched then.
pub fn embedding_backward(
    client: &Client,
    upstream: EmbeddingUpstream,
    grad_weight: TensorBinding,
) -> Result<(), KernelError> {
    let EmbeddingUpstream {
        tokens,
        index_dtype,
        grad,
    } = upstream;
    let positions = tokens.size();
    if positions == 0 {
        return Ok(());
    }
    check_size("positions", "at most 2^15", positions, MAX_POSITIONS)?;
    check_whole("tokens", &tokens, &[positions])?;
    let [columns, apart] = match (&grad_weight.shape[..], &grad_weight.strides[..]) {
        (&[_, columns], &[apart, 1]) if apart >= columns => [columns, apart],
        (&[_, _], strides) => {
            return Err(KernelError::Strides {
                name: "grad_weight",
                expected: "those of contiguous rows",
                got: strides.to_vec(),
            });
        }
        (shape, _) => {
            return Err(KernelError::Size {
                name: "axes of grad_weight",
                expected: "2",
                got: shape.len(),
            });
        }
    };
    check_whole("grad", &grad, &[positions, columns])?;
    let vector = match [columns, apart].iter().all(|it| it.is_multiple_of(VECTOR)) {
        true => VECTOR,
        false => 1,
    };
    // SAFETY: the caller answers for the tokens, as everywhere a table is looked up; all else lies inside its tensor.
    unsafe {
        embedding_backward_kernel::launch_unchecked(
            client,
            CubeCount::Static(positions as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            address_type([&grad, &grad_weight]),
            vector,
            tokens.into_tensor_arg(),
            grad.into_tensor_arg(),
            grad_weight.into_tensor_arg(),
            index_dtype,
        );
    }
    Ok(())
}

/// A cube owns a position. If no earlier one has its token, it adds up the gradients of all that have, a unit some columns.
#[cube(launch_unchecked, address_type = "dynamic")]
fn embedding_backward_kernel<I: Int, V: Size>(
    tokens: &Tensor<I>,                       // [positions]
    grad: &Tensor<Vector<f32, V>>,            // [positions, columns]
    grad_weight: &mut Tensor<Vector<f32, V>>, // [rows, columns]
    #[define(I)] _index: ElemType,
) {
    let columns = grad_weight.shape(1) / grad.vector_size();
    let positions = tokens.len();
    let words = positions.div_ceil(WORD);
    let token = tokens[CUBE_POS_X as usize];

    // Which positions have the token, a bit each.
    let mut masks = Shared::<[u32]>::new_slice(comptime!(MAX_POSITIONS / WORD));
    let mut word = UNIT_POS as usize;
    while word < words {
        let mut mask = 0u32;
        for bit in 0..comptime!(WORD as u32) {
            let at = word * WORD + bit as usize;
            if at < positions {
                mask |= u32::cast_from(tokens[at] == token) << bit;
            }
        }
        masks[word] = mask;
        word += UNITS;
    }
    sync_cube();

    // This position is one of them, so that the search ends.
    let mut word = 0usize.runtime();
    while masks[word] == 0 {
        word += 1;
    }
    let first = word * WORD + masks[word].trailing_zeros() as usize;
    if first == CUBE_POS_X as usize {
        let begin = u32::cast_from(token) as usize * (grad_weight.stride(0) / grad.vector_size());
        let mut column = UNIT_POS as usize;
        while column < columns {
            let mut sum = Vector::new(0.0f32);
            for at in word..words {
                let mut rest = masks[at];
                while rest != 0 {
                    let position = at * WORD + rest.trailing_zeros() as usize;
                    sum += grad[position * columns + column];
                    rest &= rest - 1;
                }
            }
            grad_weight[begin + column] = sum;
            column += UNITS;
        }
    }
}
