//! The products of a layer: one that ends in the convolution, one that ends in a vector.

use cubecl::prelude::*;

use super::team::{Team, product, row};
use crate::pointwise::sigmoid;

/// `y = W norm(x) + bias`, onto `y` where `add` is set; the norm where there is a `gamma`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn product_kernel<W: Float, V: Size>(
    weight: &Tensor<Vector<W, V>>,                  // [rows, columns]
    x: &Tensor<Vector<f32, V>>,                     // [batch, columns]
    gamma: ComptimeOption<&Tensor<Vector<f32, V>>>, // [columns]
    bias: ComptimeOption<&Tensor<f32>>,             // [rows]
    y: &mut Tensor<f32>,                            // [batch, rows or more]
    epsilon: f32,
    #[comptime] add: bool,
    #[comptime] team: Team,
    #[comptime] _present: u32,
    #[define(W)] _dtype: ElemType,
) {
    let rows = comptime!(team.rows);
    let own = row(team);
    let row = select(own < rows, own, 0);
    let sequence = sequence(team);
    let at = sequence * y.shape(1) + row;
    // Loaded before the product, which hides it.
    let mut before = 0.0f32;
    #[comptime]
    if let ComptimeOption::Some(bias) = bias {
        before = bias[row];
    }
    if add {
        before += y[at];
    }
    let totals = product::<W, V>(weight, x, gamma, row, epsilon, team);
    if own < rows && UNIT_POS_X < comptime!(team.batch as u32) {
        y[at] = before + mine(&totals, team);
    }
}

/// What the rows of an input projection are for: those of the convolution, then those that are passed on, then the
/// gate's, counted from the row `first` on and past the last from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Split {
    pub first: usize,
    pub channels: usize,
    pub passed: usize,
    pub gate: usize,
    /// Whether the gate goes through SiLU at once.
    pub silu: bool,
}

impl Split {
    pub fn rows(&self) -> usize {
        self.channels + self.passed + self.gate
    }

    /// Rows before those of the gate.
    pub fn before_gate(&self) -> usize {
        self.channels + self.passed
    }
}

/// The input projection of a layer, one step of the convolution on its channels, SiLU on them and on the gate. The
/// window moves on by one.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn convolve_kernel<W: Float, V: Size>(
    weight: &Tensor<Vector<W, V>>,           // [rows, columns]
    x: &Tensor<Vector<f32, V>>,              // [batch, columns]
    gamma: &Tensor<Vector<f32, V>>,          // [columns]
    bias: ComptimeOption<&Tensor<f32>>,      // [rows]
    taps: &Tensor<f32>,                      // [channels, width]
    conv_bias: ComptimeOption<&Tensor<f32>>, // [channels]
    window: &mut Tensor<f32>,                // [batch, width - 1, channels]
    u: &mut Tensor<f32>,                     // [batch, channels + passed or more]
    gate: &mut Tensor<f32>,                  // [batch, gate or more]
    epsilon: f32,
    #[comptime] width: usize,
    #[comptime] split: Split,
    #[comptime] team: Team,
    #[comptime] _present: u32,
    #[define(W)] _dtype: ElemType,
) {
    let rows = comptime!(team.rows);
    let channels = comptime!(split.channels);
    let own = row(team);
    let row = select(own < rows, own, 0);
    let place = (row + comptime!(rows - split.first)) % rows;
    let channel = place % channels;
    let sequence = sequence(team);
    // Loaded before the product, which hides it.
    let first = sequence * comptime!((width - 1) * split.channels) + channel;
    let mut filter = Array::<f32>::new(width);
    let mut kept = Array::<f32>::new(width);
    #[unroll]
    for k in 0..width {
        filter[k] = taps[channel * width + k];
        if comptime!(k + 1 < width) {
            kept[k] = window[first + comptime!(k * split.channels)];
        }
    }
    let mut before = 0.0f32;
    #[comptime]
    if let ComptimeOption::Some(bias) = bias {
        before = bias[row];
    }
    let mut sum = 0.0f32;
    #[comptime]
    if let ComptimeOption::Some(bias) = conv_bias {
        sum = bias[channel];
    }

    let totals = product::<W, V>(
        weight,
        x,
        ComptimeOption::new_Some(gamma),
        row,
        epsilon,
        team,
    );
    if own < rows && UNIT_POS_X < comptime!(team.batch as u32) {
        let value = before + mine(&totals, team);
        let at = sequence * u.shape(1) + place;
        if place < channels {
            kept[comptime!(width - 1)] = value;
            #[unroll]
            for k in 0..width {
                sum += filter[k] * kept[k];
            }
            #[unroll]
            for k in 1..width {
                window[first + comptime!((k - 1) * split.channels)] = kept[k];
            }
            u[at] = sum * sigmoid(sum, comptime!(team.ptx));
        } else if place < comptime!(split.before_gate()) {
            u[at] = value;
        } else {
            let at = sequence * gate.shape(1) + place - comptime!(split.before_gate());
            gate[at] = gated(value, split, comptime!(team.ptx));
        }
    }
}

/// The gate as it is handed on.
#[cube]
pub(super) fn gated(value: f32, #[comptime] split: Split, #[comptime] ptx: bool) -> f32 {
    if comptime!(split.silu) {
        value * sigmoid(value, ptx)
    } else {
        value
    }
}

/// The sequence whose result the unit writes: the first units of a team take one each.
#[cube]
fn sequence(#[comptime] team: Team) -> usize {
    let unit = UNIT_POS_X as usize;
    select(unit < comptime!(team.batch), unit, 0)
}

/// The total of the unit's sequence, without a local array that is indexed at run time.
#[cube]
fn mine(totals: &Array<f32>, #[comptime] team: Team) -> f32 {
    let mut total = totals[0];
    #[unroll]
    for b in 1..comptime!(team.batch) {
        total = select(UNIT_POS_X == comptime!(b as u32), totals[b], total);
    }
    total
}
