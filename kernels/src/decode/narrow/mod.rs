//! Products of a packed matrix with some rows on tensor cores: few enough that cubes over them alone would leave the
//! device idle, so the planes of a cube share the inner axis. On request they normalise the rows on the way, since
//! `W (x r gamma) = r (W gamma) x`, by sums of squares that whoever made the rows left behind, and add to the residual stream,
//! of whose rows they leave such sums behind themselves.

mod kernel;

use cubecl::prelude::*;

use super::pack::Packed;
use super::team::lanes;
use crate::pointwise::takes_ptx;
use crate::tensors::{address_type, multiplies_fragments, present, processors};
use kernel::narrow_kernel;

/// Rows and columns of a fragment.
pub(super) const EDGE: usize = 16;

/// Rows of the largest cube: memory goes up to a multiple of them.
pub(super) const WHOLE_ROWS: usize = EDGE * MOST_FRAGMENTS;

/// Values that a unit loads at once, 16 bytes, and those of the inner axis that four units of a plane load.
const VECTOR: usize = 8;
const BLOCK: usize = 4 * VECTOR;

/// Fragments along the rows of a cube at most: each plane keeps a sum of each.
const MOST_FRAGMENTS: usize = 4;

/// Planes of a cube at most: their sums lie in shared memory, 32 KiB.
const MOST_PLANES: usize = 8;

/// Blocks of the inner axis whose loads are in flight at once: 120 registers.
const MOST_AHEAD: usize = 3;

/// Sums of squares that a unit keeps in registers at most.
const MOST_PARTS: usize = 16;

/// Rows from which on other routines fill the device.
const MANY_ROWS: usize = 256;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Fragments along the rows.
    fragments: usize,
    planes: usize,
    plane: usize,
    /// Of the matrix.
    columns: usize,
    /// Parts of a row of which there is a sum of squares; none if rows are taken as they are.
    parts: usize,
}

impl Tile {
    /// Blocks of the inner axis that a plane takes.
    fn steps(&self) -> usize {
        self.columns.div_ceil(BLOCK) / self.planes
    }

    /// Whether all blocks are full.
    fn is_whole(&self) -> bool {
        self.columns.is_multiple_of(BLOCK)
    }

    /// How many of them are loaded at once.
    fn ahead(&self) -> usize {
        divisor(self.steps(), MOST_AHEAD)
    }

    /// Rows of a cube.
    fn height(&self) -> usize {
        EDGE * self.fragments
    }

    fn units(&self) -> usize {
        self.plane * self.planes
    }

    /// Places of `y` that a unit stores, at most.
    fn places(&self) -> usize {
        (self.height() * EDGE).div_ceil(self.units())
    }

    /// Units that add up a row's sums of squares: neighbours within a plane.
    fn share(&self) -> usize {
        let share = (self.units() / self.height()).max(1).ilog2();
        (1 << share).min(self.plane)
    }

    /// Times that a unit does so.
    fn rounds(&self) -> usize {
        (self.height() * self.share()).div_ceil(self.units())
    }

    /// Whether every unit has a sum to take each time.
    fn shares_evenly(&self) -> bool {
        let slots = self.height() * self.share();
        self.parts.is_multiple_of(self.share()) && slots.is_multiple_of(self.units())
    }

    /// Sums that it takes each time.
    fn own_parts(&self) -> usize {
        self.parts.div_ceil(self.share())
    }

    /// Of which so many are on their way at once.
    fn kept_parts(&self) -> usize {
        self.own_parts().min(MOST_PARTS)
    }
}

/// What a product does besides.
#[derive(Clone, Debug, Default)]
pub(super) struct Extras {
    pub norm: Option<RowNorm>,
    pub stream: Option<Addition>,
}

/// Each row is divided by its root mean square. The scale of the norm is part of the matrix.
#[derive(Clone, Debug)]
pub(super) struct RowNorm {
    /// Sums over parts of a row, `[rows, parts]`, f32, with memory up to a multiple of [`WHOLE_ROWS`].
    pub squares: TensorBinding,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What the product is added to, f32 and shaped as `y`, which gets the sum, too.
#[derive(Clone, Debug)]
pub(super) struct Addition {
    pub stream: TensorBinding,
    /// Gets the sums of squares over [`EDGE`] columns each, `[rows, columns / EDGE]`, rounded up, f32.
    pub squares: TensorBinding,
}

/// Whether the device and the sizes allow products of so many rows with a matrix of type `dtype` and so many columns.
pub(super) fn covers(client: &Client, rows: usize, columns: usize, dtype: ElemType) -> bool {
    // Which units form a plane is known of CUDA alone.
    takes_ptx(client)
        && rows <= MANY_ROWS
        && lanes(dtype.size(), &client.properties().hardware) == VECTOR
        && columns.is_multiple_of(VECTOR)
        && multiplies_fragments(client, dtype)
}

/// Computes `y = x matrix'`, where that is covered: `x` is `[rows, columns]`, of the matrix' type, with memory up to a multiple
/// of [`WHOLE_ROWS`].
pub(super) fn narrow_product(
    client: &Client,
    x: &TensorBinding,
    matrix: &Packed,
    y: &TensorBinding,
    out: ElemType,
    extras: Extras,
) {
    let rows = x.shape[0];
    let hardware = &client.properties().hardware;
    // Few fragments a cube read the matrix often, many leave the device idle.
    let processors = processors(hardware);
    let cubes = |fragments| matrix.rows.div_ceil(EDGE) * rows.div_ceil(EDGE * fragments);
    let fragments = [MOST_FRAGMENTS, 2].into_iter();
    let fragments = fragments
        .filter(|&fragments| fragments <= rows.div_ceil(EDGE))
        .find(|&fragments| cubes(fragments) >= processors)
        .unwrap_or(1);
    let tile = Tile {
        fragments,
        planes: divisor(matrix.columns.div_ceil(BLOCK), MOST_PLANES),
        plane: hardware.plane_size_max as usize,
        columns: matrix.columns,
        parts: extras.norm.as_ref().map_or(0, |it| it.squares.shape[1]),
    };
    let across = matrix.rows.div_ceil(EDGE) as u32;
    let down = rows.div_ceil(EDGE * tile.fragments) as u32;
    let given = present([extras.norm.is_some(), extras.stream.is_some()]);
    let epsilon = extras.norm.as_ref().map_or(0.0, |it| it.epsilon);
    let norm = extras.norm.map(|it| it.squares.into_tensor_arg());
    let (stream, squares) = extras
        .stream
        .map(|it| (it.stream.into_tensor_arg(), it.squares.into_tensor_arg()))
        .unzip();
    // SAFETY: fragments past the last row of either factor lie in their padding; what is stored was checked.
    unsafe {
        narrow_kernel::launch_unchecked(
            client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_2d(tile.plane as u32, tile.planes as u32),
            address_type([&matrix.values, y]),
            VECTOR,
            x.clone().into_tensor_arg(),
            matrix.values.clone().into_tensor_arg(),
            norm.into(),
            stream.into(),
            squares.into(),
            y.clone().into_tensor_arg(),
            epsilon,
            tile,
            given,
            [matrix.dtype, out],
        );
    }
}

/// The largest divisor up to `most`.
fn divisor(value: usize, most: usize) -> usize {
    let mut divisors = (1..=most).rev();
    divisors
        .find(|&divisor| value.is_multiple_of(divisor))
        .unwrap_or(1)
}
