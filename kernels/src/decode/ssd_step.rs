//! One step of the recurrence of Mamba-2.

use cubecl::prelude::*;

use super::layer::Mamba2;
use super::model::Sizes;
use super::states::{Store, from_words, to_words};
use crate::pointwise::{exp, softplus};
use crate::tensors::processors;

/// Units of a cube: few, and fewer where the heads of one sequence would leave the device idle.
const UNITS: usize = 128;
const LEAST_UNITS: usize = 32;

/// Units that share a row of the state at most: a plane of CUDA adds up without shared memory.
const MOST_PARTS: usize = 32;

/// States of a unit at most, of rows that read `B` and `C` once: their loads are in flight at once.
const MOST_STATES: usize = 32;

/// Rows of a unit at most.
const MOST_ROWS: usize = 4;

/// Cubes a multiprocessor below which they own fewer rows.
const CUBES_TO_FILL: usize = 4;

/// What the kernel is compiled for. A cube owns `rows * turns` rows of a head's state, `parts` units each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SsdStep {
    batch: usize,
    nheads: usize,
    headdim: usize,
    ngroups: usize,
    d_state: usize,
    store: Store,
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
        let store = mixer.store;
        let blocks = store.blocks();
        let parts = match blocks.is_power_of_two() {
            true => blocks,
            false => blocks.next_power_of_two() / 2,
        };
        let parts = parts.min(MOST_PARTS);
        let mut rows = (UNITS / parts).min(headdim.next_power_of_two());
        let wanted = processors(hardware) * CUBES_TO_FILL;
        let cubes = |rows: usize| sizes.batch * nheads * headdim.div_ceil(rows);
        while rows * parts > LEAST_UNITS && cubes(rows) < wanted {
            rows /= 2;
        }
        let fits = |turns: usize| {
            let states = turns * blocks.div_ceil(parts) * store.block();
            let fills = cubes(rows * turns) >= wanted;
            rows * turns <= headdim && fills && states <= MOST_STATES
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
            store,
            parts,
            rows,
            turns,
            plane: planes && (parts * rows).is_multiple_of(hardware.plane_size_max as usize),
            skips_channels: mixer.d.size() != nheads,
            limited: mixer.dt_limit.0 > 0.0 || mixer.dt_limit.1 < f32::MAX,
            ptx: sizes.ptx,
        }
    }

    /// Words that a unit loads at once.
    pub fn lanes(&self) -> usize {
        self.store.lanes
    }

    /// Blocks of a row that a unit takes.
    fn share(&self) -> usize {
        self.store.blocks().div_ceil(self.parts)
    }

    /// Vectors of a row that a unit takes.
    fn loads(&self) -> usize {
        self.share() * self.store.loads()
    }

    /// Whether every unit has something to load in its turn `k`.
    fn full(&self, k: usize) -> bool {
        (k + 1) * self.parts <= self.store.blocks()
    }

    /// Whether the rows of a head fill its cubes.
    fn is_whole(&self) -> bool {
        self.headdim.is_multiple_of(self.rows * self.turns)
    }

    fn cubes_a_head(&self) -> usize {
        self.headdim.div_ceil(self.rows * self.turns)
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
pub(super) fn ssd_step_kernel<F: Float, O: Float, S: Size>(
    u: &Tensor<F>, // [batch, d_inner + 2 ngroups d_state + nheads or more]
    gate: ComptimeOption<&Tensor<F>>, // [batch, d_inner or more]
    dt_bias: ComptimeOption<&Tensor<f32>>, // [nheads]
    a: &Tensor<f32>, // [nheads]
    skip: &Tensor<f32>, // [nheads] or [d_inner]
    state: &mut Tensor<Vector<u32, S>>, // [batch, nheads, headdim], rows as the store says
    y: &mut Tensor<O>, // [batch, d_inner or more]
    least: f32,
    most: f32,
    #[comptime] step: SsdStep,
    #[define(F, O)] _dtypes: [ElemType; 2],
) {
    let cubes = comptime!(step.cubes_a_head());
    let turns = comptime!(step.turns);
    let share = comptime!(step.share());
    let store = comptime!(step.store);
    let block = comptime!(step.store.block());
    let blocks = comptime!(step.store.blocks());
    let loads = comptime!(step.store.loads());
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
    let mut words = Array::<Vector<u32, S>>::new(comptime!(step.turns * step.loads()));
    let mut inputs = Array::<f32>::new(turns);
    #[unroll]
    for turn in 0..turns {
        let own = begin + comptime!(turn * step.rows);
        let row = row_of(own, step);
        inputs[turn] = f32::cast_from(u[first + channel + row]);
        #[unroll]
        for k in 0..share {
            let place = place(line, row, column(part, k, step), step);
            #[unroll]
            for v in 0..loads {
                words[comptime!(turn * step.loads() + k * loads + v)] =
                    state[place + comptime!(v * blocks)];
            }
        }
    }

    let mut delta = f32::cast_from(u[dt_first + head]);
    #[comptime]
    if let ComptimeOption::Some(bias) = dt_bias {
        delta += bias[head];
    }
    let mut dt = softplus(delta, comptime!(step.ptx));
    if comptime!(step.limited) {
        // What is no number stays none.
        dt = select(dt < least, least, dt);
        dt = select(dt > most, most, dt);
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
        let mut b = Array::<f32>::new(block);
        let mut c = Array::<f32>::new(block);
        #[unroll]
        for j in 0..block {
            let entry = at * block + j;
            b[j] = f32::cast_from(u[b_first + entry]);
            let read = f32::cast_from(u[c_first + entry]);
            c[j] = if comptime!(step.full(k)) {
                read
            } else {
                select(own < blocks, read, 0.0f32)
            };
        }
        #[unroll]
        for turn in 0..turns {
            let own_row = begin + comptime!(turn * step.rows);
            let row = row_of(own_row, step);
            let write = dt * inputs[turn];
            let at_words = comptime!(turn * step.loads() + k * loads);
            let mut values = from_words::<S>(&words, at_words, store);
            let mut sum = 0.0f32;
            #[unroll]
            for j in 0..block {
                let after = values[j] * decay + b[j] * write;
                values[j] = after;
                sum += after * c[j];
            }
            sums[turn] += sum;
            let mut inside = true.runtime();
            if comptime!(!step.full(k)) {
                inside = own < blocks;
            }
            if comptime!(!step.is_whole()) {
                inside = inside && own_row < comptime!(step.headdim);
            }
            if inside {
                let vectors = to_words::<S>(&values, store);
                let place = place(line, row, at, step);
                #[unroll]
                for v in 0..loads {
                    state[place + comptime!(v * blocks)] = vectors[v];
                }
            }
        }
    }

    add_up(&mut sums, step);
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
            y[at] = O::cast_from(total);
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

/// Where the first vector of a block of a row lies.
#[cube]
fn place(line: usize, row: usize, block: usize, #[comptime] step: SsdStep) -> usize {
    let rows = line * comptime!(step.headdim) + row;
    rows * comptime!(step.store.blocks() * step.store.loads()) + block
}

/// The unit's block of a row in its turn `k`, or the first past the last.
#[cube]
fn column(part: usize, #[comptime] k: usize, #[comptime] step: SsdStep) -> usize {
    let own = part + comptime!(k * step.parts);
    if comptime!(step.full(k)) {
        own
    } else {
        select(own < comptime!(step.store.blocks()), own, 0)
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
