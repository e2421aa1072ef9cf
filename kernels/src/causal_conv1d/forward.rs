//! The convolution over one run of time.
//!
//! - A unit owns up to four neighbouring channels of one sequence over one run of positions; the last
//!   `width - 1` inputs and the filters stay in registers.
//! - Loop order: blocks of positions, whose loads are issued before the first of them is computed.
//! - The unit at the end of a sequence writes the final window, from memory.
//! - No shared memory, no atomics. Memory: `x` read once and `width - 1` positions a run again, `y`
//!   written once.

use cubecl::prelude::*;

use super::geometry::Geometry;
use super::unit::{
    Place, Rows, activate, advance, channel_values, convolve, forget, load_begins, load_block,
    load_taps, load_window, place, rows, window_row,
};
use crate::bits::round_all;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn conv_kernel<F: Float, I: Int, V: Size>(
    x: &Tensor<Vector<F, V>>,                      // [batch, seq_len, channels]
    weight: &Tensor<Vector<f32, V>>,               // [channels, width]
    bias: ComptimeOption<&Tensor<Vector<f32, V>>>, // [channels]
    initial_state: ComptimeOption<&Tensor<Vector<f32, V>>>, // [batch, width - 1, channels]
    seq_idx: ComptimeOption<&Tensor<I>>,           // [batch, seq_len]
    y: &mut Tensor<Vector<F, V>>,                  // [batch, seq_len, channels]
    mut final_state: ComptimeOption<OwnedTensor<Vector<f32, V>>>, // [batch, width - 1, channels]
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
    let rows = rows::<F, V>(x, &place, geometry);
    let taps = load_taps::<V>(weight, &place, geometry);
    let bias = channel_values::<V>(bias, &place);
    let mut window = Array::<Vector<f32, V>>::new(comptime!(geometry.window()));
    load_window::<F, I, V>(
        x,
        initial_state,
        seq_idx,
        &mut window,
        &place,
        &rows,
        place.begin,
        geometry,
    );

    let block = comptime!(geometry.block);
    let blocks = (place.end - place.begin) / block;
    for index in 0..blocks {
        let start = place.begin + index * block;
        walk::<F, I, V>(
            x,
            seq_idx,
            y,
            &taps,
            bias,
            &mut window,
            &place,
            &rows,
            start,
            geometry,
        );
    }
    for t in place.begin + blocks * block..place.end {
        let single = comptime!(geometry.one_by_one());
        walk::<F, I, V>(
            x,
            seq_idx,
            y,
            &taps,
            bias,
            &mut window,
            &place,
            &rows,
            t,
            single,
        );
    }

    #[comptime]
    if let ComptimeOption::Some(final_state) = &mut final_state {
        if place.end == seq_len {
            load_window::<F, I, V>(
                x,
                initial_state,
                seq_idx,
                &mut window,
                &place,
                &rows,
                seq_len,
                geometry,
            );
            #[unroll]
            for i in 0..comptime!(geometry.reach()) {
                final_state[window_row(&place, i, geometry)] = window[i];
            }
        }
    }
}

/// The positions `start .. start + block`.
#[cube]
fn walk<F: Float, I: Int, V: Size>(
    x: &Tensor<Vector<F, V>>,            // [batch, seq_len, channels]
    seq_idx: ComptimeOption<&Tensor<I>>, // [batch, seq_len]
    y: &mut Tensor<Vector<F, V>>,        // [batch, seq_len, channels]
    taps: &Array<Vector<f32, V>>,
    bias: Vector<f32, V>,
    window: &mut Array<Vector<f32, V>>,
    place: &Place,
    rows: &Rows,
    start: usize,
    #[comptime] geometry: Geometry,
) {
    let mut inputs = Array::<Vector<F, V>>::new(comptime!(geometry.block));
    load_block::<F, V>(x, &mut inputs, rows, start, geometry);
    let begins = load_begins::<I>(seq_idx, place, start, geometry);
    let first = (place.batch * place.seq_len + start) * place.vectors + place.vector;
    #[unroll]
    for j in 0..comptime!(geometry.block) {
        let entry = comptime!(geometry.reach() + j);
        if comptime!(seq_idx.is_some()) {
            forget::<V>(window, begins[j], entry);
        }
        window[entry] = Vector::cast_from(inputs[j]);
        let sum = convolve::<V>(&*window, taps, bias, j, geometry);
        y[first + j * place.vectors] = round_all(activate::<V>(sum, geometry));
    }
    advance::<V>(window, geometry);
}
