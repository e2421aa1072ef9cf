//! The gradient in slices of time, so that one scratch tensor serves the parts of the gradients of `b` and `c` of all.
//!
//! Every chunk of time is cut alike. A launch takes the same slice of all chunks, the last one first, and leaves what the next
//! launch goes on from: the gradient of the state before the slice, and what the sums over time came to. So the
//! numbers are those of one launch, to the bit.

use cubecl::prelude::*;

use super::geometry::Geometry;
use super::{CHECKPOINT_INTERVAL, Dims};
use crate::bits::round_to;
use crate::sums::{shared_index, shared_sum, sharers, sharing_cube};

/// Shortest slice worth a launch, in positions.
const MIN_SLICE: usize = 512;

/// The parts of a launch take at most one in so many bytes of a sequence of f32, where slices get no shorter than that.
const SHARE: usize = 3;

/// How a chunk of time is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slices {
    /// Positions of a chunk.
    pub chunk_len: usize,
    /// Positions of a slice, a multiple of the interval between checkpoints.
    pub len: usize,
    pub count: usize,
}

impl Slices {
    pub fn new(chunk_len: usize, geometry: &Geometry) -> Self {
        // A position has `2 d_state` parts a block of channels.
        let wanted = (SHARE * 2 * geometry.d_state).div_ceil(geometry.channels);
        let count = wanted.min(chunk_len / MIN_SLICE).max(1);
        let len = chunk_len.div_ceil(count);
        let len = len.next_multiple_of(CHECKPOINT_INTERVAL);
        Self {
            chunk_len,
            len,
            count: chunk_len.div_ceil(len),
        }
    }
}

/// Where the sums of [`sum_projections`] go: `[batch, seq_len, d_state]`, of the launch's `dtype`.
pub(super) struct Projections<'a> {
    pub b: &'a TensorBinding,
    pub c: &'a TensorBinding,
    pub dtype: ElemType,
}

/// Adds the parts `[2, blocks, batch, chunks * slices.len, d_state]` of slice `slice` of every chunk, in an order that
/// depends on their number alone.
pub(super) fn sum_projections(
    client: &Client,
    parts: &TensorBinding,
    out: &Projections,
    dims: &Dims,
    slices: Slices,
    slice: usize,
    address: AddressType,
) {
    let sums = 2 * parts.shape[2..].iter().product::<usize>();
    if sums == 0 {
        return;
    }
    let sharers = sharers(parts.shape[1], sums);
    let units = sharing_cube(sharers);
    // SAFETY: units beyond the sums write nothing; the others index inside the tensors, whose shapes were checked.
    unsafe {
        sum_projections_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, sums * sharers, units),
            units,
            address,
            parts.clone().into_tensor_arg(),
            out.b.clone().into_tensor_arg(),
            out.c.clone().into_tensor_arg(),
            dims.seq_len,
            slices.chunk_len,
            slice * slices.len,
            slices.len,
            sharers,
            out.dtype,
        );
    }
}

/// Neighbouring units own neighbouring sums.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_projections_kernel<F: Float>(
    parts: &Tensor<f32>,    // [2, blocks, batch, rows, d_state]
    grad_b: &mut Tensor<F>, // [batch, seq_len, d_state]
    grad_c: &mut Tensor<F>, // [batch, seq_len, d_state]
    seq_len: usize,
    chunk_len: usize,
    slice_begin: usize, // in its chunk
    slice_len: usize,
    #[comptime] sharers: usize,
    #[define(F)] _dtype: ElemType,
) {
    let d_state = parts.shape(4);
    let rows = parts.shape(3);
    let blocks = parts.shape(1);
    let sums = parts.shape(2) * rows * d_state;
    let index = shared_index(sharers);
    let owned = select(index < 2 * sums, index, 2 * sums - 1);
    let half = owned / sums;
    let place = owned % sums;
    let first = half * blocks * sums + place;
    let sum = shared_sum(parts, first, sums, blocks, sharers);
    let row = place / d_state % rows;
    let position = slice_begin + row % slice_len;
    let t = row / slice_len * chunk_len + position;
    if index < 2 * sums && UNIT_POS_Y == 0 && position < chunk_len && t < seq_len {
        let out = (place / (rows * d_state) * seq_len + t) * d_state + place % d_state;
        if half == 0 {
            grad_b[out] = round_to::<F>(sum);
        } else {
            grad_c[out] = round_to::<F>(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_a_chunk_and_none_is_empty_or_short() {
        for (d_state, channels) in [(1, 32), (16, 32), (64, 16), (128, 8), (256, 4)] {
            let geometry = Geometry {
                d_state,
                width: 4,
                groups: d_state.div_ceil(4),
                channels,
                tile: 4,
                stage: 32,
                softplus: true,
                ptx: false,
                spirv: false,
            };
            for chunk_len in (1..300).map(|it| it * CHECKPOINT_INTERVAL) {
                let slices = Slices::new(chunk_len, &geometry);
                assert!(slices.len * slices.count >= chunk_len, "{slices:?}");
                assert!(slices.len * (slices.count - 1) < chunk_len, "{slices:?}");
                assert_eq!(slices.len % CHECKPOINT_INTERVAL, 0, "{slices:?}");
                assert!(slices.len >= MIN_SLICE.min(chunk_len), "{slices:?}");
            }
        }
    }

    #[test]
    fn the_parts_of_a_launch_are_a_third_of_a_sequence() {
        let geometry = Geometry {
            d_state: 16,
            width: 4,
            groups: 4,
            channels: 32,
            tile: 4,
            stage: 32,
            softplus: true,
            ptx: false,
            spirv: false,
        };
        let slices = Slices::new(2048, &geometry);
        assert_eq!([slices.len, slices.count], [704, 3]);
    }
}
