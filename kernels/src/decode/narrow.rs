//! Products of a packed matrix with some rows on tensor cores: few enough that cubes over them alone would leave the
//! device idle, so the planes of a cube share the inner axis.

use cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use cubecl::features::MmaConfig;
use cubecl::ir::FloatKind;
use cubecl::prelude::*;

use super::pack::Packed;
use crate::pointwise::takes_ptx;
use crate::tensors::address_type;

/// Edge of a fragment.
pub(super) const EDGE: usize = 16;

/// Fragments along the rows of a cube at most: each plane keeps a sum of each.
const MOST_FRAGMENTS: usize = 4;

/// Planes of a cube at most: their sums lie in shared memory, 32 KiB.
const MOST_PLANES: usize = 8;

/// Steps of the inner axis whose loads are in flight at once: 120 registers.
const MOST_AHEAD: usize = 3;

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
}

impl Tile {
    /// Fragments of the inner axis that a plane takes.
    fn steps(&self) -> usize {
        self.columns / EDGE / self.planes
    }

    /// How many of them are loaded at once.
    fn ahead(&self) -> usize {
        divisor(self.steps(), MOST_AHEAD)
    }
}

/// Computes `y = x matrix'` if the device and the sizes allow it: `x` is `[rows, columns]`, of the matrix' type, with
/// memory up to a multiple of [`EDGE`] rows.
pub(super) fn narrow_product(
    client: &Client,
    x: &TensorBinding,
    matrix: &Packed,
    y: &TensorBinding,
    out: ElemType,
) -> bool {
    let rows = x.shape[0];
    let properties = client.properties();
    let fragment = MmaConfig {
        a_type: matrix.dtype.into(),
        b_type: matrix.dtype.into(),
        cd_type: ElemType::Float(FloatKind::F32).into(),
        m: EDGE as u32,
        n: EDGE as u32,
        k: EDGE as u32,
    };
    // Which units form a plane is known of CUDA alone.
    if !takes_ptx(client)
        || rows > MANY_ROWS
        || !matrix.columns.is_multiple_of(EDGE)
        || !properties.features.matmul.cmma.contains(&fragment)
    {
        return false;
    }
    let tile = Tile {
        fragments: rows.div_ceil(EDGE).min(MOST_FRAGMENTS),
        planes: divisor(matrix.columns / EDGE, MOST_PLANES),
        plane: properties.hardware.plane_size_max as usize,
        columns: matrix.columns,
    };
    let across = matrix.rows.div_ceil(EDGE) as u32;
    let down = rows.div_ceil(EDGE * tile.fragments) as u32;
    // SAFETY: fragments past the last row of either factor lie in their padding; what is stored was checked.
    unsafe {
        narrow_kernel::launch_unchecked(
            client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_2d(tile.plane as u32, tile.planes as u32),
            address_type([&matrix.values, y]),
            x.clone().into_tensor_arg(),
            matrix.values.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            tile,
            [matrix.dtype, out],
        );
    }
    true
}

/// The largest divisor up to `most`.
fn divisor(value: usize, most: usize) -> usize {
    let mut divisors = (1..=most).rev();
    divisors
        .find(|&divisor| value.is_multiple_of(divisor))
        .unwrap_or(1)
}

/// A cube owns `EDGE` columns of `y` and some fragments of its rows; its planes share the inner axis, neighbours in turns, and
/// add up in shared memory, in one order.
#[cube(launch_unchecked, address_type = "dynamic")]
fn narrow_kernel<F: Float, O: Float>(
    x: &Tensor<F>,      // [rows, columns], memory for whole fragments
    matrix: &Tensor<F>, // [columns of y, columns], memory for whole fragments
    y: &mut Tensor<O>,  // [rows, columns of y]
    #[comptime] tile: Tile,
    #[define(F, O)] _dtypes: [ElemType; 2],
) {
    let columns = comptime!(tile.columns);
    let fragments = comptime!(tile.fragments);
    let planes = comptime!(tile.planes);
    let wide = CUBE_POS_X as usize * EDGE;
    let first = CUBE_POS_Y as usize * comptime!(EDGE * tile.fragments);
    let rows = y.shape(0);
    let plane = UNIT_POS_Y as usize;

    let mut sums = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..fragments {
        sums.push(Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            EDGE,
            EDGE,
            EDGE,
            MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    #[unroll(comptime!(tile.steps() <= 32))]
    for group in 0..comptime!(tile.steps() / tile.ahead()) {
        // All loads of a group come before the first product, which waits for them.
        let mut left = Sequence::<Matrix<F>>::new();
        let mut right = Sequence::<Matrix<F>>::new();
        #[unroll]
        for ahead in 0..comptime!(tile.ahead()) {
            let step = group * comptime!(tile.ahead()) + ahead;
            let at = (step * planes + plane) * EDGE;
            let begin = wide * columns + at;
            right.push(Matrix::<F>::from_slice(
                MatrixIdent::B,
                EDGE,
                EDGE,
                EDGE,
                MatrixLayout::ColMajor,
                &matrix[begin..begin + comptime!((EDGE - 1) * columns + EDGE)],
                columns as u32,
            ));
            #[unroll]
            for i in 0..fragments {
                let row = first + comptime!(i * EDGE);
                let begin = row * columns + at;
                left.push(Matrix::<F>::from_slice(
                    MatrixIdent::A,
                    EDGE,
                    EDGE,
                    EDGE,
                    MatrixLayout::RowMajor,
                    &x[begin..begin + comptime!((EDGE - 1) * columns + EDGE)],
                    columns as u32,
                ));
            }
        }
        #[unroll]
        for ahead in 0..comptime!(tile.ahead()) {
            #[unroll]
            for i in 0..fragments {
                let a = comptime!(ahead * fragments + i);
                cmma::execute(&left[a], &right[ahead], &sums[i], &sums[i]);
            }
        }
    }

    let area = comptime!(EDGE * EDGE * tile.fragments);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(area * tile.planes));
    #[unroll]
    for i in 0..fragments {
        let begin = plane * area + comptime!(i * EDGE * EDGE);
        cmma::store(
            &mut shared[begin..begin + comptime!(EDGE * EDGE)],
            &sums[i],
            EDGE as u32,
            MatrixLayout::RowMajor,
        );
    }
    sync_cube();
    let width = y.shape(1);
    let mut place = UNIT_POS as usize;
    while place < area {
        let mut sum = shared[place];
        #[unroll]
        for other in 1..planes {
            sum += shared[comptime!(other * area) + place];
        }
        let row = first + place / EDGE;
        let column = wide + place % EDGE;
        if row < rows && column < width {
            y[row * width + column] = O::cast_from(sum);
        }
        place += comptime!(tile.plane * tile.planes);
    }
}
