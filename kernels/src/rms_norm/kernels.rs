//! The kernels: the units of a cube share a row, each with the columns that leave its remainder.

use cubecl::prelude::*;

use super::UNITS;
use crate::bits::round_to;
use crate::sums::cube_sum;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn rms_norm_kernel<F: Float>(
    x: &Tensor<f32>,                             // [rows, columns]
    update: ComptimeOption<&Tensor<f32>>,        // [rows, columns]
    gamma: &Tensor<f32>,                         // [columns]
    mut added: ComptimeOption<OwnedTensor<f32>>, // [rows, columns]
    y: &mut Tensor<F>,                           // [rows, columns]
    epsilon: f32,
    #[comptime] owned: usize,
    #[comptime] units: usize,
    #[comptime] _present: u32,
    #[define(F)] _dtype: ElemType,
) {
    // All of a cube or none.
    if CUBE_POS >= x.shape(0) {
        terminate!();
    }
    let columns = gamma.len();
    let row = CUBE_POS * columns;
    let mut values = Array::<f32>::new(owned);
    let mut gammas = Array::<f32>::new(owned);
    let mut square = 0.0f32;
    #[unroll]
    for k in 0..owned {
        let column = comptime!(k * units) + UNIT_POS as usize;
        let mut value = read(x, row, column, columns);
        #[comptime]
        if let ComptimeOption::Some(update) = update {
            value += read(update, row, column, columns);
        }
        values[k] = value;
        gammas[k] = read(gamma, 0, column, columns);
        square += value * value;
    }
    let sum = cube_sum::<Const<1>>(Vector::new(square), units).extract(0usize);
    let scale = 1.0f32 / (sum / columns as f32 + epsilon).sqrt();
    #[unroll]
    for k in 0..owned {
        let column = comptime!(k * units) + UNIT_POS as usize;
        if column < columns {
            y[row + column] = round_to::<F>(values[k] * scale * gammas[k]);
            #[comptime]
            if let ComptimeOption::Some(added) = &mut added {
                added[row + column] = values[k];
            }
        }
    }
}

/// A cube owns `run` rows, and adds the gradient of `gamma` up over them in registers.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn rms_norm_backward_kernel<F: Float>(
    x: &Tensor<f32>,          // [rows, columns]
    gamma: &Tensor<f32>,      // [columns]
    grad_y: &Tensor<F>,       // [rows, columns]
    grad_x: &mut Tensor<f32>, // [rows, columns]
    parts: &mut Tensor<f32>,  // [runs, columns]
    epsilon: f32,
    run: u32,
    #[comptime] owned: usize,
    #[define(F)] _dtype: ElemType,
) {
    if CUBE_POS >= parts.shape(0) {
        terminate!();
    }
    let rows = x.shape(0);
    let columns = gamma.len();
    let first = CUBE_POS * run as usize;
    let mut end = first + run as usize;
    if end > rows {
        end = rows;
    }
    let mut sums = Array::<f32>::new(owned);
    let mut gammas = Array::<f32>::new(owned);
    #[unroll]
    for k in 0..owned {
        let column = comptime!(k * UNITS) + UNIT_POS as usize;
        sums[k] = 0.0f32;
        gammas[k] = read(gamma, 0, column, columns);
    }
    for index in first..end {
        let row = index * columns;
        let mut values = Array::<f32>::new(owned);
        let mut grads = Array::<f32>::new(owned);
        let mut square = 0.0f32;
        let mut dot = 0.0f32;
        #[unroll]
        for k in 0..owned {
            let column = comptime!(k * UNITS) + UNIT_POS as usize;
            let value = read(x, row, column, columns);
            let mut grad = 0.0f32;
            if column < columns {
                grad = f32::cast_from(grad_y[row + column]);
            }
            values[k] = value;
            grads[k] = grad;
            square += value * value;
            dot += grad * gammas[k] * value;
        }
        let mut pair = Vector::<f32, Const<2>>::new(square);
        pair.insert(1usize, dot);
        let totals = cube_sum::<Const<2>>(pair, UNITS);
        let scale = 1.0f32 / (totals.extract(0usize) / columns as f32 + epsilon).sqrt();
        let back = scale * scale * scale * totals.extract(1usize) / columns as f32;
        #[unroll]
        for k in 0..owned {
            let column = comptime!(k * UNITS) + UNIT_POS as usize;
            sums[k] += grads[k] * values[k] * scale;
            if column < columns {
                grad_x[row + column] = grads[k] * gammas[k] * scale - values[k] * back;
            }
        }
    }
    #[unroll]
    for k in 0..owned {
        let column = comptime!(k * UNITS) + UNIT_POS as usize;
        if column < columns {
            parts[CUBE_POS * columns + column] = sums[k];
        }
    }
}

/// An entry of a row, zero past its end.
#[cube]
fn read(tensor: &Tensor<f32>, row: usize, column: usize, columns: usize) -> f32 {
    let mut value = 0.0f32;
    if column < columns {
        value = tensor[row + column];
    }
    value
}
