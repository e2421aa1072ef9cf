//! One head of a task, chunk by chunk.

use super::super::super::simd::{LANES, Lanes, dispatch};
use super::super::CHECKPOINT_INTERVAL;
use super::super::ahead::Ahead;
use super::super::copy::{load, transpose};
use super::super::padded::Padded;
use super::super::positions::{PerPosition, Positions};
use super::super::shared::{ScaleRows, States};
use super::super::tile::{Left, product, upper_product};
use super::super::{SsdDims, whole_vectors};
use super::products::{Agreement, GradB, GradC, GradX, Sums};
use super::weigh::{Weigh, dot};
use super::{Shared, Task};
use std::ops::Range;

/// What a head carries from chunk to chunk.
pub struct Carried {
    /// Gradient of the state after the chunk, `[d_state, headdim]`.
    pub grad_state: Padded,
    /// Whether that is zero because nothing reads the state.
    pub empty: bool,
    pub grad_a: f64,
    pub grad_bias: f64,
    /// One a channel.
    pub grad_d: Vec<Lanes>,
}

impl Carried {
    pub fn new(d_state: usize, headdim: usize) -> Self {
        let grad_state = Padded::zeros(d_state, headdim);
        Self {
            empty: true,
            grad_a: 0.0,
            grad_bias: 0.0,
            grad_d: vec![Lanes::ZERO; grad_state.vectors()],
            grad_state,
        }
    }
}

/// Room for one head's chunk.
pub struct Scratch {
    positions: Positions,
    /// The state before the chunk, `[d_state, headdim]`.
    state: Padded,
    /// `[positions, headdim]`
    x: Padded,
    /// `[headdim, positions]`
    x_transposed: Padded,
    /// `[positions, headdim]`
    grad_y: Padded,
    /// `[headdim, positions]`
    grad_y_transposed: Padded,
    /// `[positions, headdim]`, decayed from the chunk's beginning.
    entered: Padded,
    /// `[positions, positions]`
    weights: Padded,
    sums: Sums,
    entering: PerPosition,
    across: PerPosition,
    grad_d: Vec<Lanes>,
    ahead: Ahead,
}

impl Scratch {
    pub fn new(most: usize, dims: &SsdDims) -> Self {
        let (p, n) = (dims.headdim, dims.d_state);
        let state = Padded::zeros(n, p);
        Self {
            positions: Positions::ZERO,
            x: Padded::zeros(most, p),
            x_transposed: Padded::zeros(p, most),
            grad_y: Padded::zeros(most, p),
            grad_y_transposed: Padded::zeros(p, most),
            entered: Padded::zeros(most, p),
            weights: Padded::zeros(most, most),
            sums: Sums {
                leaving: PerPosition::ZERO,
                direct: PerPosition::ZERO,
            },
            entering: PerPosition::ZERO,
            across: PerPosition::ZERO,
            grad_d: vec![Lanes::ZERO; state.vectors()],
            ahead: Ahead::default(),
            state,
        }
    }
}

impl Task<'_> {
    pub fn head(
        &self,
        chunk: usize,
        rows: &Range<usize>,
        head: usize,
        shared: &mut Shared,
        carried: &mut Carried,
        scratch: &mut Scratch,
    ) {
        let inputs = self.inputs;
        let dims = inputs.dims;
        let (p, n) = (dims.headdim, dims.d_state);
        let len = whole_vectors(rows.len());
        let channels = dims.channels(head);
        let entered = chunk > 0 || inputs.initial_state.is_some();
        self.look_ahead(chunk, head, &mut scratch.ahead);
        scratch.positions.fill(inputs, rows, head, true);
        load(inputs.x, rows.clone(), channels.clone(), &mut scratch.x);
        transpose(&scratch.x, len, &mut scratch.x_transposed);
        load(
            self.grad_y,
            rows.clone(),
            channels.clone(),
            &mut scratch.grad_y,
        );
        transpose(&scratch.grad_y, len, &mut scratch.grad_y_transposed);
        if entered {
            let row = ((self.batch * dims.checkpoints() + chunk) * dims.nheads + head) * n;
            load(self.checkpoints, row..row + n, 0..p, &mut scratch.state);
        }

        let mut tiles = Agreement {
            x: Left::plain(&scratch.x),
            grad_y: &scratch.grad_y_transposed,
            headdim: p,
            to: &mut scratch.weights,
        };
        upper_product(len, &mut tiles);
        dispatch(Weigh {
            positions: &scratch.positions,
            scores: &shared.scores,
            len,
            weights: &mut scratch.weights,
            grad_scores: &mut shared.grad_scores,
            across: &mut scratch.across,
        });

        scratch.sums.leaving.values_mut().fill(0.0);
        scratch.sums.direct.values_mut().fill(0.0);
        scratch.grad_d.fill(Lanes::ZERO);
        let vectors = scratch.x.vectors();
        let mut tiles = GradX {
            b: Left::plain(&shared.b),
            grad_state: &carried.grad_state,
            d_state: if carried.empty { 0 } else { n },
            positions: &scratch.positions,
            weights: Left::plain(&scratch.weights),
            x: &scratch.x,
            grad_y: &scratch.grad_y,
            skip: inputs.skip(head),
            to: &self.sinks.x,
            rows,
            channels: &channels,
            len,
            sums: &mut scratch.sums,
            grad_d: &mut scratch.grad_d,
            ahead: &mut scratch.ahead,
        };
        product(0..len, 0..vectors, &mut tiles);
        let sums = Lanes::values_mut(&mut carried.grad_d);
        for (sum, value) in sums.iter_mut().zip(Lanes::values(&scratch.grad_d)) {
            *sum += value;
        }

        scratch.entering.values_mut().fill(0.0);
        let mut through = 0.0;
        if entered {
            let mut tiles = GradC {
                state: Left::plain(&scratch.state),
                grad_y: &scratch.grad_y_transposed,
                headdim: p,
                entered: &scratch.positions.entered,
                c: &shared.c_transposed,
                to: &mut shared.grad_c,
                entering: &mut scratch.entering,
                ahead: &mut scratch.ahead,
            };
            product(0..whole_vectors(n), 0..len / LANES, &mut tiles);
        }
        if !carried.empty {
            let mut tiles = GradB {
                grad_state: Left::plain(&carried.grad_state),
                x: &scratch.x_transposed,
                headdim: p,
                left: &scratch.positions.left,
                to: &mut shared.grad_b,
                ahead: &mut scratch.ahead,
            };
            product(0..whole_vectors(n), 0..len / LANES, &mut tiles);
            if entered {
                through = scratch.positions.through * dot(&scratch.state, &carried.grad_state);
            }
        }
        self.finish_positions(rows, head, through, carried, scratch);
        if entered {
            dispatch(ScaleRows {
                from: &scratch.grad_y,
                factors: &scratch.positions.entered.values()[..len],
                to: &mut scratch.entered,
            });
            let mut tiles = States {
                left: Left::transposed(&shared.c),
                parts: &scratch.entered,
                len,
                through: scratch.positions.through,
                state: &mut carried.grad_state,
                ahead: &mut scratch.ahead,
            };
            product(0..whole_vectors(n), 0..vectors, &mut tiles);
            carried.empty = false;
        }
    }

    /// What the head after `head`, or the first one in the chunk before, reads and writes, and the
    /// head's share of what all read there.
    fn look_ahead(&self, chunk: usize, head: usize, ahead: &mut Ahead) {
        let (inputs, dims) = (self.inputs, self.inputs.dims);
        let (index, heads) = (head - self.heads.start, self.heads.len());
        ahead.clear();
        let Some(before) = chunk.checked_sub(1) else {
            return;
        };
        let (rows, chunk, next) = if index + 1 < heads {
            (dims.chunk_rows(self.batch, chunk), chunk, head + 1)
        } else {
            (
                dims.chunk_rows(self.batch, before),
                before,
                self.heads.start,
            )
        };
        let (first, p, n) = (dims.channels(next).start, dims.headdim, dims.d_state);
        ahead.add(inputs.x.line(rows.start, first), rows.len(), p);
        ahead.add(self.grad_y.line(rows.start, first), rows.len(), p);
        ahead.add(self.sinks.x.line(rows.start, first), rows.len(), p);
        let row = ((self.batch * dims.checkpoints() + chunk) * dims.nheads + next) * n;
        ahead.add(self.checkpoints.line(row, 0), n, p);
        let start = self.batch * dims.seq_len + before * CHECKPOINT_INTERVAL;
        let share = start + index * CHECKPOINT_INTERVAL / heads
            ..start + (index + 1) * CHECKPOINT_INTERVAL / heads;
        let first = dims.states(self.group).start;
        for rows in [inputs.b, inputs.c] {
            ahead.add(rows.line(share.start, first), share.len(), n);
        }
    }

    /// Gradients of step sizes: a step's decay counts for all that is carried across it.
    fn finish_positions(
        &self,
        rows: &Range<usize>,
        head: usize,
        through: f32,
        carried: &mut Carried,
        scratch: &Scratch,
    ) {
        let Positions { dt, slope, .. } = &scratch.positions;
        let (dt, slope) = (dt.values(), slope.values());
        let (across, entering) = (scratch.across.values(), scratch.entering.values());
        let leaving = scratch.sums.leaving.values();
        let direct = scratch.sums.direct.values();
        let a = f64::from(self.inputs.a[head]);
        let to = self.sinks.dt.block(rows, &(head..head + 1));
        // What comes from earlier positions, then what goes to later ones.
        let mut before: f64 = leaving
            .iter()
            .zip(dt)
            .map(|(&x, &dt)| f64::from(x * dt))
            .sum();
        let (mut after, mut grad_a, mut grad_bias) = (0.0, 0.0, 0.0);
        for t in (0..rows.len()).rev() {
            before -= f64::from(leaving[t] * dt[t]);
            after += f64::from(entering[t]);
            let log = f64::from(across[t]) + before + after + f64::from(through);
            grad_a += f64::from(dt[t]) * log;
            let grad = (a * log + f64::from(direct[t])) * f64::from(slope[t]);
            grad_bias += grad;
            // SAFETY: inside the block of this head and chunk, which is this task's alone.
            unsafe { to.add(t * self.sinks.dt.width()).write(grad as f32) };
        }
        carried.grad_a += grad_a;
        carried.grad_bias += grad_bias;
    }
}
