//! One step of the recurrence of Mamba-2.

use cubecl::prelude::*;

use super::layer::Mamba2;
use super::model::Sizes;
use crate::bits::{limit, round_to};
use crate::pointwise::{exp, softplus};
use crate::tensors::processors;

/// Units of a cube: few, so that the heads of one sequence spread over the device.
const UNITS: usize = 128;

/// Units that share a row of the state at most: a plane of CUDA adds up without shared memory.
const MOST_PARTS: usize = 32;

/// Rows of a unit at most, which read `B` and `C` once: their loads are in flight at once.
const MOST_ROWS: usize = 4;

/// Cubes a multiprocessor below which units own fewer rows.
const CUBES_TO_FILL: usize = 4;

/// What the kernel is compiled for. A cube owns `rows * turns` rows of a head's state, `parts` units each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SsdStep {
    batch: usize,
    nheads: usize,
    headdim: usize,
    ngroups: usize,
    d_state: usize,
    /// States that a unit loads at once.
    lanes: usize,
    /// Units of a row.
    parts: usize,
    /// Rows that a cube has at once.
    rows: usize,
    /// Rows of a unit.
    turns: usize,
    /// Whether the units of a row are neighbours within a plane.
    plane: bool,
    /// Whether every channel has a skip of its own.
    skips_channels: bool,
    /// Whether a time step may meet a limit.
    limited: bool,
    ptx: bool,
}

impl SsdStep {
    pub fn new(client: &Client, mixer: &Mamba2, sizes: Sizes) -> Self {
        let hardware = &client.properties().hardware;
        let &Mamba2 {
            nheads,
            headdim,
            ngroups,
            d_state,
            ..
        } = mixer;
        let lanes = if d_state.is_multiple_of(4) { 4 } else { 1 };
        let vectors = d_state / lanes;
        let parts = match vectors.is_power_of_two() {
            true => vectors,
            false => vectors.next_power_of_two() / 2,
        };
        let parts = parts.min(MOST_PARTS);
        let rows = (UNITS / parts).min(headdim.next_power_of_two());
        let wanted = processors(hardware) * CUBES_TO_FILL;
        let fits = |turns: usize| {
            let cubes = sizes.batch * nheads * headdim.div_ceil(rows * turns);
            rows * turns <= headdim && cubes >= wanted
        };
        let mut turns = MOST_ROWS;
        while turns > 1 && !fits(turns) {
            turns /= 2;
        }
        // Which units form a plane is known of CUDA alone.
        let planes = sizes.ptx && hardware.plane_size_min == hardware.plane_size_max;
        Self {
            batch: sizes.batch,
            nheads,
            headdim,
            ngroups,
            d_state,
            lanes,
            parts,
            rows,
            turns,
            plane: planes && (parts * rows).is_multiple_of(hardware.plane_size_max as usize),
            skips_channels: mixer.d.size() != nheads,
            limited: mixer.dt_limit.0 > 0.0 || mixer.dt_limit.1 < f32::MAX,
            ptx: sizes.ptx,
        }
    }

    /// States that a unit loads at once.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Vectors of a row.
    fn vectors(&self) -> usize {
        self.d_state / self.lanes
    }

    /// Vectors of a row that a unit takes.
    fn share(&self) -> usize {
        self.vectors().div_ceil(self.parts)
    }

    /// Whether every unit has something to load in its turn `k`.
    fn full(&self, k: usize) -> bool {
        (k + 1) * self.parts <= self.vectors()
    }

    /// Whether the rows of a head fill its cubes.
    fn is_whole(&self) -> bool {
        self.headdim.is_multiple_of(self.rows * self.turns)
    }

    fn cubes_a_head(&self) -> usize {
        self.headdim.div_ceil(self.rows * self.turns)
    }

    /// Cubes of a sequence: each gives a sum of squares.
    pub fn parts_of_y(&self) -> usize {
        self.nheads * self.cubes_a_head()
    }

    fn d_inner(&self) -> usize {
        self.nheads * self.headdim
    }

    /// Entries of `B`, and of `C`.
    fn projected(&self) -> usize {
        self.ngroups * self.d_state
    }

    fn units(&self) -> usize {
        self.parts * self.rows
    }

    /// Cubes for every head of every sequence.
    pub fn cubes(&self, client: &Client) -> (CubeCount, CubeDim) {
        let cube = CubeDim::new_2d(self.parts as u32, self.rows as u32);
        let cubes = self.batch * self.nheads * self.cubes_a_head();
        let count = cubecl::calculate_cube_count_elemwise(client, cubes * self.units(), cube);
        (count, cube)
    }
}

/// Some units own rows of a head's state, each a share of their columns: `h = exp(dt a) h + dt x B'`,
/// `y = (h C + d x) gate`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn ssd_step_kernel<F: Float, S: Size>(
    u: &Tensor<F>, // [batch, d_inner + 2 ngroups d_state + nheads or more]
    gate: ComptimeOption<&Tensor<F>>, // [batch, d_inner or more]
    dt_bias: ComptimeOption<&Tensor<f32>>, // [nheads]
    a: &Tensor<f32>, // [nheads]
    skip: &Tensor<f32>, // [nheads] or [d_inner]
    state: &mut Tensor<Vector<f32, S>>, // [batch, nheads, headdim, d_state]
    y: &mut Tensor<F>, // [batch, d_inner or more]
    mut squares: ComptimeOption<OwnedTensor<f32>>, // [batch, cubes of a sequence]
    least: f32,
    most: f32,
    #[comptime] step: SsdStep,
    #[comptime] _present: u32,
    #[define(F)] _dtype: ElemType,
) {
    let cubes = comptime!(step.cubes_a_head());
    let turns = comptime!(step.turns);
    let share = comptime!(step.share());
    let lanes = comptime!(step.lanes);
    let vectors = comptime!(step.vectors());
    let line = CUBE_POS / cubes;
    // All of a cube or none.
    if line >= comptime!(step.batch * step.nheads) {
        terminate!();
    }
    let sequence = line / comptime!(step.nheads);
    let head = line % comptime!(step.nheads);
    let part = UNIT_POS_X as usize;
    let begin = CUBE_POS % cubes * comptime!(step.rows * step.turns) + UNIT_POS_Y as usize;
    let first = sequence * u.shape(1);
    let channel = head * comptime!(step.headdim);
    let group = head / comptime!(step.nheads / step.ngroups);
    let b_first = first + comptime!(step.d_inner()) + group * comptime!(step.d_state);
    let c_first = b_first + comptime!(step.projected());
    let dt_first = first + comptime!(step.d_inner() + 2 * step.projected());

    // Past the last row of the head units work on its first and write nothing; past the last column likewise.
    let mut befores = Array::<Vector<f32, S>>::new(comptime!(step.turns * step.share()));
    let mut inputs = Array::<f32>::new(turns);
    #[unroll]
    for turn in 0..turns {
        let own = begin + comptime!(turn * step.rows);
        let row = row_of(own, step);
        inputs[turn] = f32::cast_from(u[first + channel + row]);
        #[unroll]
        for k in 0..share {
            let at = column(part, k, step);
            let place = (line * comptime!(step.headdim) + row) * vectors + at;
            befores[comptime!(turn * step.share() + k)] = state[place];
        }
    }

    let mut delta = f32::cast_from(u[dt_first + head]);
    #[comptime]
    if let ComptimeOption::Some(bias) = dt_bias {
        delta += bias[head];
    }
    let mut dt = softplus(delta, comptime!(step.ptx));
    if comptime!(step.limited) {
        dt = limit(dt, least, most);
    }
    let decay = exp(dt * a[head], comptime!(step.ptx));

    let mut sums = Array::<f32>::new(turns);
    #[unroll]
    for turn in 0..turns {
        sums[turn] = 0.0f32;
    }
    #[unroll]
    for k in 0..share {
        let own = part + comptime!(k * step.parts);
        let at = column(part, k, step);
        let mut b = Vector::<f32, S>::empty();
        let mut c = Vector::<f32, S>::empty();
        #[unroll]
        for j in 0..lanes {
            let entry = at * lanes + j;
            b.insert(j, f32::cast_from(u[b_first + entry]));
            let mut read = f32::cast_from(u[c_first + entry]);
            if comptime!(!step.full(k)) {
                read = select(own < vectors, read, 0.0f32);
            }
            c.insert(j, read);
        }
        #[unroll]
        for turn in 0..turns {
            let own_row = begin + comptime!(turn * step.rows);
            let row = row_of(own_row, step);
            let before = befores[comptime!(turn * step.share() + k)];
            let after = before * Vector::new(decay) + b * Vector::new(dt * inputs[turn]);
            let product = after * c;
            let mut sum = product.extract(0usize);
            #[unroll]
            for j in 1..lanes {
                sum += product.extract(j);
            }
            sums[turn] += sum;
            let mut inside = true.runtime();
            if comptime!(!step.full(k)) {
                inside = own < vectors;
            }
            if comptime!(!step.is_whole()) {
                inside = inside && own_row < comptime!(step.headdim);
            }
            if inside {
                state[(line * comptime!(step.headdim) + row) * vectors + at] = after;
            }
        }
    }

    add_up(&mut sums, step);
    let mut own_squares = Shared::<[f32]>::new_slice(comptime!(step.rows * step.turns));
    #[unroll]
    for turn in 0..turns {
        let own = begin + comptime!(turn * step.rows);
        if part == comptime!(turn % step.parts) && own < comptime!(step.headdim) {
            let factor = if comptime!(step.skips_channels) {
                skip[channel + own]
            } else {
                skip[head]
            };
            let mut total = sums[turn] + factor * inputs[turn];
            #[comptime]
            if let ComptimeOption::Some(gate) = gate {
                total *= f32::cast_from(gate[sequence * gate.shape(1) + channel + own]);
            }
            let at = sequence * y.shape(1) + channel + own;
            y[at] = round_to::<F>(total);
            if comptime!(squares.is_some()) {
                own_squares[comptime!(turn * step.rows) + UNIT_POS_Y as usize] = total * total;
            }
        }
    }
    #[comptime]
    if let ComptimeOption::Some(squares) = &mut squares {
        sync_cube();
        if UNIT_POS == 0 {
            let mut sum = 0.0f32;
            #[unroll]
            for row in 0..comptime!(step.rows * step.turns) {
                if CUBE_POS % cubes * comptime!(step.rows * step.turns) + row
                    < comptime!(step.headdim)
                {
                    sum += own_squares[row];
                }
            }
            squares[CUBE_POS] = sum;
        }
    }
}

/// The row itself, or the head's first past its last.
#[cube]
fn row_of(own: usize, #[comptime] step: SsdStep) -> usize {
    if comptime!(step.is_whole()) {
        own
    } else {
        select(own < comptime!(step.headdim), own, 0)
    }
}

/// The unit's vector of a row in its turn `k`, or the first past the last.
#[cube]
fn column(part: usize, #[comptime] k: usize, #[comptime] step: SsdStep) -> usize {
    let own = part + comptime!(k * step.parts);
    if comptime!(step.full(k)) {
        own
    } else {
        select(own < comptime!(step.vectors()), own, 0)
    }
}

/// Adds each value up over the units of a row, in one order. All units of a cube take part.
#[cube]
fn add_up(values: &mut Array<f32>, #[comptime] step: SsdStep) {
    let parts = comptime!(step.parts);
    let turns = comptime!(step.turns);
    if comptime!(step.plane) {
        #[unroll]
        for turn in 0..turns {
            let mut sum = values[turn];
            #[unroll]
            for level in 0..comptime!(step.parts.ilog2()) {
                sum += plane_shuffle_xor(sum, comptime!(1u32 << level));
            }
            values[turn] = sum;
        }
    } else if parts > 1 {
        let mut shared = Shared::<[f32]>::new_slice(comptime!(step.units() * step.turns));
        let first = UNIT_POS_Y as usize * parts;
        #[unroll]
        for turn in 0..turns {
            shared[first + comptime!(turn * step.units()) + UNIT_POS_X as usize] = values[turn];
        }
        sync_cube();
        #[unroll]
        for turn in 0..turns {
            let mut sum = shared[first + comptime!(turn * step.units())];
            #[unroll]
            for other in 1..parts {
                sum += shared[first + comptime!(turn * step.units()) + other];
            }
            values[turn] = sum;
        }
    }
}
