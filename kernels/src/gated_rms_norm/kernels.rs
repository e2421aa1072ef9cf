//! The kernels: the units of a cube share a group of a row, each with the columns that leave its remainder.

use cubecl::prelude::*;

use super::UNITS;
use crate::bits::round_to;
use crate::pointwise::sigmoid;
use crate::sums::cube_sum;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward_kernel<F: Float>(
    x: &Tensor<F>,       // [batch, seq_len, columns]
    z: &Tensor<F>,       // [batch, seq_len, columns]
    gamma: &Tensor<f32>, // [columns]
    y: &mut Tensor<F>,   // [batch, seq_len, columns]
    epsilon: f32,
    #[comptime] group_size: usize,
    #[comptime] units: usize,
    #[comptime] norm_before_gate: bool,
    #[comptime] ptx: bool,
    #[define(F)] _dtype: ElemType,
) {
    let columns = gamma.len();
    let groups = columns / group_size;
    let row = CUBE_POS / groups;
    let begin = CUBE_POS % groups * group_size;
    // All of a cube or none.
    if row >= y.len() / columns {
        terminate!();
    }
    let owned = comptime!(group_size.div_ceil(units));
    let (x_row, z_row) = (row_of(x, row) + begin, row_of(z, row) + begin);
    let out = row * columns + begin;
    let mut values = Array::<f32>::new(owned);
    let mut gates = Array::<f32>::new(owned);
    let mut gammas = Array::<f32>::new(owned);
    let mut square = 0.0f32;
    #[unroll]
    for k in 0..owned {
        let column = comptime!(k * units) + UNIT_POS as usize;
        let mut value = read(x, x_row, column, group_size);
        let gate = read(z, z_row, column, group_size);
        gates[k] = gate * sigmoid(gate, ptx);
        if comptime!(!norm_before_gate) {
            value *= gates[k];
        }
        values[k] = value;
        gammas[k] = 0.0f32;
        if column < group_size {
            gammas[k] = gamma[begin + column];
        }
        square += value * value;
    }
    let sum = cube_sum::<Const<1>>(Vector::new(square), units).extract(0usize);
    let scale = 1.0f32 / (sum / group_size as f32 + epsilon).sqrt();
    #[unroll]
    for k in 0..owned {
        let column = comptime!(k * units) + UNIT_POS as usize;
        if column < group_size {
            let mut value = values[k] * scale * gammas[k];
            if norm_before_gate {
                value *= gates[k];
            }
            y[out + column] = round_to::<F>(value);
        }
    }
}

/// A cube owns a group of `run` rows, and adds the gradient of `gamma` up over them in registers.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn backward_kernel<F: Float>(
    x: &Tensor<F>,           // [batch, seq_len, columns]
    z: &Tensor<F>,           // [batch, seq_len, columns]
    gamma: &Tensor<f32>,     // [columns]
    grad_y: &Tensor<F>,      // [batch, seq_len, columns]
    grad_x: &mut Tensor<F>,  // [batch, seq_len, columns]
    grad_z: &mut Tensor<F>,  // [batch, seq_len, columns]
    parts: &mut Tensor<f32>, // [runs, columns]
    epsilon: f32,
    run: u32,
    #[comptime] group_size: usize,
    #[comptime] norm_before_gate: bool,
    #[comptime] ptx: bool,
    #[define(F)] _dtype: ElemType,
) {
    let columns = gamma.len();
    let groups = columns / group_size;
    let part = CUBE_POS / groups;
    let begin = CUBE_POS % groups * group_size;
    if part >= parts.shape(0) {
        terminate!();
    }
    let owned = comptime!(group_size.div_ceil(UNITS));
    let rows = grad_x.len() / columns;
    let first = part * run as usize;
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
        gammas[k] = 0.0f32;
        if column < group_size {
            gammas[k] = gamma[begin + column];
        }
    }
    for row in first..end {
        let (x_row, z_row) = (row_of(x, row) + begin, row_of(z, row) + begin);
        let grad_row = row_of(grad_y, row) + begin;
        let out = row * columns + begin;
        let mut inputs = Array::<f32>::new(owned);
        let mut gates = Array::<f32>::new(owned);
        let mut slopes = Array::<f32>::new(owned);
        // Of the normalised value, before `gamma`.
        let mut grads = Array::<f32>::new(owned);
        let mut square = 0.0f32;
        let mut dot = 0.0f32;
        #[unroll]
        for k in 0..owned {
            let column = comptime!(k * UNITS) + UNIT_POS as usize;
            let input = read(x, x_row, column, group_size);
            let gate = read(z, z_row, column, group_size);
            let mut grad = read(grad_y, grad_row, column, group_size);
            let s = sigmoid(gate, ptx);
            let mut value = input;
            gates[k] = gate * s;
            slopes[k] = s + gate * s * (1.0f32 - s);
            inputs[k] = input;
            if norm_before_gate {
                // What the gate's own gradient still needs is kept in its slope.
                slopes[k] *= grad;
                grad *= gates[k];
            } else {
                value *= gates[k];
            }
            grads[k] = grad;
            square += value * value;
            dot += grad * gammas[k] * value;
        }
        let mut pair = Vector::<f32, Const<2>>::new(square);
        pair.insert(1usize, dot);
        let totals = cube_sum::<Const<2>>(pair, UNITS);
        let scale = 1.0f32 / (totals.extract(0usize) / group_size as f32 + epsilon).sqrt();
        let back = scale * scale * scale * totals.extract(1usize) / group_size as f32;
        #[unroll]
        for k in 0..owned {
            let column = comptime!(k * UNITS) + UNIT_POS as usize;
            let mut value = inputs[k];
            if comptime!(!norm_before_gate) {
                value *= gates[k];
            }
            sums[k] += grads[k] * value * scale;
            if column < group_size {
                let grad = grads[k] * gammas[k] * scale - value * back;
                if norm_before_gate {
                    grad_x[out + column] = round_to::<F>(grad);
                    grad_z[out + column] = round_to::<F>(slopes[k] * value * scale * gammas[k]);
                } else {
                    grad_x[out + column] = round_to::<F>(grad * gates[k]);
                    grad_z[out + column] = round_to::<F>(grad * inputs[k] * slopes[k]);
                }
            }
        }
    }
    #[unroll]
    for k in 0..owned {
        let column = comptime!(k * UNITS) + UNIT_POS as usize;
        if column < group_size {
            parts[part * columns + begin + column] = sums[k];
        }
    }
}

/// Where a row begins: rows count through the first two axes.
#[cube]
fn row_of<F: Float>(tensor: &Tensor<F>, row: usize) -> usize {
    let seq_len = tensor.shape(1);
    row / seq_len * tensor.stride(0) + row % seq_len * tensor.stride(1)
}

/// An entry of a group, zero past its end.
#[cube]
fn read<F: Float>(
    tensor: &Tensor<F>,
    row: usize,
    column: usize,
    #[comptime] group_size: usize,
) -> f32 {
    let mut value = 0.0f32;
    if column < group_size {
        value = f32::cast_from(tensor[row + column]);
    }
    value
}
