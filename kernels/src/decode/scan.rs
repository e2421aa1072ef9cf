//! One step of the recurrence.

use cubecl::prelude::*;

use crate::bits::round_to;
use crate::pointwise::{exp, softplus};

/// Channels of a cube: few, so that few channels spread over the device.
const CHANNELS: usize = 32;

/// Units of a channel at most.
const MOST_PARTS: usize = 4;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ScanStep {
    batch: usize,
    d_inner: usize,
    d_state: usize,
    dt_rank: usize,
    /// Values of the time-step projection that a unit loads at once.
    lanes: usize,
    /// States that a unit loads at once.
    states: usize,
    /// Units of a channel.
    parts: usize,
    ptx: bool,
}

impl ScanStep {
    pub fn new(
        [batch, d_inner, d_state]: [usize; 3],
        dt_rank: usize,
        lanes: usize,
        ptx: bool,
    ) -> Self {
        let states = if d_state.is_multiple_of(4) { 4 } else { 1 };
        Self {
            batch,
            d_inner,
            d_state,
            dt_rank,
            lanes,
            states,
            parts: (d_state / states).min(MOST_PARTS),
            ptx,
        }
    }

    /// States that a unit loads at once.
    pub fn states(&self) -> usize {
        self.states
    }

    fn channels(&self) -> usize {
        self.batch * self.d_inner
    }

    fn dt_vectors(&self) -> usize {
        self.dt_rank.div_ceil(self.lanes)
    }

    fn state_vectors(&self) -> usize {
        self.d_state / self.states
    }

    fn units(&self) -> usize {
        self.parts * CHANNELS
    }

    /// A cube for every so many channels.
    pub fn cubes(&self, client: &Client) -> (CubeCount, CubeDim) {
        let cube = CubeDim::new_2d(self.parts as u32, CHANNELS as u32);
        let units = self.channels().next_multiple_of(CHANNELS) * self.parts;
        let count = cubecl::calculate_cube_count_elemwise(client, units, cube);
        (count, cube)
    }
}

/// Up to four units own a channel of one sequence: each takes its share of the time step's sum and of the states, whose
/// output is `y = (C h + D u) * gate`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn scan_step_kernel<W: Float, F: Float, V: Size, S: Size>(
    dt_weight: &Tensor<Vector<W, V>>,      // [d_inner, dt_rank]
    dt_bias: ComptimeOption<&Tensor<f32>>, // [d_inner]
    projected: &Tensor<f32>,               // [batch, dt_rank + 2 d_state]
    a: &Tensor<Vector<f32, S>>,            // [d_inner, d_state]
    skip: &Tensor<f32>,                    // [d_inner]
    u: &Tensor<F>,                         // [batch, d_inner or more]
    gate: &Tensor<F>,                      // as u
    state: &mut Tensor<Vector<f32, S>>,    // [batch, d_inner, d_state]
    y: &mut Tensor<F>,                     // as u
    #[comptime] step: ScanStep,
    #[define(W, F)] _dtypes: [ElemType; 2],
) {
    let parts = comptime!(step.parts);
    let part = UNIT_POS_X as usize;
    let own = CUBE_POS * CHANNELS + UNIT_POS_Y as usize;
    let inside = own < comptime!(step.channels());
    // Past the last channel units work on the first and write nothing.
    let line = select(inside, own, 0);
    let sequence = line / comptime!(step.d_inner);
    let channel = line % comptime!(step.d_inner);
    let at = sequence * u.shape(1) + channel;
    let first = sequence * projected.shape(1);

    let vectors = comptime!(step.dt_vectors());
    let mut share = 0.0f32;
    #[unroll]
    for turn in 0..comptime!(vectors.div_ceil(parts)) {
        let k = comptime!(turn * parts) + part;
        let there = k < vectors;
        let k = select(there, k, 0);
        let weight = Vector::<f32, V>::cast_from(dt_weight[channel * vectors + k]);
        let mut sum = 0.0f32;
        #[unroll]
        for j in 0..comptime!(step.lanes) {
            // What lies past the rank meets weights of zero, and is in memory: B and C.
            let entry = k * comptime!(step.lanes) + j;
            let entry = select(entry < comptime!(step.dt_rank), entry, 0);
            sum += weight.extract(j) * projected[first + entry];
        }
        share += select(there, sum, 0.0f32);
    }
    let mut delta = sum_of_parts(share, step);
    #[comptime]
    if let ComptimeOption::Some(bias) = dt_bias {
        delta += bias[channel];
    }
    let dt = softplus(delta, comptime!(step.ptx));

    let input = f32::cast_from(u[at]);
    let write = dt * input;
    let b_first = first + comptime!(step.dt_rank);
    let c_first = b_first + comptime!(step.d_state);
    let per_channel = comptime!(step.state_vectors());
    let mut share = 0.0f32;
    #[unroll(comptime!(per_channel <= 4 * parts))]
    for turn in 0..comptime!(per_channel.div_ceil(parts)) {
        let n = turn * parts + part;
        if n < per_channel {
            let rates = a[channel * per_channel + n];
            let place = line * per_channel + n;
            let before = state[place];
            let mut after = Vector::<f32, S>::empty();
            #[unroll]
            for j in 0..comptime!(step.states) {
                let entry = n * comptime!(step.states) + j;
                let decay = exp(rates.extract(j) * dt, comptime!(step.ptx));
                let value = before.extract(j) * decay + write * projected[b_first + entry];
                after.insert(j, value);
                share += value * projected[c_first + entry];
            }
            if inside {
                state[place] = after;
            }
        }
    }
    let read = sum_of_parts(share, step);
    if inside && part == 0 {
        let total = (read + skip[channel] * input) * f32::cast_from(gate[at]);
        y[at] = round_to::<F>(total);
    }
}

/// The sum of what the units of a channel have, in one order. All units of a cube take part.
#[cube]
fn sum_of_parts(share: f32, #[comptime] step: ScanStep) -> f32 {
    let parts = comptime!(step.parts);
    if parts == 1 {
        share
    } else {
        let mut shared = Shared::<[f32]>::new_slice(comptime!(step.units()));
        shared[UNIT_POS as usize] = share;
        sync_cube();
        let first = UNIT_POS_Y as usize * parts;
        let mut sum = shared[first];
        #[unroll]
        for part in 1..parts {
            sum += shared[first + part];
        }
        sum
    }
}
