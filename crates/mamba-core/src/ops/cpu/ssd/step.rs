//! A sequence of one position: one step of the recurrence, bound by reading and writing the states.

use super::super::rows::{Columns, Output, check_len};
use super::super::simd::{Kernel, LANES, Lanes, Vector, dispatch, math::softplus, prefetch};
use super::super::team::share;
use super::{SsdDims, SsdInputs, positions::decay};
use std::f32::consts::LOG2_E;

/// States from which on heads are shared out over threads.
const SHARED: usize = 1 << 14;

/// Channels that share each read of `b` and `c`.
const TOGETHER: usize = 4;

/// How far ahead the states are asked for, in values: a page, past which the machine does not look by itself.
const AHEAD: usize = 1024;

/// The outputs of one position a sequence, `[batch, 1, nheads * headdim]`, whose `state`, `[batch, nheads, headdim, d_state]`, becomes
/// that after it. The inputs' initial state has no part in it.
///
/// # Panics
/// If an input's size does not fit `dims`, or sequences are longer.
pub fn step(inputs: &SsdInputs, state: &mut [f32]) -> Vec<f32> {
    inputs.check("ssd");
    let dims = inputs.dims;
    assert!(
        dims.seq_len == 1,
        "ssd: a step takes one position, got {}",
        dims.seq_len
    );
    check_len("ssd", "state", state, dims.state_len());
    let mut y = Output::new(dims.batch, dims.d_inner());
    let (y_sink, state_sink) = (y.columns(), Columns::over(state, dims.d_state));
    let run = |index| {
        dispatch(Head {
            inputs,
            batch: index / dims.nheads,
            head: index % dims.nheads,
            y: &y_sink,
            state: &state_sink,
        });
    };
    let heads = dims.batch * dims.nheads;
    if dims.state_len() < SHARED {
        (0..heads).for_each(run);
    } else {
        share(heads, run);
    }
    // SAFETY: each head has written its outputs.
    unsafe { y.finish() }
}

struct Head<'a> {
    inputs: &'a SsdInputs<'a>,
    batch: usize,
    head: usize,
    /// `[batch, nheads * headdim]`
    y: &'a Columns<'a>,
    /// `[batch * nheads * headdim, d_state]`
    state: &'a Columns<'a>,
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let grouped = self.inputs.dims.headdim / TOGETHER * TOGETHER;
        let [dt, decay] = self.decay::<V>();
        for channel in (0..grouped).step_by(TOGETHER) {
            self.channels::<V, TOGETHER>(channel, dt, decay);
        }
        for channel in grouped..self.inputs.dims.headdim {
            self.channels::<V, 1>(channel, dt, decay);
        }
    }
}

impl Head<'_> {
    /// The step size, and what it leaves of the state.
    #[inline(always)]
    fn decay<V: Vector>(&self) -> [f32; 2] {
        let (inputs, head) = (self.inputs, self.head);
        let raw = inputs.dt.get(self.batch, head..head + 1)[0];
        let bias = inputs.dt_bias.map_or(0.0, |bias| bias[head]);
        let mut dt = V::splat(raw + bias);
        if inputs.dt_softplus {
            dt = softplus(dt);
        }
        let (least, most) = inputs.dt_limit;
        dt = dt.at_least(V::splat(least)).at_most(V::splat(most));
        let mut lanes = [Lanes::ZERO; 2];
        dt.store(&mut lanes[0]);
        decay(dt * V::splat(inputs.a[head] * LOG2_E)).store(&mut lanes[1]);
        lanes.map(|lanes| lanes.0[0])
    }

    /// The step of `N` channels from `first`.
    #[inline(always)]
    fn channels<V: Vector, const N: usize>(&self, first: usize, dt: f32, decay: f32) {
        let (inputs, batch, head) = (self.inputs, self.batch, self.head);
        let SsdDims {
            headdim,
            d_state,
            nheads,
            ..
        } = inputs.dims;
        let states = inputs.dims.states(head / inputs.dims.heads_per_group());
        let b = inputs.b.get(batch, states.clone());
        let c = inputs.c.get(batch, states);
        let start = head * headdim + first;
        let x = inputs.x.get(batch, start..start + N);
        let rows = (batch * nheads + head) * headdim + first;
        let to = self.state.block(&(rows..rows + N), &(0..d_state));
        let decay = V::splat(decay);
        let mut sums = [V::zero(); TOGETHER];
        for state in (0..d_state).step_by(LANES) {
            let columns = state..d_state.min(state + LANES);
            let b = V::load_padded(&b[columns.clone()]);
            let c = V::load_padded(&c[columns.clone()]);
            for i in 0..N {
                let added = b * V::splat(dt * x[i]);
                // SAFETY: a row of the block, which is this head's alone.
                unsafe {
                    let at = to.add(i * d_state + state);
                    prefetch(at.wrapping_add(AHEAD));
                    let h = decay.mul_add(V::read_first(at, columns.len()), added);
                    sums[i] = h.mul_add(c, sums[i]);
                    h.write_first(at, columns.len());
                }
            }
        }
        let sums = V::sums(sums);
        let y = self.y.block(&(batch..batch + 1), &(start..start + N));
        for i in 0..N {
            let skip = match inputs.skip(head) {
                None => 0.0,
                Some(&[single]) => single,
                Some(skip) => skip[first + i],
            };
            // SAFETY: as above.
            unsafe { y.add(i).write(sums[i] + skip * x[i]) };
        }
    }
}
