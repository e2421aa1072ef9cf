//! The recurrence, forwards and backwards through one chunk.

use super::{
    super::super::simd::prefetch,
    layout::{Chunk, Group},
    *,
};

impl Task<'_> {
    /// Takes the `G` states from `first` of a span's blocks through the chunk, forwards and backwards.
    #[inline(always)]
    pub fn group<V: Vector, const G: usize>(
        &mut self,
        place: &Place,
        span: usize,
        first: usize,
        blocks: &mut [Block],
        chunks: &mut [Chunk],
        group: &mut Group,
    ) {
        let len = place.rows.len();
        for (step, row) in group[..len].iter_mut().zip(place.rows.clone()) {
            step.b[..G].copy_from_slice(self.inputs.b.get(row, first..first + G));
            step.c[..G].copy_from_slice(self.inputs.c.get(row, first..first + G));
        }
        let ahead = self.ahead(place, first);
        let mut pairs = blocks.iter_mut().zip(chunks);
        // The first block sets the sums over the blocks, the others add to them.
        if let Some((block, chunk)) = pairs.next() {
            self.block_group::<V, G, true>(place, first, block, chunk, group, &ahead);
        }
        for (block, chunk) in pairs {
            self.block_group::<V, G, false>(place, first, block, chunk, group, &ahead);
        }
        let ScanDims {
            seq_len, d_state, ..
        } = self.inputs.dims;
        let start = place.rows.start - self.batch * seq_len + span * seq_len;
        for (t, step) in group[..len].iter().enumerate() {
            let mut grad_b = [V::zero(); GROUP];
            let mut grad_c = [V::zero(); GROUP];
            for g in 0..G {
                grad_b[g] = V::load(&step.cells[g].grad_b);
                grad_c[g] = V::load(&step.cells[g].grad_c);
            }
            let states = (start + t) * d_state + first..(start + t) * d_state + first + G;
            self.grad_b[states.clone()].copy_from_slice(&V::sums(grad_b)[..G]);
            self.grad_c[states].copy_from_slice(&V::sums(grad_c)[..G]);
        }
    }

    /// One block's part of [`group`](Self::group).
    #[inline(always)]
    fn block_group<V: Vector, const G: usize, const FIRST: bool>(
        &self,
        place: &Place,
        first: usize,
        block: &mut Block,
        chunk: &mut Chunk,
        group: &mut Group,
        ahead: &Ahead<2>,
    ) {
        if self.inputs.z.is_some() {
            self.recompute::<V, G, FIRST, true>(place, first, block, chunk, group, ahead);
        } else {
            self.recompute::<V, G, FIRST, false>(place, first, block, chunk, group, ahead);
        }
        retrace::<V, G, FIRST>(place.rows.len(), first, block, chunk, group);
    }

    /// What the pass of the states from `first` asks for: inputs of the chunk that comes next, which
    /// is the one before, and room for the gradients of this one.
    #[inline(always)]
    fn ahead(&self, place: &Place, first: usize) -> Ahead<2> {
        let (inputs, sinks) = (self.inputs, self.sinks);
        let start = place.rows.start;
        let next = start.wrapping_sub(CHECKPOINT_INTERVAL);
        let columns = [
            Some(inputs.u.line(next, 0)),
            Some(inputs.delta.line(next, 0)),
            Some(self.grad_y.line(next, 0)),
            inputs.z.map(|z| z.line(next, 0)),
            Some(sinks.u.line(start, 0)),
            Some(sinks.delta.line(start, 0)),
            sinks.z.as_ref().map(|z| z.line(start, 0)),
        ];
        let d_state = inputs.dims.d_state;
        Ahead::share(
            columns.into_iter().flatten(),
            turn(first, d_state),
            turns(d_state),
        )
    }

    /// States and decays of the chunk, from the checkpoint, and what needs the states after a
    /// position: with that here, this pass and the other have about as much arithmetic for each of
    /// their loads and stores.
    #[inline(always)]
    fn recompute<V: Vector, const G: usize, const FIRST: bool, const GATED: bool>(
        &self,
        place: &Place,
        first: usize,
        block: &Block,
        chunk: &mut Chunk,
        group: &mut Group,
        ahead: &Ahead<2>,
    ) {
        let mut scaled_a = [V::zero(); G];
        let mut h = [V::zero(); G];
        for g in 0..G {
            scaled_a[g] = V::load(&block.scaled_a[first + g]);
            let row = place.checkpoint + first + g;
            h[g] = V::load_padded(self.checkpoints.get(row, block.channels.clone()));
            let next = row.wrapping_sub(self.inputs.dims.d_state);
            prefetch(self.checkpoints.line(next, block.channels.start).row(0));
        }
        let ahead = ahead.offset(block.channels.start);
        let len = place.rows.len();
        let positions = chunk.positions[..len].iter_mut().zip(&mut group[..len]);
        for (t, ((at, step), &reset)) in positions.zip(&place.resets[..len]).enumerate() {
            ahead.ask(t);
            let mut decay = decays(V::load(&at.dt), scaled_a);
            if reset {
                decay = [V::zero(); G];
            }
            let (dt_u, grad) = (V::load(&at.dt_u), V::load(&at.grad));
            let mut y = V::load(&at.y);
            for g in 0..G {
                let cell = &mut step.cells[g];
                decay[g].store(&mut cell.decay);
                h[g].store(&mut cell.before);
                h[g] = decay[g].mul_add(h[g], dt_u * V::splat(step.b[g]));
                let grad_c = sum_so_far::<V, FIRST>(&cell.grad_c);
                grad.mul_add(h[g], grad_c).store(&mut cell.grad_c);
                if GATED {
                    y = h[g].mul_add(V::splat(step.c[g]), y);
                }
            }
            if GATED {
                y.store(&mut at.y);
            }
        }
    }
}

/// Gradients of the chunk, from its last position to its first.
#[inline(always)]
fn retrace<V: Vector, const G: usize, const FIRST: bool>(
    len: usize,
    first: usize,
    block: &mut Block,
    chunk: &mut Chunk,
    group: &mut Group,
) {
    let mut a = [V::zero(); G];
    let mut grad_a = [V::zero(); G];
    let mut carried = [V::zero(); G];
    for g in 0..G {
        a[g] = V::load(&block.a[first + g]);
        carried[g] = V::load(&block.grad_state[first + g]);
    }
    let positions = chunk.positions[..len].iter_mut();
    for (at, step) in positions.zip(&mut group[..len]).rev() {
        let (dt, dt_u, grad) = (V::load(&at.dt), V::load(&at.dt_u), V::load(&at.grad));
        let mut grad_dt = V::load(&at.grad_dt);
        let mut grad_dt_u = V::load(&at.grad_dt_u);
        for g in 0..G {
            let cell = &mut step.cells[g];
            let grad_state = grad.mul_add(V::splat(step.c[g]), carried[g]);
            let grad_b = sum_so_far::<V, FIRST>(&cell.grad_b);
            grad_state.mul_add(dt_u, grad_b).store(&mut cell.grad_b);
            grad_dt_u = grad_state.mul_add(V::splat(step.b[g]), grad_dt_u);

            carried[g] = grad_state * V::load(&cell.decay);
            let grad_exponent = carried[g] * V::load(&cell.before);
            grad_dt = grad_exponent.mul_add(a[g], grad_dt);
            grad_a[g] = grad_exponent.mul_add(dt, grad_a[g]);
        }
        grad_dt.store(&mut at.grad_dt);
        grad_dt_u.store(&mut at.grad_dt_u);
    }
    for g in 0..G {
        carried[g].store(&mut block.grad_state[first + g]);
        let sum = &mut block.grad_a[first + g];
        (V::load(sum) + grad_a[g]).store(sum);
    }
}

/// What the blocks before this one added up; nothing yet before the first.
#[inline(always)]
fn sum_so_far<V: Vector, const FIRST: bool>(sum: &Lanes) -> V {
    if FIRST { V::zero() } else { V::load(sum) }
}
