//! Sums over parts that cubes or units wrote, in a fixed order.

use cubecl::prelude::*;

use crate::bits::round_to;
use crate::tensors::address_type;

/// Units of a cube that adds parts: few, so that few sums spread over the device.
const UNITS: u32 = 128;

/// Units that share a sum where sums are few and parts many.
const SHARERS: usize = 8;

/// Sums above which a unit each fills every card.
const MANY_SUMS: usize = 1 << 16;

/// Parts below which a sum is not worth sharing.
const MANY_ROWS: usize = 64;

/// Parts of sums, `[halves, rows, sums]`, of which one half is wanted. Within a row the sums of `out`
/// are `[outer, inner]`, those of `tail` follow.
pub(crate) struct Parts {
    pub parts: TensorBinding,
    pub half: usize,
    pub rows: usize,
    pub inner: usize,
    /// `[inner, outer]`, of the launch's `dtype`.
    pub out: TensorBinding,
    /// `[inner]`, of the same type.
    pub tail: Option<TensorBinding>,
}

/// Adds parts, in an order that depends on their number alone. None at all come to zero.
pub(crate) fn sum_parts(client: &Client, parts: Parts, dtype: ElemType) {
    let lengths = [Some(&parts.out), parts.tail.as_ref()];
    let sums: usize = lengths.into_iter().flatten().map(TensorBinding::size).sum();
    if sums == 0 {
        return;
    }
    let sharers = sharers(parts.rows, sums);
    let units = sharing_cube(sharers);
    // SAFETY: units beyond the sums write nothing; the parts hold `rows` times as many values.
    unsafe {
        sum_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, sums * sharers, units),
            units,
            address_type([&parts.parts]),
            parts.parts.into_tensor_arg(),
            parts.out.into_tensor_arg(),
            parts.tail.map(|it| it.into_tensor_arg()).into(),
            parts.half as u32,
            parts.rows,
            parts.inner,
            sharers,
            dtype,
        );
    }
}

/// How many units share a sum of `rows` parts, where there are `sums`.
pub(crate) fn sharers(rows: usize, sums: usize) -> usize {
    match rows >= MANY_ROWS && sums <= MANY_SUMS {
        true => SHARERS,
        false => 1,
    }
}

/// The cube whose units add with [`shared_sum`]: those of a row own neighbouring sums.
pub(crate) fn sharing_cube(sharers: usize) -> CubeDim {
    CubeDim::new_2d(UNITS / sharers as u32, sharers as u32)
}

/// The number of the unit's sum.
#[cube]
pub(crate) fn shared_index(#[comptime] sharers: usize) -> usize {
    CUBE_POS * comptime!(UNITS as usize / sharers) + UNIT_POS_X as usize
}

/// The sum of `rows` parts, `stride` apart from `first` on, in an order that depends on their number alone. Of the `sharers`
/// units of a sum, unit `k` adds the parts that leave the remainder `k`; only the first, that with `UNIT_POS_Y` 0, has all.
#[cube]
pub(crate) fn shared_sum(
    parts: &Tensor<f32>,
    first: usize,
    stride: usize,
    rows: usize,
    #[comptime] sharers: usize,
) -> f32 {
    let mut sum = 0.0f32;
    if comptime!(sharers == 1) {
        for row in 0..rows {
            sum += parts[first + row * stride];
        }
    } else {
        let width = comptime!(UNITS as usize / sharers);
        let mut row = UNIT_POS_Y as usize;
        while row < rows {
            sum += parts[first + row * stride];
            row += sharers;
        }
        let mut shared = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
        shared[UNIT_POS as usize] = sum;
        sync_cube();
        #[unroll]
        for k in 1..sharers {
            sum += shared[comptime!(k * width) + UNIT_POS_X as usize];
        }
    }
    sum
}

/// Neighbouring units own neighbouring sums.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_kernel<F: Float>(
    parts: &Tensor<f32>,                      // [halves, rows, sums]
    out: &mut Tensor<F>,                      // [inner, outer]
    mut tail: ComptimeOption<OwnedTensor<F>>, // [inner]
    half: u32,
    rows: usize,
    inner: usize,
    #[comptime] sharers: usize,
    #[define(F)] _dtype: ElemType,
) {
    let len = out.len();
    let mut sums = len;
    if comptime!(tail.is_some()) {
        sums += inner;
    }
    let index = shared_index(sharers);
    let column = select(index < sums, index, sums - 1);
    let first = half as usize * rows * sums + column;
    let sum = shared_sum(parts, first, sums, rows, sharers);
    if index < sums && UNIT_POS_Y == 0 {
        if index < len {
            let outer = len / inner;
            out[(index % inner) * outer + index / inner] = round_to::<F>(sum);
        } else {
            #[comptime]
            if let ComptimeOption::Some(tail) = &mut tail {
                tail[index - len] = round_to::<F>(sum);
            }
        }
    }
}

/// The sum of a vector over the units of a cube, a power of two, in one order.
#[cube]
pub(crate) fn cube_sum<N: Size>(value: Vector<f32, N>, #[comptime] units: usize) -> Vector<f32, N> {
    let mut shared = Shared::<[Vector<f32, N>]>::new_slice(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(units.ilog2() as usize + 1) {
        let half = comptime!(units >> step);
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
    }
    let sum = shared[0];
    // The next sums go to the same place.
    sync_cube();
    sum
}
