//! Sums over parts that cubes wrote, in a fixed order.

use cubecl::prelude::*;

/// Adds `rows` parts of the length of `out`, first to last. One unit a sum: neighbouring units read
/// neighbouring parts. A part is `[outer, inner]`, `out` is `[inner, outer]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn sum_kernel<F: Float>(
    parts: &Tensor<f32>, // [halves, rows, outer, inner]
    out: &mut Tensor<F>, // [inner, outer]
    half: u32,
    rows: u32,
    inner: u32,
    #[define(F)] _dtype: ElemType,
) {
    let width = out.len();
    if ABSOLUTE_POS >= width {
        terminate!();
    }
    let rows = rows as usize;
    let first = half as usize * rows * width + ABSOLUTE_POS;
    let mut sum = 0.0f32;
    for row in 0..rows {
        sum += parts[first + row * width];
    }
    let inner = inner as usize;
    let outer = width / inner;
    out[(ABSOLUTE_POS % inner) * outer + ABSOLUTE_POS / inner] = F::cast_from(sum);
}
