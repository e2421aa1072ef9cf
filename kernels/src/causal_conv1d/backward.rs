//! The gradients over one run of time.
//!
//! ```text
//! g_t         = grad_y_t silu'(bias + sum over k of weight[k] x_{t - (width - 1) + k})
//! grad_x_t    = sum over k of weight[k] g_{t + (width - 1) - k}
//! grad_weight = sum over batch and time of g_t x_{t - (width - 1) + k}      grad_bias = sum of g_t
//! ```
//!
//! - Units own what they own in the forward kernel and walk forwards, `width - 1` positions further
//!   than the run: its last inputs are read there, too.
//! - A position's `g` is added at once to what all inputs that it reads have so far, in registers; the
//!   oldest of them is complete then and is stored. So every input's gradient is written once, by the
//!   unit that owns it.
//! - The gradients of weight and bias stay in registers over the run and are written as its parts, which
//!   [`sum_parts`](crate::sums::sum_parts) adds in a fixed order. No shared memory, no atomics: two
//!   runs agree to the bit.
//! - Memory: `x` and `grad_y` read once and `width - 1` positions a run again, `grad_x` written once,
//!   `width + 1` parts a run and channel.

use cubecl::prelude::*;

use super::geometry::Geometry;
use super::unit::{
    Place, Rows, activate_backward, advance, channel_values, convolve, forget, grow, load_begins,
    load_block, load_taps, load_window, place, rows, window_row,
};
use crate::bits::round_all;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn conv_backward_kernel<F: Float, I: Int, V: Size>(
    x: &Tensor<Vector<F, V>>,                      // [batch, seq_len, channels]
    weight: &Tensor<Vector<f32, V>>,               // [channels, width]
    bias: ComptimeOption<&Tensor<Vector<f32, V>>>, // [channels]
    initial_state: ComptimeOption<&Tensor<Vector<f32, V>>>, // [batch, width - 1, channels]
    seq_idx: ComptimeOption<&Tensor<I>>,           // [batch, seq_len]
    grad_y: &Tensor<Vector<F, V>>,                 // [batch, seq_len, channels]
    grad_final: ComptimeOption<&Tensor<Vector<f32, V>>>, // [batch, width - 1, channels]
    grad_x: &mut Tensor<Vector<F, V>>,             // [batch, seq_len, channels]
    mut grad_initial: ComptimeOption<OwnedTensor<Vector<f32, V>>>, // [batch, width - 1, channels]
    parts: &mut Tensor<Vector<f32, V>>, // [batch, runs, width and one of the bias, channels]
    run_len: u32,
    runs: u32,
    #[comptime] geometry: Geometry,
    #[comptime] _present: u32,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let seq_len = x.shape(1);
    let vectors = x.shape(2) / comptime!(geometry.lanes);
    if ABSOLUTE_POS >= x.shape(0) * runs as usize * vectors {
        terminate!();
    }
    let place = place(seq_len, vectors, run_len, runs);
    let width = comptime!(geometry.width);
    let reach = comptime!(geometry.reach());
    let block = comptime!(geometry.block);
    let single = comptime!(geometry.one_by_one());

    let zero = Vector::<f32, V>::new(0.0f32);
    let mut unit = Unit::<V> {
        taps: load_taps::<V>(weight, &place, geometry),
        bias: channel_values::<V>(bias, &place),
        window: Array::new(comptime!(geometry.window())),
        age: 0u32.runtime(),
        pending: Array::new(width),
        grad_taps: Array::new(width),
        grad_bias: zero,
        rows_x: rows::<F, V>(x, &place, geometry),
        rows_grad: rows::<F, V>(grad_y, &place, geometry),
    };
    unit.age = load_window::<F, I, V>(
        x,
        initial_state,
        seq_idx,
        &mut unit.window,
        &place,
        &unit.rows_x,
        place.begin,
        geometry,
    );
    #[unroll]
    for k in 0..width {
        unit.pending[k] = zero;
        unit.grad_taps[k] = zero;
    }

    let beyond = place.end + reach;
    let stop = select(beyond < seq_len, beyond, seq_len);
    let blocks = (place.end - place.begin) / block;
    // Blocks that complete gradients of inputs before the run.
    let first = comptime!(reach.div_ceil(block));
    let first = select(first < blocks, first, blocks);
    let mut inputs = Array::<Vector<F, V>>::new(block);
    let mut grads = Array::<Vector<F, V>>::new(block);
    let mut next_inputs = Array::<Vector<F, V>>::new(block);
    let mut next_grads = Array::<Vector<F, V>>::new(block);
    for index in 0..first {
        let start = place.begin + index * block;
        load_block::<F, V>(x, &mut inputs, &unit.rows_x, start, geometry);
        load_block::<F, V>(grad_y, &mut grads, &unit.rows_grad, start, geometry);
        walk::<F, I, V>(
            &inputs,
            &grads,
            seq_idx,
            grad_x,
            &mut grad_initial,
            &mut unit,
            &place,
            start,
            false,
            geometry,
        );
    }
    if first < blocks {
        let start = place.begin + first * block;
        load_block::<F, V>(x, &mut inputs, &unit.rows_x, start, geometry);
        load_block::<F, V>(grad_y, &mut grads, &unit.rows_grad, start, geometry);
    }
    for index in first..blocks {
        let start = place.begin + index * block;
        // In flight during the walk; the last block's are its own.
        let next = select(index + 1 < blocks, start + block, start);
        load_block::<F, V>(x, &mut next_inputs, &unit.rows_x, next, geometry);
        load_block::<F, V>(grad_y, &mut next_grads, &unit.rows_grad, next, geometry);
        // Always so. The loads above would be put off until after the walk, but not past a branch.
        if start < place.end {
            walk::<F, I, V>(
                &inputs,
                &grads,
                seq_idx,
                grad_x,
                &mut grad_initial,
                &mut unit,
                &place,
                start,
                true,
                geometry,
            );
        }
        #[unroll]
        for j in 0..block {
            inputs[j] = next_inputs[j];
            grads[j] = next_grads[j];
        }
    }
    for t in place.begin + blocks * block..stop {
        load_block::<F, V>(x, &mut inputs, &unit.rows_x, t, single);
        load_block::<F, V>(grad_y, &mut grads, &unit.rows_grad, t, single);
        walk::<F, I, V>(
            &inputs,
            &grads,
            seq_idx,
            grad_x,
            &mut grad_initial,
            &mut unit,
            &place,
            t,
            false,
            single,
        );
    }

    // What no later position reads, but the final window may hold.
    if stop == seq_len {
        #[unroll]
        for i in 0..reach {
            #[comptime]
            if let ComptimeOption::Some(grad_final) = grad_final {
                if unit.age >= comptime!((reach - 1 - i) as u32) {
                    unit.pending[i] += grad_final[window_row(&place, i, geometry)];
                }
            }
            store::<F, V>(
                grad_x,
                &mut grad_initial,
                unit.pending[i],
                &place,
                seq_len + i,
                geometry,
            );
        }
    }

    let rows = parts.shape(2);
    let first = (place.batch * runs as usize + place.run) * rows * vectors + place.vector;
    #[unroll]
    for k in 0..width {
        parts[first + k * vectors] = unit.grad_taps[k];
    }
    if rows > width {
        parts[first + width * vectors] = unit.grad_bias;
    }
}

/// What a unit holds in registers.
#[derive(CubeType)]
struct Unit<V: Size> {
    taps: Array<Vector<f32, V>>,
    bias: Vector<f32, V>,
    /// The inputs that the taps of a block reach.
    window: Array<Vector<f32, V>>,
    /// How many inputs before the last position are of its run.
    age: u32,
    /// Gradients of the inputs that the next position reads, oldest first, as far as they are known.
    pending: Array<Vector<f32, V>>,
    grad_taps: Array<Vector<f32, V>>,
    grad_bias: Vector<f32, V>,
    rows_x: Rows,
    rows_grad: Rows,
}

/// The positions `start .. start + block`: `inside` where they and the inputs whose gradients they complete are of the
/// unit's run.
#[cube]
fn walk<F: Float, I: Int, V: Size>(
    inputs: &Array<Vector<F, V>>,
    grads: &Array<Vector<F, V>>,
    seq_idx: ComptimeOption<&Tensor<I>>, // [batch, seq_len]
    grad_x: &mut Tensor<Vector<F, V>>,   // [batch, seq_len, channels]
    grad_initial: &mut ComptimeOption<OwnedTensor<Vector<f32, V>>>, // [batch, width - 1, channels]
    unit: &mut Unit<V>,
    place: &Place,
    start: usize,
    #[comptime] inside: bool,
    #[comptime] geometry: Geometry,
) {
    let width = comptime!(geometry.width);
    let reach = comptime!(geometry.reach());
    let begins = load_begins::<I>(seq_idx, place, start, geometry);
    #[unroll]
    for j in 0..comptime!(geometry.block) {
        let t = start + j;
        let entry = comptime!(reach + j);
        if comptime!(seq_idx.is_some()) {
            forget::<V>(&mut unit.window, begins[j], entry);
            unit.age = grow(unit.age, begins[j], geometry);
        }
        unit.window[entry] = Vector::cast_from(inputs[j]);
        let sum = convolve::<V>(&unit.window, &unit.taps, unit.bias, j, geometry);
        let grad = activate_backward::<V>(sum, Vector::cast_from(grads[j]), geometry);
        // The positions after the run are another unit's.
        if inside || t < place.end {
            unit.grad_bias += grad;
            #[unroll]
            for k in 0..width {
                if comptime!(seq_idx.is_some()) {
                    // Beyond the run there is zero, but the gradient may be NaN.
                    if unit.age >= comptime!((reach - k) as u32) {
                        unit.grad_taps[k] += grad * unit.window[comptime!(j + k)];
                    }
                } else {
                    unit.grad_taps[k] += grad * unit.window[comptime!(j + k)];
                }
            }
        }
        #[unroll]
        for k in 0..width {
            if comptime!(seq_idx.is_some()) {
                if unit.age >= comptime!((reach - k) as u32) {
                    unit.pending[k] += unit.taps[k] * grad;
                }
            } else {
                unit.pending[k] += unit.taps[k] * grad;
            }
        }
        if comptime!(inside) {
            store_at::<F, V>(grad_x, unit.pending[0], place, t - reach);
        } else {
            store::<F, V>(grad_x, grad_initial, unit.pending[0], place, t, geometry);
        }
        #[unroll]
        for k in 0..reach {
            unit.pending[k] = unit.pending[comptime!(k + 1)];
        }
        unit.pending[reach] = Vector::<f32, V>::new(0.0f32);
    }
    advance::<V>(&mut unit.window, geometry);
}

/// Stores the gradient of entry `entry` of the timeline, if the unit owns it: a position of its run, or
/// before the first run the initial window.
#[cube]
fn store<F: Float, V: Size>(
    grad_x: &mut Tensor<Vector<F, V>>, // [batch, seq_len, channels]
    grad_initial: &mut ComptimeOption<OwnedTensor<Vector<f32, V>>>, // [batch, width - 1, channels]
    value: Vector<f32, V>,
    place: &Place,
    entry: usize,
    #[comptime] geometry: Geometry,
) {
    let reach = comptime!(geometry.reach());
    if entry >= place.begin + reach {
        if entry < place.end + reach {
            store_at::<F, V>(grad_x, value, place, entry - reach);
        }
    } else {
        #[comptime]
        if let ComptimeOption::Some(grad_initial) = grad_initial {
            if place.begin == 0 {
                grad_initial[window_row(place, entry, geometry)] = value;
            }
        }
    }
}

/// Stores the gradient of the input of position `t`.
#[cube]
fn store_at<F: Float, V: Size>(
    grad_x: &mut Tensor<Vector<F, V>>, // [batch, seq_len, channels]
    value: Vector<f32, V>,
    place: &Place,
    t: usize,
) {
    let row = place.batch * place.seq_len + t;
    grad_x[row * place.vectors + place.vector] = round_all(value);
}
