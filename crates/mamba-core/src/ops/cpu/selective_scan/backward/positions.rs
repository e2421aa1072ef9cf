//! The parts that depend on the position but not on the state.

use super::super::super::simd::math::{silu_with_derivative, softplus_with_derivative};
use super::{layout::Chunk, *};

impl Task<'_> {
    /// All that depends on the position but not on the state, and sums set to zero. Asks for
    /// what the chunk before will read.
    #[inline(always)]
    pub fn prepare<V: Vector>(
        &self,
        rows: &Range<usize>,
        channels: &Range<usize>,
        chunk: &mut Chunk,
    ) {
        let grouped = rows.len() - rows.len() % GROUP;
        for t in (0..grouped).step_by(GROUP) {
            self.prepare_together::<V, GROUP>(rows.start, t, channels, chunk);
        }
        for t in grouped..rows.len() {
            self.prepare_together::<V, 1>(rows.start, t, channels, chunk);
        }
    }

    /// [`prepare`](Self::prepare) for `N` positions from `first`.
    #[inline(always)]
    fn prepare_together<V: Vector, const N: usize>(
        &self,
        start: usize,
        first: usize,
        channels: &Range<usize>,
        chunk: &mut Chunk,
    ) {
        let inputs = self.inputs;
        let bias = load_channels::<V>(inputs.delta_bias, channels);
        let mut delta = [V::zero(); N];
        let mut z = [V::zero(); N];
        for i in 0..N {
            let row = start + first + i;
            let before = row.wrapping_sub(CHECKPOINT_INTERVAL);
            inputs.prefetch(&inputs.u, before, channels);
            inputs.prefetch(&inputs.delta, before, channels);
            inputs.prefetch(&self.grad_y, before, channels);
            delta[i] = V::load_padded(inputs.delta.get(row, channels.clone())) + bias;
            if let Some(gates) = &inputs.z {
                inputs.prefetch(gates, before, channels);
                z[i] = V::load_padded(gates.get(row, channels.clone()));
            }
        }
        let (dt, slope) = if inputs.delta_softplus {
            softplus_with_derivative(Lockstep(delta))
        } else {
            (Lockstep(delta), Lockstep::splat(1.0))
        };
        for i in 0..N {
            let (t, row) = (first + i, start + first + i);
            let u = V::load_padded(inputs.u.get(row, channels.clone()));
            let at = &mut chunk[t];
            dt.0[i].store(&mut at.dt);
            slope.0[i].store(&mut at.dt_slope);
            (dt.0[i] * u).store(&mut at.dt_u);
            V::load_padded(self.grad_y.get(row, channels.clone())).store(&mut at.grad);
            (at.y, at.grad_dt, at.grad_dt_u) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
        }
        if inputs.z.is_some() {
            let (gate, slope) = silu_with_derivative(Lockstep(z));
            for i in 0..N {
                let at = &mut chunk[first + i];
                let grad = V::load(&at.grad);
                (grad * slope.0[i]).store(&mut at.grad_gate);
                (grad * gate.0[i]).store(&mut at.grad);
            }
        }
    }

    /// Gradients of the inputs that have a channel and a position.
    #[inline(always)]
    pub fn finish<V: Vector>(&self, rows: &Range<usize>, block: &mut Block, chunk: &Chunk) {
        let inputs = self.inputs;
        let channels = &block.channels;
        let d = load_channels::<V>(inputs.d, channels);
        let (mut grad_d, mut grad_bias) = (V::zero(), V::zero());
        for (t, row) in rows.clone().enumerate() {
            let u = V::load_padded(inputs.u.get(row, channels.clone()));
            let at = &chunk[t];
            let grad = V::load(&at.grad);
            let grad_dt_u = V::load(&at.grad_dt_u);
            let grad_u = V::load(&at.dt).mul_add(grad_dt_u, d * grad);
            let grad_dt = u.mul_add(grad_dt_u, V::load(&at.grad_dt));
            let grad_delta = grad_dt * V::load(&at.dt_slope);
            grad_d = grad.mul_add(u, grad_d);
            grad_bias = grad_bias + grad_delta;
            // SAFETY: this task alone writes these channels of this sequence.
            unsafe {
                self.sinks.u.write(row, channels, grad_u);
                self.sinks.delta.write(row, channels, grad_delta);
                if let Some(z) = &self.sinks.z {
                    let y = d.mul_add(u, V::load(&at.y));
                    z.write(row, channels, y * V::load(&at.grad_gate));
                }
            }
        }
        (V::load(&block.grad_d) + grad_d).store(&mut block.grad_d);
        (V::load(&block.grad_bias) + grad_bias).store(&mut block.grad_bias);
    }
}
