//! The parts that depend on the position but not on the state.

use super::super::super::{
    rows::{Column, OutputColumn},
    simd::math::{silu, softplus},
};
use super::*;

/// Step sizes, and outputs as far as the states have no part in them.
#[inline(always)]
pub fn prepare<V: Vector>(
    inputs: &ScanInputs,
    rows: &Range<usize>,
    channels: &Range<usize>,
    chunk: &mut Chunk,
) {
    let u = inputs.u.column(rows, channels);
    let delta = inputs.delta.column(rows, channels);
    let d = load_channels::<V>(inputs.d, channels);
    let bias = load_channels::<V>(inputs.delta_bias, channels);
    let softplus = inputs.delta_softplus;
    let grouped = rows.len() - rows.len() % GROUP;
    for first in (0..grouped).step_by(GROUP) {
        prepare_together::<V, GROUP>(&u, &delta, d, bias, softplus, first, chunk);
    }
    for first in grouped..rows.len() {
        prepare_together::<V, 1>(&u, &delta, d, bias, softplus, first, chunk);
    }
}

/// [`prepare`] for `N` positions from `first`.
#[inline(always)]
fn prepare_together<V: Vector, const N: usize>(
    u: &Column,
    delta: &Column,
    d: V,
    bias: V,
    through_softplus: bool,
    first: usize,
    chunk: &mut Chunk,
) {
    let u = u.load::<V, N>(first);
    let mut dt = Lockstep(delta.load::<V, N>(first)) + Lockstep([bias; N]);
    if through_softplus {
        dt = softplus(dt);
    }
    let positions: &mut [Position; N] =
        (&mut chunk.positions[first..first + N]).try_into().unwrap();
    for i in 0..N {
        let at = &mut positions[i];
        dt.0[i].store(&mut at.dt);
        (dt.0[i] * u[i]).store(&mut at.dt_u);
        (d * u[i]).store(&mut at.y);
    }
}

/// Gates the outputs and writes them.
#[inline(always)]
pub fn finish<V: Vector>(
    inputs: &ScanInputs,
    sinks: &Sinks,
    rows: &Range<usize>,
    channels: &Range<usize>,
    chunk: &Chunk,
) {
    let z = inputs.z.map(|z| z.column(rows, channels));
    let y = sinks.y.column(rows, channels);
    let grouped = rows.len() - rows.len() % GROUP;
    for first in (0..grouped).step_by(GROUP) {
        finish_together::<V, GROUP>(z.as_ref(), &y, first, chunk);
    }
    for first in grouped..rows.len() {
        finish_together::<V, 1>(z.as_ref(), &y, first, chunk);
    }
}

/// [`finish`] for `N` positions from `first`.
#[inline(always)]
fn finish_together<V: Vector, const N: usize>(
    z: Option<&Column>,
    to: &OutputColumn,
    first: usize,
    chunk: &Chunk,
) {
    let mut y = [V::zero(); N];
    for (y, at) in y.iter_mut().zip(&chunk.positions[first..first + N]) {
        *y = V::load(&at.y);
    }
    if let Some(z) = z {
        let gate = silu(Lockstep(z.load::<V, N>(first)));
        y = (Lockstep(y) * gate).0;
    }
    // SAFETY: this task alone writes these channels of this sequence.
    unsafe { to.store(first, y) };
}
