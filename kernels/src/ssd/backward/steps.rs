//! The gradients of the steps, from sums that the tiles left.
//!
//! ```text
//! g_t    = sum of reads_r over r >= t + sum of writes_s over s < t        within the tile and the run
//! gdt_t  = a g_t + x_t . gX_t              times the slope of softplus, 0 where a limit clamps
//! ga     = sum of dt_t g_t                 gdt_bias = sum of gdt_t, after the slope
//! ```
//!
//! `g_t` is the gradient of `dt_t a`: every pair of positions around `t`, what the state before the tile comes to at a
//! later one, and what an earlier one comes to in the state after. `reads` are the rows' sums of `R` less the columns',
//! so that pairs on the same side of `t` cancel.
//!
//! One unit a sequence, tile and head; it walks the tile twice. Neighbouring units are neighbouring heads. What is
//! summed over tiles is left as parts.

use cubecl::prelude::*;

use crate::bits::{is_beyond, round_to};
use crate::pointwise::{sigmoid, softplus};

/// Positions whose loads are in flight at once.
const AHEAD: usize = 16;

/// How the steps came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepForm {
    pub interval: usize,
    /// A multiple of [`AHEAD`].
    pub positions: usize,
    pub softplus: bool,
    pub resettable: bool,
    pub ptx: bool,
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn grad_steps_kernel<F: Float>(
    raw: &Tensor<F>,                       // [batch, seq_len, nheads]
    a: &Tensor<f32>,                       // [nheads]
    dt_bias: ComptimeOption<&Tensor<f32>>, // [nheads]
    dt: &Tensor<f32>,                      // [batch, nheads, length]
    runs: &Tensor<u32>,                    // [batch, length], unread without `seq_idx`
    sums: &mut Tensor<f32>,                // reads, writes and x . gX: [3, batch, seq_len, nheads]
    grad_dt: &mut Tensor<F>,               // [batch, seq_len, nheads]
    parts: &mut Tensor<f32>,               // of a and dt_bias: [2, batch, tiles, nheads]
    shortest: f32,
    longest: f32,
    #[comptime] form: StepForm,
    #[define(F)] _dtype: ElemType,
) {
    let seq_len = raw.shape(1);
    let nheads = raw.shape(2);
    let length = dt.shape(2);
    let tiles = parts.shape(2);
    let walks = raw.shape(0) * tiles * nheads;
    if ABSOLUTE_POS >= walks {
        terminate!();
    }
    let head = ABSOLUTE_POS % nheads;
    let tile = ABSOLUTE_POS / nheads % tiles;
    let batch = ABSOLUTE_POS / nheads / tiles;
    let a_interval = comptime!(form.interval.div_ceil(form.positions));
    let first = tile / a_interval * comptime!(form.interval);
    let start = first + tile % a_interval * comptime!(form.positions);
    let last = first + comptime!(form.interval);
    let last = select(last < seq_len, last, seq_len);
    let stop = select(
        start + comptime!(form.positions) < last,
        start + comptime!(form.positions),
        last,
    );
    let rate = a[head];
    let bias = #[comptime]
    match dt_bias {
        ComptimeOption::Some(dt_bias) => dt_bias[head],
        ComptimeOption::None => 0.0f32.runtime(),
    };
    let plane = raw.shape(0) * seq_len * nheads;
    let row = batch * seq_len * nheads + head;
    let steps = (batch * nheads + head) * length;
    let run_row = batch * length;

    // What later positions read.
    let mut sum = 0.0f32;
    let mut run = 0u32;
    if comptime!(form.resettable) {
        run = runs[run_row + stop - 1];
    }
    let blocks = (stop - start).div_ceil(AHEAD);
    for step in 0..blocks {
        let begin = start + (blocks - 1 - step) * AHEAD;
        let mut values = Array::<f32>::new(AHEAD);
        #[unroll]
        for i in 0..AHEAD {
            let t = begin + i;
            values[i] = sums[row + select(t < stop, t, stop - 1) * nheads];
        }
        #[unroll]
        for i in 0..AHEAD {
            let t = begin + comptime!(AHEAD - 1 - i);
            if t < stop {
                if comptime!(form.resettable) {
                    let here = runs[run_row + t];
                    if here != run {
                        sum = 0.0f32;
                        run = here;
                    }
                }
                sum += values[comptime!(AHEAD - 1 - i)];
                sums[row + t * nheads] = sum;
            }
        }
    }

    // What earlier positions wrote.
    sum = 0.0f32;
    let mut grad_rate = 0.0f32;
    let mut grad_bias = 0.0f32;
    for step in 0..blocks {
        let begin = start + step * AHEAD;
        let mut reads = Array::<f32>::new(AHEAD);
        let mut writes = Array::<f32>::new(AHEAD);
        let mut inputs = Array::<f32>::new(AHEAD);
        let mut deltas = Array::<f32>::new(AHEAD);
        let mut raws = Array::<F>::new(AHEAD);
        #[unroll]
        for i in 0..AHEAD {
            let t = begin + i;
            let t = select(t < stop, t, stop - 1);
            reads[i] = sums[row + t * nheads];
            writes[i] = sums[plane + row + t * nheads];
            inputs[i] = sums[2 * plane + row + t * nheads];
            deltas[i] = dt[steps + t];
            raws[i] = raw[batch * raw.stride(0) + t * raw.stride(1) + head];
        }
        #[unroll]
        for i in 0..AHEAD {
            let t = begin + i;
            if t < stop {
                if comptime!(form.resettable) {
                    let here = runs[run_row + t];
                    if here != run {
                        sum = 0.0f32;
                        run = here;
                    }
                }
                let grad = reads[i] + sum;
                sum += writes[i];
                grad_rate += deltas[i] * grad;

                let biased = f32::cast_from(raws[i]) + bias;
                let mut step = biased;
                let mut slope = 1.0f32.runtime();
                if comptime!(form.softplus) {
                    step = softplus(biased, form.ptx);
                    slope = sigmoid(biased, form.ptx);
                }
                let clamped = is_beyond(step, shortest, longest);
                let grad = select(clamped, 0.0f32, (rate * grad + inputs[i]) * slope);
                grad_dt[row + t * nheads] = round_to::<F>(grad);
                grad_bias += grad;
            }
        }
    }
    parts[ABSOLUTE_POS] = grad_rate;
    parts[walks + ABSOLUTE_POS] = grad_bias;
}
