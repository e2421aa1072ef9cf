//! Products of tiles in shared memory, with sums in f32 in registers.
//!
//! A tile lies in shared memory in vectors of 16 bytes, a row after the other with one vector more between them, so that
//! the same column of neighbouring rows lies in different banks. A product takes each factor as it lies, whichever of its
//! axes is the contiguous one: `A B`, `A B^T` and `A^T B` are the same function.
//!
//! Two ways to compute, chosen when a kernel is compiled:
//!
//! - plain units, on every device: tiles hold f32, four values a vector; a unit owns blocks of 4 x 4 sums;
//! - tensor cores, where [`has_tensor_cores`] says so: tiles hold f16 or bf16, eight values a vector; a plane owns
//!   fragments of 16 x 8 sums, computed by the instruction 16 x 8 x 16 from fragments that `ldmatrix` loads.

use cubecl::client::Client;
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use crate::bits::{round_all, round_to};
use crate::tensors::multiplies_fragments;

/// Units of a plane, on the devices whose tensor cores are used.
pub(super) const PLANE: usize = 32;

/// Edge of a unit's block of sums.
const BLOCK: usize = 4;

/// Sums of a unit's block.
const BLOCK_SUMS: usize = BLOCK * BLOCK;

/// Sums of a fragment that a unit holds.
const FRAGMENT_SUMS: usize = 4;

/// Values of the inner axis that an instruction takes, and rows of its result.
pub(super) const EDGE: usize = 16;

/// Whether products of `dtype` run on tensor cores whose fragments are laid out as here.
pub(super) fn has_tensor_cores(client: &Client, dtype: ElemType) -> bool {
    let properties = client.properties();
    let hardware = &properties.hardware;
    // The layout and the order of units in planes are known of CUDA alone.
    client.name() == "cuda"
        && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
        && multiplies_fragments(client, dtype)
        && properties.features.matmul.ldmatrix.contains(&dtype)
        && properties.features.copy_async
}

/// A tile in shared memory: `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub rows: usize,
    /// A multiple of twice the lanes.
    pub columns: usize,
    /// Values of a vector: 4 in f32, 8 in halves.
    pub lanes: usize,
}

impl Tile {
    /// Vectors from a row to the next. An odd number, so that eight rows lie in different banks.
    pub fn pitch(&self) -> usize {
        self.columns / self.lanes + 1
    }

    /// Vectors that it takes.
    pub fn vectors(&self) -> usize {
        self.rows * self.pitch()
    }

    pub fn bytes(&self) -> usize {
        16 * self.vectors()
    }

    /// As the factor of a product whose inner axis runs along its rows.
    pub fn along(&self) -> Factor {
        Factor {
            pitch: self.pitch(),
            across: false,
        }
    }

    /// As the factor of a product whose inner axis runs across its rows.
    pub fn across(&self) -> Factor {
        Factor {
            pitch: self.pitch(),
            across: true,
        }
    }
}

/// How a factor lies in shared memory. `A` of `A B` is read along, `B` across.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Factor {
    /// Vectors from a row to the next.
    pub pitch: usize,
    /// Whether the inner axis is not the contiguous one.
    pub across: bool,
}

/// Sums `[rows, columns]` and who owns which. All units of a cube take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sums {
    /// A multiple of 4, or of 16 with tensor cores.
    pub rows: usize,
    /// A multiple of 4; with tensor cores of 16 times [`Sums::planes_across`].
    pub columns: usize,
    /// Of the cube: whole planes with tensor cores.
    pub units: usize,
    /// Whether they are computed on tensor cores.
    pub tensor: bool,
}

impl Sums {
    /// Planes one below the other.
    pub fn planes_down(&self) -> usize {
        let planes = self.units / PLANE;
        let fragments = self.rows / EDGE;
        (1..=planes)
            .rev()
            .find(|&down| planes.is_multiple_of(down) && fragments.is_multiple_of(down))
            .unwrap_or(1)
    }

    /// Planes beside each other.
    pub fn planes_across(&self) -> usize {
        self.units / PLANE / self.planes_down()
    }

    /// Fragments of a plane, one below the other.
    pub fn down(&self) -> usize {
        self.rows / EDGE / self.planes_down()
    }

    /// Fragments of a plane beside each other, in pairs.
    pub fn across(&self) -> usize {
        self.columns / 8 / self.planes_across()
    }

    fn blocks(&self) -> usize {
        self.rows / BLOCK * (self.columns / BLOCK)
    }

    /// Sums that a unit holds: the length of its array.
    pub fn values(&self) -> usize {
        match self.tensor {
            true => FRAGMENT_SUMS * self.down() * self.across(),
            false => BLOCK_SUMS * self.blocks().div_ceil(self.units),
        }
    }

    /// Whether some units hold sums that nobody asked for.
    pub fn is_ragged(&self) -> bool {
        !self.tensor && !self.blocks().is_multiple_of(self.units)
    }

    /// Neighbouring sums of a row that are neighbours in the array, too.
    pub fn run(&self) -> usize {
        match self.tensor {
            true => 2,
            false => BLOCK,
        }
    }
}

/// Where a sum belongs.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Spot {
    pub row: usize,
    pub column: usize,
    /// Whether the unit is the one that owns it. Others hold a copy of another unit's.
    pub owned: bool,
}

/// Where the unit's sum `i` belongs.
#[cube]
pub(super) fn spot(#[comptime] i: usize, #[comptime] sums: Sums) -> Spot {
    if comptime!(sums.tensor) {
        let plane = UNIT_POS as usize / PLANE;
        let lane = UNIT_POS as usize % PLANE;
        let fragment = comptime!(i / FRAGMENT_SUMS);
        let (down, right) = comptime!((fragment / sums.across(), fragment % sums.across()));
        let within = comptime!(i % FRAGMENT_SUMS);
        let first_row = plane / comptime!(sums.planes_across()) * comptime!(sums.down() * EDGE);
        let first_column = plane % comptime!(sums.planes_across()) * comptime!(sums.across() * 8);
        Spot {
            row: first_row + lane / 4 + comptime!(down * EDGE + within / 2 * 8),
            column: first_column + lane % 4 * 2 + comptime!(right * 8 + within % 2),
            owned: true.runtime(),
        }
    } else {
        let across = comptime!(sums.columns / BLOCK);
        let mut block = UNIT_POS as usize + comptime!(i / BLOCK_SUMS * sums.units);
        let mut owned = true.runtime();
        if comptime!(sums.is_ragged()) {
            owned = block < comptime!(sums.blocks());
            block = select(owned, block, comptime!(sums.blocks() - 1));
        }
        Spot {
            row: block / across * BLOCK + comptime!(i % BLOCK_SUMS / BLOCK),
            column: block % across * BLOCK + comptime!(i % BLOCK),
            owned,
        }
    }
}

#[cube]
pub(super) fn zero(sums: &mut Array<f32>, #[comptime] form: Sums) {
    #[unroll]
    for i in 0..comptime!(form.values()) {
        sums[i] = 0.0f32;
    }
}

/// `sums += lhs rhs` over `inner` values, a multiple of 4, or of 16 with tensor cores. The factors begin at the vectors
/// `lhs_at` and `rhs_at`.
#[cube]
pub(super) fn multiply<E: Float, V: Size>(
    lhs: &Shared<[Vector<E, V>]>,
    lhs_at: usize,
    rhs: &Shared<[Vector<E, V>]>,
    rhs_at: usize,
    sums: &mut Array<f32>,
    #[comptime] inner: usize,
    #[comptime] factors: [Factor; 2],
    #[comptime] form: Sums,
) {
    if comptime!(form.tensor) {
        #[unroll]
        for step in 0..comptime!(inner / EDGE) {
            #[unroll]
            for down in 0..comptime!(form.down()) {
                let left = left_fragment::<E, V>(lhs, lhs_at, down, step, factors[0], form);
                #[unroll]
                for pair in 0..comptime!(form.across() / 2) {
                    let right = right_fragments::<E, V>(rhs, rhs_at, pair, step, factors[1], form);
                    let at = comptime!((down * form.across() + 2 * pair) * FRAGMENT_SUMS);
                    add_products::<E>(&left, &right, sums, at);
                }
            }
        }
    } else {
        for step in 0..comptime!(inner / BLOCK) {
            #[unroll]
            for block in 0..comptime!(form.values() / BLOCK_SUMS) {
                let first = comptime!(block * BLOCK_SUMS);
                let spot = spot(first, form);
                let left = gather::<E, V>(lhs, lhs_at, spot.row, step, factors[0]);
                let right = gather::<E, V>(rhs, rhs_at, spot.column, step, factors[1]);
                #[unroll]
                for k in 0..BLOCK {
                    #[unroll]
                    for row in 0..BLOCK {
                        let factor = left[comptime!(row * BLOCK + k)];
                        #[unroll]
                        for column in 0..BLOCK {
                            sums[comptime!(first + row * BLOCK + column)] +=
                                factor * right[comptime!(column * BLOCK + k)];
                        }
                    }
                }
            }
        }
    }
}

/// The values `[4 rows or columns, 4 of the inner axis]` of a factor.
#[cube]
fn gather<E: Float, V: Size>(
    source: &Shared<[Vector<E, V>]>,
    at: usize,
    first: usize,
    step: usize,
    #[comptime] factor: Factor,
) -> Array<f32> {
    let mut values = Array::<f32>::new(BLOCK_SUMS);
    let pitch = comptime!(factor.pitch);
    let base = if comptime!(factor.across) {
        at + step * comptime!(BLOCK * pitch) + first / BLOCK
    } else {
        at + first * pitch + step
    };
    #[unroll]
    for i in 0..BLOCK {
        let vector = source[base + comptime!(i * pitch)];
        #[unroll]
        for j in 0..BLOCK {
            let slot = comptime!(match factor.across {
                true => j * BLOCK + i,
                false => i * BLOCK + j,
            });
            values[slot] = f32::cast_from(vector.extract(j));
        }
    }
    values
}

/// The plane's fragment of the left factor at a step of the inner axis.
#[cube]
pub(super) fn left_fragment<E: Float, V: Size>(
    source: &Shared<[Vector<E, V>]>,
    at: usize,
    #[comptime] down: usize,
    #[comptime] step: usize,
    #[comptime] factor: Factor,
    #[comptime] form: Sums,
) -> Array<Vector<E, Const<2>>> {
    let plane = UNIT_POS as usize / PLANE;
    let lane = UNIT_POS as usize % PLANE;
    let row = plane / comptime!(form.planes_across()) * comptime!(form.down() * EDGE);
    let pitch = comptime!(factor.pitch);
    let place = if comptime!(factor.across) {
        let inner = lane % 8 + lane / 16 * 8;
        at + inner * pitch + row / 8 + lane / 8 % 2 + comptime!(step * EDGE * pitch + down * 2)
    } else {
        at + (row + lane % 16) * pitch + lane / 16 + comptime!(down * EDGE * pitch + step * 2)
    };
    fragments::<E, V>(source, place, factor.across)
}

/// The plane's fragments of the right factor, two beside each other, at a step of the inner axis.
#[cube]
pub(super) fn right_fragments<E: Float, V: Size>(
    source: &Shared<[Vector<E, V>]>,
    at: usize,
    #[comptime] pair: usize,
    #[comptime] step: usize,
    #[comptime] factor: Factor,
    #[comptime] form: Sums,
) -> Array<Vector<E, Const<2>>> {
    let plane = UNIT_POS as usize / PLANE;
    let lane = UNIT_POS as usize % PLANE;
    let column = plane % comptime!(form.planes_across()) * comptime!(form.across() * 8);
    let pitch = comptime!(factor.pitch);
    let place = if comptime!(factor.across) {
        at + lane % 16 * pitch + column / 8 + lane / 16 + comptime!(step * EDGE * pitch + pair * 2)
    } else {
        let row = column + lane % 8 + lane / 16 * 8;
        at + row * pitch + lane / 8 % 2 + comptime!(pair * EDGE * pitch + step * 2)
    };
    fragments::<E, V>(source, place, factor.across)
}

/// Four matrices of 8 x 8, whose rows the plane's units point at in their order.
#[cube]
fn fragments<E: Float, V: Size>(
    source: &Shared<[Vector<E, V>]>,
    place: usize,
    #[comptime] transposed: bool,
) -> Array<Vector<E, Const<2>>> {
    let instruction = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    let row = &source[place..place + 1];
    instruction.load_matrix::<Vector<E, V>, Const<2>>(row, MatrixIdent::A, 4usize, transposed)
}

/// Adds the products of a left fragment and two right ones to the sums of two fragments from `at` on.
#[cube]
pub(super) fn add_products<E: Float>(
    left: &Array<Vector<E, Const<2>>>,
    right: &Array<Vector<E, Const<2>>>,
    sums: &mut Array<f32>,
    #[comptime] at: usize,
) {
    let instruction = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    #[unroll]
    for half in 0..2usize {
        let first = comptime!(at + half * FRAGMENT_SUMS);
        let mut factor = Array::<Vector<E, Const<2>>>::new(2usize);
        factor[0] = right[comptime!(2 * half)];
        factor[1] = right[comptime!(2 * half + 1)];
        let mut addend = Array::<Vector<f32, Const<2>>>::new(2usize);
        #[unroll]
        for low in 0..2usize {
            let mut pair = Vector::<f32, Const<2>>::empty();
            pair.insert(0usize, sums[comptime!(first + 2 * low)]);
            pair.insert(1usize, sums[comptime!(first + 2 * low + 1)]);
            addend[low] = pair;
        }
        let sum = instruction.execute(left, &factor, &addend);
        #[unroll]
        for low in 0..2usize {
            sums[comptime!(first + 2 * low)] = sum[low].extract(0usize);
            sums[comptime!(first + 2 * low + 1)] = sum[low].extract(1usize);
        }
    }
}

/// The left fragment `step` that sums of a plane, rounded, are for another product: its inner axis is the sums' columns.
#[cube]
pub(super) fn rounded_fragment<E: Float>(
    sums: &Array<f32>,
    #[comptime] step: usize,
) -> Array<Vector<E, Const<2>>> {
    let mut fragment = Array::<Vector<E, Const<2>>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        let first = comptime!(step * 2 * FRAGMENT_SUMS + 2 * i);
        let mut pair = Vector::<f32, Const<2>>::empty();
        pair.insert(0usize, sums[first]);
        pair.insert(1usize, sums[comptime!(first + 1)]);
        fragment[i] = round_all(pair);
    }
    fragment
}

/// Writes sums as a tile, in its type.
#[cube]
pub(super) fn store<E: Float, V: Size>(
    sums: &Array<f32>,
    target: &mut Shared<[Vector<E, V>]>,
    at: usize,
    #[comptime] tile: Tile,
    #[comptime] form: Sums,
) {
    let run = comptime!(form.run());
    let width = comptime!(tile.lanes / form.run());
    #[unroll]
    for i in 0..comptime!(form.values() / form.run()) {
        let spot = spot(comptime!(i * run), form);
        if comptime!(form.tensor) {
            let mut pair = Vector::<f32, Const<2>>::empty();
            pair.insert(0usize, sums[comptime!(i * 2)]);
            pair.insert(1usize, sums[comptime!(i * 2 + 1)]);
            let place = (at + spot.row * comptime!(tile.pitch())) * width + spot.column / run;
            let pairs = target.with_vector_size_mut::<Const<2>>();
            pairs[place] = round_all(pair);
        } else {
            let mut vector = Vector::<E, V>::empty();
            #[unroll]
            for j in 0..BLOCK {
                vector.insert(j, round_to::<E>(sums[comptime!(i * BLOCK + j)]));
            }
            if spot.owned {
                target[at + spot.row * comptime!(tile.pitch()) + spot.column / run] = vector;
            }
        }
    }
}
