//! What the kernels share: where a unit works, and what it holds in registers.
//!
//! A sequence and the window before it are one timeline: entry `e` is entry `e` of the initial window
//! for `e < width - 1`, and position `e - (width - 1)` after that. Tap `k` of position `t` reads entry
//! `t + k`, and the final window is what lies at `seq_len ..`.

use cubecl::prelude::*;

use super::geometry::Geometry;
use crate::pointwise::sigmoid;

/// Where a unit works.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub batch: usize,
    pub run: usize,
    /// Which vector of channels.
    pub vector: usize,
    /// How many there are.
    pub vectors: usize,
    pub seq_len: usize,
    /// First position of the run.
    pub begin: usize,
    /// The position after the run's last.
    pub end: usize,
}

#[cube]
pub(super) fn place(seq_len: usize, vectors: usize, run_len: u32, runs: u32) -> Place {
    let line = ABSOLUTE_POS / vectors;
    let runs = runs as usize;
    let run = line % runs;
    let begin = run * run_len as usize;
    let stop = begin + run_len as usize;
    Place {
        batch: line / runs,
        run,
        vector: ABSOLUTE_POS % vectors,
        vectors,
        seq_len,
        begin,
        end: select(stop < seq_len, stop, seq_len),
    }
}

/// Where the unit's channels lie in a sequence that may be strided, in vectors.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    /// At position 0.
    first: usize,
    /// From one position to the next.
    step: usize,
}

#[cube]
pub(super) fn rows<F: Float, V: Size>(
    source: &Tensor<Vector<F, V>>, // [batch, seq_len, channels]
    place: &Place,
    #[comptime] geometry: Geometry,
) -> Rows {
    let lanes = comptime!(geometry.lanes);
    Rows {
        first: place.batch * (source.stride(0) / lanes) + place.vector,
        step: source.stride(1) / lanes,
    }
}

/// The unit's channels at entry `entry` of a window.
#[cube]
pub(super) fn window_row(place: &Place, entry: usize, #[comptime] geometry: Geometry) -> usize {
    (place.batch * comptime!(geometry.reach()) + entry) * place.vectors + place.vector
}

/// The filters of the unit's channels, by tap: they are contiguous, so whole vectors are loaded and
/// taken apart.
#[cube]
pub(super) fn load_taps<V: Size>(
    weight: &Tensor<Vector<f32, V>>, // [channels, width]
    place: &Place,
    #[comptime] geometry: Geometry,
) -> Array<Vector<f32, V>> {
    let width = comptime!(geometry.width);
    let lanes = comptime!(geometry.lanes);
    let mut rows = Array::<Vector<f32, V>>::new(width);
    #[unroll]
    for i in 0..width {
        rows[i] = weight[place.vector * width + i];
    }
    let mut taps = Array::<Vector<f32, V>>::new(width);
    #[unroll]
    for k in 0..width {
        let mut tap = Vector::<f32, V>::empty();
        #[unroll]
        for j in 0..lanes {
            let flat = comptime!(j * width + k);
            tap.insert(
                j,
                rows[comptime!(flat / lanes)].extract(comptime!(flat % lanes)),
            );
        }
        taps[k] = tap;
    }
    taps
}

/// The values of the unit's channels in an optional vector, zero if it was left out.
#[cube]
pub(super) fn channel_values<V: Size>(
    vector: ComptimeOption<&Tensor<Vector<f32, V>>>, // [channels]
    place: &Place,
) -> Vector<f32, V> {
    #[comptime]
    match vector {
        ComptimeOption::Some(vector) => vector[place.vector],
        ComptimeOption::None => Vector::<f32, V>::new(0.0f32),
    }
}

/// Whether a run of equal indices begins at position `t`. The first one does not: the window before
/// it is its own.
#[cube]
pub(super) fn begins<I: Int>(
    seq_idx: &Tensor<I>, // [batch, seq_len]
    place: &Place,
    t: usize,
) -> bool {
    let before = select(t > 0, t, 1) - 1;
    let base = place.batch * place.seq_len;
    seq_idx[base + t] != seq_idx[base + before]
}

/// Forgets the entries before `entry`, if `begins` says so.
#[cube]
pub(super) fn forget<V: Size>(
    window: &mut Array<Vector<f32, V>>,
    begins: bool,
    #[comptime] entry: usize,
) {
    if begins {
        #[unroll]
        for i in 0..entry {
            window[i] = Vector::<f32, V>::new(0.0f32);
        }
    }
}

/// How many entries before the next one are of its run, given how many were of the last one's.
#[cube]
pub(super) fn grow(age: u32, begins: bool, #[comptime] geometry: Geometry) -> u32 {
    let reach = comptime!(geometry.reach() as u32);
    let older = select(age < reach, age + 1, reach);
    select(begins, 0u32, older)
}

/// Loads the entries `begin ..` of the timeline, which lie before position `begin`: zero before the
/// last run among them. Returns how many entries before the last are of its run.
#[cube]
pub(super) fn load_window<F: Float, I: Int, V: Size>(
    x: &Tensor<Vector<F, V>>, // [batch, seq_len, channels]
    initial_state: ComptimeOption<&Tensor<Vector<f32, V>>>, // [batch, width - 1, channels]
    seq_idx: ComptimeOption<&Tensor<I>>, // [batch, seq_len]
    window: &mut Array<Vector<f32, V>>,
    place: &Place,
    rows: &Rows, // of x
    begin: usize,
    #[comptime] geometry: Geometry,
) -> u32 {
    let reach = comptime!(geometry.reach());
    let mut age = comptime!(reach as u32).runtime();
    #[unroll]
    for i in 0..reach {
        let entry = begin + i;
        if entry >= reach {
            let t = entry - reach;
            window[i] = Vector::cast_from(x[rows.first + t * rows.step]);
            #[comptime]
            if let ComptimeOption::Some(seq_idx) = seq_idx {
                let begins = begins::<I>(seq_idx, place, t);
                forget::<V>(window, begins, i);
                age = grow(age, begins, geometry);
            }
        } else {
            #[comptime]
            match initial_state {
                ComptimeOption::Some(initial_state) => {
                    window[i] = initial_state[window_row(place, entry, geometry)];
                }
                ComptimeOption::None => {
                    window[i] = Vector::<f32, V>::new(0.0f32);
                }
            }
        }
    }
    age
}

/// Loads the unit's channels at the positions `start .. start + block`.
#[cube]
pub(super) fn load_block<F: Float, V: Size>(
    source: &Tensor<Vector<F, V>>, // [batch, seq_len, channels]
    block: &mut Array<Vector<F, V>>,
    rows: &Rows,
    start: usize,
    #[comptime] geometry: Geometry,
) {
    let first = rows.first + start * rows.step;
    #[unroll]
    for j in 0..comptime!(geometry.block) {
        block[j] = source[first + j * rows.step];
    }
}

/// Which of the positions `start .. start + block` begin a run.
#[cube]
pub(super) fn load_begins<I: Int>(
    seq_idx: ComptimeOption<&Tensor<I>>, // [batch, seq_len]
    place: &Place,
    start: usize,
    #[comptime] geometry: Geometry,
) -> Array<bool> {
    let mut flags = Array::<bool>::new(comptime!(geometry.block));
    #[unroll]
    for j in 0..comptime!(geometry.block) {
        #[comptime]
        match seq_idx {
            ComptimeOption::Some(seq_idx) => {
                flags[j] = begins::<I>(seq_idx, place, start + j);
            }
            ComptimeOption::None => {
                flags[j] = false.runtime();
            }
        }
    }
    flags
}

/// What the taps of the window's position `j` add up to, with the bias.
#[cube]
pub(super) fn convolve<V: Size>(
    window: &Array<Vector<f32, V>>,
    taps: &Array<Vector<f32, V>>,
    bias: Vector<f32, V>,
    #[comptime] j: usize,
    #[comptime] geometry: Geometry,
) -> Vector<f32, V> {
    let mut sum = bias;
    #[unroll]
    for k in 0..comptime!(geometry.width) {
        sum += taps[k] * window[comptime!(j + k)];
    }
    sum
}

/// `silu(x)` where the problem asks for it.
#[cube]
pub(super) fn activate<V: Size>(
    x: Vector<f32, V>,
    #[comptime] geometry: Geometry,
) -> Vector<f32, V> {
    let mut out = x;
    if comptime!(geometry.silu) {
        #[unroll]
        for j in 0..comptime!(geometry.lanes) {
            let value = x.extract(j);
            out.insert(j, value * sigmoid(value, comptime!(geometry.ptx)));
        }
    }
    out
}

/// `grad` times the derivative of [`activate`] at `x`.
#[cube]
pub(super) fn activate_backward<V: Size>(
    x: Vector<f32, V>,
    grad: Vector<f32, V>,
    #[comptime] geometry: Geometry,
) -> Vector<f32, V> {
    let mut out = grad;
    if comptime!(geometry.silu) {
        #[unroll]
        for j in 0..comptime!(geometry.lanes) {
            let value = x.extract(j);
            let gate = sigmoid(value, comptime!(geometry.ptx));
            out.insert(
                j,
                grad.extract(j) * gate * (1.0f32 + value * (1.0f32 - gate)),
            );
        }
    }
    out
}

/// Moves the window on by a block.
#[cube]
pub(super) fn advance<V: Size>(window: &mut Array<Vector<f32, V>>, #[comptime] geometry: Geometry) {
    #[unroll]
    for i in 0..comptime!(geometry.reach()) {
        window[i] = window[comptime!(i + geometry.block)];
    }
}
