//! A sequence of one position: one step of the recurrence, bound by reading and writing the states.

use super::super::rows::{Columns, Output, Rows};
use super::super::simd::{Kernel, LANES, Lanes, Vector, dispatch, math::softplus};
use super::{SsdDims, SsdInputs, SsdOutputs, positions::decay};
use rayon::prelude::*;
use std::f32::consts::LOG2_E;

/// States from which on heads are shared out over threads: fewer take less time than waking one.
const SHARED: usize = 1 << 17;

/// Channels that share each read of `b` and `c`.
const TOGETHER: usize = 4;

/// [`forward`](super::forward) of one position a sequence.
pub fn step(inputs: &SsdInputs) -> SsdOutputs {
    let dims = inputs.dims;
    let mut y = Output::new(dims.batch, dims.d_inner());
    let mut state = Output::new(dims.batch * dims.d_inner(), dims.d_state);
    let (y_sink, state_sink) = (y.columns(), state.columns());
    let run = |index| {
        dispatch(Head {
            inputs,
            batch: index / dims.nheads,
            head: index % dims.nheads,
            y: &y_sink,
            state: &state_sink,
        });
    };
    let heads = 0..dims.batch * dims.nheads;
    if dims.state_len() < SHARED {
        heads.for_each(run);
    } else {
        heads.into_par_iter().for_each(run);
    }
    // SAFETY: each head has written its outputs and its states.
    unsafe {
        SsdOutputs {
            y: y.finish(),
            final_state: state.finish(),
            checkpoints: None,
        }
    }
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
        let before = self.inputs.initial_state(self.batch, self.head);
        let [dt, decay] = self.decay::<V>();
        for channel in (0..grouped).step_by(TOGETHER) {
            self.channels::<V, TOGETHER>(channel, before, dt, decay);
        }
        for channel in grouped..self.inputs.dims.headdim {
            self.channels::<V, 1>(channel, before, dt, decay);
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
    fn channels<V: Vector, const N: usize>(
        &self,
        first: usize,
        before: Option<Rows>,
        dt: f32,
        decay: f32,
    ) {
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
                let mut h = b * V::splat(dt * x[i]);
                if let Some(before) = before {
                    let row = before.get(first + i, columns.clone());
                    h = decay.mul_add(V::load_padded(row), h);
                }
                sums[i] = h.mul_add(c, sums[i]);
                // SAFETY: a row of the block, which is this head's alone.
                unsafe { h.write_first(to.add(i * d_state + state), columns.len()) };
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
