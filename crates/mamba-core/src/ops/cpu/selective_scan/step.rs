//! A sequence of one position: one step of the recurrence. Lanes are the states of a channel, in the order that they lie
//! in memory; step sizes and gates are computed for a lane block of channels at once.

use super::super::{
    rows::{Columns, Output},
    simd::{
        Kernel, dispatch,
        math::{TO_EXP2, silu, softplus},
        prefetch,
    },
    team::share,
};
use super::*;

/// Lane blocks of a task: some microseconds' worth.
const BLOCKS: usize = 16;

/// Channels that share each read of `b` and `c`.
const TOGETHER: usize = 4;

/// How far ahead the states are asked for, in values: a page, past which the machine does not look by itself.
const AHEAD: usize = 1024;

/// The outputs of one position a sequence, `[batch, 1, d_inner]`, whose `state`, `[batch, d_inner, d_state]`, becomes that after it.
/// The inputs' initial state has no part in it.
///
/// # Panics
/// If an input's size does not fit `dims`, or sequences are longer.
pub fn step(inputs: &ScanInputs, state: &mut [f32]) -> Vec<f32> {
    inputs.check("selective_scan");
    let ScanDims {
        batch,
        seq_len,
        d_inner,
        d_state,
    } = inputs.dims;
    assert!(
        seq_len == 1,
        "selective_scan: a step takes one position, got {seq_len}"
    );
    check_len("selective_scan", "state", state, inputs.dims.state_len());
    let mut y = Output::new(batch, d_inner);
    let (y_sink, state_sink) = (y.columns(), Columns::over(state, d_state));
    let blocks = inputs.dims.blocks();
    let tasks = blocks.div_ceil(BLOCKS);
    share(batch * tasks, |task| {
        let (batch, first) = (task / tasks, task % tasks * BLOCKS);
        dispatch(Task {
            inputs,
            batch,
            blocks: first..blocks.min(first + BLOCKS),
            y: &y_sink,
            state: &state_sink,
        });
    });
    // SAFETY: each task has written the outputs of its channels, which together are all.
    unsafe { y.finish() }
}

struct Task<'a> {
    inputs: &'a ScanInputs<'a>,
    batch: usize,
    blocks: Range<usize>,
    /// `[batch, d_inner]`
    y: &'a Columns<'a>,
    /// `[batch * d_inner, d_state]`
    state: &'a Columns<'a>,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for block in self.blocks.clone() {
            self.block::<V>(self.inputs.dims.channels(block));
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn block<V: Vector>(&self, channels: Range<usize>) {
        let (inputs, batch) = (self.inputs, self.batch);
        let u = V::load_padded(inputs.u.get(batch, channels.clone()));
        let mut dt = V::load_padded(inputs.delta.get(batch, channels.clone()))
            + load_channels(inputs.delta_bias, &channels);
        if inputs.delta_softplus {
            dt = softplus(dt);
        }
        let mut scaled_dt = Lanes::ZERO;
        (dt * V::splat(TO_EXP2)).store(&mut scaled_dt);
        let mut dt_u = Lanes::ZERO;
        (dt * u).store(&mut dt_u);
        let mut sums = Lanes::ZERO;
        let grouped = channels.len() / TOGETHER * TOGETHER;
        for lane in (0..grouped).step_by(TOGETHER) {
            self.channels::<V, TOGETHER>(channels.start, lane, &scaled_dt, &dt_u, &mut sums);
        }
        for lane in grouped..channels.len() {
            self.channels::<V, 1>(channels.start, lane, &scaled_dt, &dt_u, &mut sums);
        }
        let d = load_channels::<V>(inputs.d, &channels);
        let mut y = d.mul_add(u, V::load(&sums));
        if let Some(z) = inputs.z {
            y = y * silu(V::load_padded(z.get(batch, channels.clone())));
        }
        // SAFETY: this task alone writes these channels.
        unsafe { self.y.write(batch, &channels, y) };
    }

    /// The states of `N` channels from lane `lane` of the block that begins at channel `start`, and their products with `c`.
    #[inline(always)]
    fn channels<V: Vector, const N: usize>(
        &self,
        start: usize,
        lane: usize,
        scaled_dt: &Lanes,
        dt_u: &Lanes,
        products: &mut Lanes,
    ) {
        let (inputs, batch) = (self.inputs, self.batch);
        let ScanDims {
            d_inner, d_state, ..
        } = inputs.dims;
        let first = start + lane;
        let rows = batch * d_inner + first..batch * d_inner + first + N;
        let to = self.state.block(&rows, &(0..d_state));
        let a = &inputs.a[first * d_state..(first + N) * d_state];
        let mut sums = [V::zero(); TOGETHER];
        for state in (0..d_state).step_by(LANES) {
            let columns = state..d_state.min(state + LANES);
            let b = V::load_padded(inputs.b.get(batch, columns.clone()));
            let c = V::load_padded(inputs.c.get(batch, columns.clone()));
            let mut exponents = Lockstep([V::zero(); N]);
            for i in 0..N {
                let a = &a[i * d_state..(i + 1) * d_state];
                exponents.0[i] =
                    V::load_padded(&a[columns.clone()]) * V::splat(scaled_dt.0[lane + i]);
            }
            let decays = exp2(exponents);
            for i in 0..N {
                let added = b * V::splat(dt_u.0[lane + i]);
                // SAFETY: a row of the block, which is this task's alone.
                unsafe {
                    let at = to.add(i * d_state + state);
                    prefetch(at.wrapping_add(AHEAD));
                    let h = decays.0[i].mul_add(V::read_first(at, columns.len()), added);
                    sums[i] = h.mul_add(c, sums[i]);
                    h.write_first(at, columns.len());
                }
            }
        }
        let sums = V::sums(sums);
        products.0[lane..lane + N].copy_from_slice(&sums[..N]);
    }
}
