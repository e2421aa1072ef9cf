//! The parts that depend on the position but not on the state.

use super::super::super::{
    rows::Column,
    simd::math::{silu_with_derivative, softplus_with_derivative},
};
use super::{
    layout::{Chunk, Position, Slopes},
    *,
};

/// What one lane block's chunk reads.
struct Columns<'a> {
    u: Column<'a>,
    delta: Column<'a>,
    z: Option<Column<'a>>,
    grad_y: Column<'a>,
}

impl Task<'_> {
    /// All that depends on the position but not on the state, and sums set to zero.
    #[inline(always)]
    pub fn prepare<V: Vector>(
        &self,
        rows: &Range<usize>,
        channels: &Range<usize>,
        chunk: &mut Chunk,
    ) {
        let inputs = self.inputs;
        let columns = Columns {
            u: inputs.u.column(rows, channels),
            delta: inputs.delta.column(rows, channels),
            z: inputs.z.map(|z| z.column(rows, channels)),
            grad_y: self.grad_y.column(rows, channels),
        };
        let bias = load_channels::<V>(inputs.delta_bias, channels);
        let grouped = rows.len() - rows.len() % GROUP;
        for first in (0..grouped).step_by(GROUP) {
            self.prepare_together::<V, GROUP>(&columns, bias, first, chunk);
        }
        for first in grouped..rows.len() {
            self.prepare_together::<V, 1>(&columns, bias, first, chunk);
        }
    }

    /// [`prepare`](Self::prepare) for `N` positions from `first`.
    #[inline(always)]
    fn prepare_together<V: Vector, const N: usize>(
        &self,
        columns: &Columns,
        bias: V,
        first: usize,
        chunk: &mut Chunk,
    ) {
        let positions: &mut [Position; N] =
            (&mut chunk.positions[first..first + N]).try_into().unwrap();
        let slopes: &mut [Slopes; N] = (&mut chunk.slopes[first..first + N]).try_into().unwrap();
        let delta = Lockstep(columns.delta.load::<V, N>(first)) + Lockstep([bias; N]);
        let (dt, slope) = if self.inputs.delta_softplus {
            softplus_with_derivative(delta)
        } else {
            (delta, Lockstep::splat(1.0))
        };
        let u = columns.u.load::<V, N>(first);
        let mut grad = columns.grad_y.load::<V, N>(first);
        if let Some(z) = &columns.z {
            let (gate, slope) = silu_with_derivative(Lockstep(z.load::<V, N>(first)));
            for i in 0..N {
                (grad[i] * slope.0[i]).store(&mut slopes[i].gate);
                grad[i] = grad[i] * gate.0[i];
            }
        }
        for i in 0..N {
            let at = &mut positions[i];
            dt.0[i].store(&mut at.dt);
            (dt.0[i] * u[i]).store(&mut at.dt_u);
            grad[i].store(&mut at.grad);
            (at.y, at.grad_dt, at.grad_dt_u) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
            slope.0[i].store(&mut slopes[i].dt);
        }
    }

    /// Gradients of the inputs that have a channel and a position.
    #[inline(always)]
    pub fn finish<V: Vector>(&self, rows: &Range<usize>, block: &mut Block, chunk: &Chunk) {
        let (inputs, sinks) = (self.inputs, self.sinks);
        let channels = &block.channels;
        let u_column = inputs.u.column(rows, channels);
        let to_u = sinks.u.column(rows, channels);
        let to_delta = sinks.delta.column(rows, channels);
        let to_z = sinks.z.as_ref().map(|z| z.column(rows, channels));
        let d = load_channels::<V>(inputs.d, channels);
        let (mut grad_d, mut grad_bias) = (V::zero(), V::zero());
        let positions = chunk.positions[..rows.len()].iter();
        for (t, (at, slopes)) in positions.zip(&chunk.slopes[..rows.len()]).enumerate() {
            let [u] = u_column.load::<V, 1>(t);
            let grad = V::load(&at.grad);
            let grad_dt_u = V::load(&at.grad_dt_u);
            let grad_u = V::load(&at.dt).mul_add(grad_dt_u, d * grad);
            let grad_dt = u.mul_add(grad_dt_u, V::load(&at.grad_dt));
            let grad_delta = grad_dt * V::load(&slopes.dt);
            grad_d = grad.mul_add(u, grad_d);
            grad_bias = grad_bias + grad_delta;
            // SAFETY: this task alone writes these channels of this sequence.
            unsafe {
                to_u.store(t, [grad_u]);
                to_delta.store(t, [grad_delta]);
                if let Some(to_z) = &to_z {
                    let y = d.mul_add(u, V::load(&at.y));
                    to_z.store(t, [y * V::load(&slopes.gate)]);
                }
            }
        }
        (V::load(&block.grad_d) + grad_d).store(&mut block.grad_d);
        (V::load(&block.grad_bias) + grad_bias).store(&mut block.grad_bias);
    }
}
