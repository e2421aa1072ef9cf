//! The kernel: the units of a cube share a token's logits, each with those that leave its remainder.

use cubecl::prelude::*;

use super::UNITS;
use crate::bits::round_to;

/// Logits of a unit that are loaded before the first of them is used.
const AHEAD: usize = 4;

/// Below every logit, and finite, since WGSL has no infinity.
const LEAST: f32 = -1e30;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn cross_entropy_kernel<F: Float, I: Int>(
    logits: &Tensor<f32>,                         // [tokens, rows]
    targets: &Tensor<I>,                          // [tokens]
    losses: &mut Tensor<f32>,                     // [tokens]
    scale: ComptimeOption<&Tensor<f32>>,          // [1]
    mut gradient: ComptimeOption<OwnedTensor<F>>, // [tokens, rows]
    vocab_size: u32,
    #[comptime] _present: u32,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let token = CUBE_POS;
    // All of a cube or none.
    if token >= logits.shape(0) {
        terminate!();
    }
    let rows = logits.shape(1);
    let first = token * rows;
    let vocab_size = vocab_size as usize;

    // The largest logit, and the sum of the exponentials of the distances to it.
    let mut most = LEAST.runtime();
    let mut sum = 0.0f32;
    let mut entry = UNIT_POS as usize;
    while entry < vocab_size {
        let values = load(logits, first, entry, vocab_size);
        let mut top = most;
        #[unroll]
        for k in 0..AHEAD {
            top = top.max(values[k]);
        }
        sum *= (most - top).exp();
        #[unroll]
        for k in 0..AHEAD {
            sum += (values[k] - top).exp();
        }
        most = top;
        entry += comptime!(AHEAD * UNITS);
    }
    let all = combine(most, sum);
    let most = all[0];
    let sum = all[1];

    let target = i32::cast_from(targets[token]);
    let counted = target >= 0;
    let mut place = u32::cast_from(target) as usize;
    if !counted {
        place = 0usize.runtime();
    }
    // A target past the vocabulary reads a wrong logit, but no other token's memory.
    if place >= rows {
        place = rows - 1;
    }
    if UNIT_POS == 0 {
        let loss = most + sum.ln() - logits[first + place];
        losses[token] = select(counted, loss, 0.0f32);
    }

    #[comptime]
    if let ComptimeOption::Some(gradient) = &mut gradient {
        let mut factor = 0.0f32;
        #[comptime]
        if let ComptimeOption::Some(scale) = scale {
            factor = select(counted, scale[0], 0.0f32);
        }
        let each = factor / sum;
        let mut entry = UNIT_POS as usize;
        while entry < rows {
            let values = load(logits, first, entry, vocab_size);
            #[unroll]
            for k in 0..AHEAD {
                let at = entry + comptime!(k * UNITS);
                if at < rows {
                    let mut grad = (values[k] - most).exp() * each;
                    if at == place {
                        grad -= factor;
                    }
                    gradient[first + at] = round_to::<F>(grad);
                }
            }
            entry += comptime!(AHEAD * UNITS);
        }
    }
}

/// The unit's next logits; what lies past the vocabulary is out of the way.
#[cube]
fn load(logits: &Tensor<f32>, first: usize, entry: usize, vocab_size: usize) -> Array<f32> {
    let mut values = Array::<f32>::new(AHEAD);
    #[unroll]
    for k in 0..AHEAD {
        let at = entry + comptime!(k * UNITS);
        let mut value = LEAST.runtime();
        if at < vocab_size {
            value = logits[first + at];
        }
        values[k] = value;
    }
    values
}

/// The largest logit of a cube and the sum relative to it, in one order.
#[cube]
fn combine(most: f32, sum: f32) -> Array<f32> {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(2 * UNITS));
    let unit = UNIT_POS as usize;
    shared[unit] = most;
    shared[UNITS + unit] = sum;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(UNITS.ilog2() as usize + 1) {
        let half = comptime!(UNITS >> step);
        if unit < half {
            let (ours, theirs) = (shared[unit], shared[unit + half]);
            let top = ours.max(theirs);
            let sum = shared[UNITS + unit] * (ours - top).exp()
                + shared[UNITS + unit + half] * (theirs - top).exp();
            shared[unit] = top;
            shared[UNITS + unit] = sum;
        }
        sync_cube();
    }
    let mut all = Array::<f32>::new(2usize);
    all[0] = shared[0];
    all[1] = shared[UNITS];
    all
}
