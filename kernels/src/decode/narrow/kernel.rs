//! The kernel.

use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use super::{EDGE, Tile, VECTOR};
use crate::bits::round_to;

/// A cube owns `EDGE` columns of `y` and some fragments of its rows; its planes share the inner axis in blocks,
/// neighbours in turns, and add up in shared memory, in one order.
///
/// A sum over the inner axis may take it in any order, if both factors take the same. So unit `4 g + t` of a plane
/// loads the vector `t` of a block from rows `g` and `g + 8`, 16 bytes each, where the instruction's own order would have
/// it load four bytes here and there.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn narrow_kernel<F: Float, O: Float, V: Size>(
    x: &Tensor<Vector<F, V>>,      // [rows, columns], memory for whole fragments
    matrix: &Tensor<Vector<F, V>>, // [columns of y, columns], memory for whole fragments
    norm: ComptimeOption<&Tensor<f32>>, // [rows, parts], memory for whole fragments
    mut stream: ComptimeOption<OwnedTensor<f32>>, // [rows, columns of y]
    mut squares: ComptimeOption<OwnedTensor<f32>>, // [rows, fragments of y's columns]
    y: &mut Tensor<O>,             // [rows, columns of y]
    epsilon: f32,
    #[comptime] tile: Tile,
    #[comptime] _present: u32,
    #[define(F, O)] _dtypes: [ElemType; 2],
) {
    let vectors = comptime!(tile.columns / VECTOR);
    let fragments = comptime!(tile.fragments);
    let planes = comptime!(tile.planes);
    let wide = CUBE_POS_X as usize * EDGE;
    let first = CUBE_POS_Y as usize * comptime!(tile.height());
    let rows = y.shape(0);
    let width = y.shape(1);
    let plane = UNIT_POS_Y as usize;
    let group = UNIT_POS_X as usize / 4;
    let turn = UNIT_POS_X as usize % 4;
    let unit = UNIT_POS as usize;

    // What is needed behind the products is on its way while they are computed.
    let mut before = Array::<f32>::new(comptime!(tile.places()));
    #[comptime]
    if let ComptimeOption::Some(stream) = &stream {
        #[unroll]
        for k in 0..comptime!(tile.places()) {
            let (row, column) = place_of(unit + comptime!(k * tile.units()), first, wide);
            let inside = row < rows && column < width;
            before[k] = stream[select(inside, row * width + column, 0)];
        }
    }
    let mut parts = Array::<f32>::new(comptime!((tile.rounds() * tile.kept_parts()).max(1)));
    #[comptime]
    if let ComptimeOption::Some(norm) = norm {
        load_parts(norm, &mut parts, first, tile);
    }

    // Of each fragment two halves of eight columns, of each half the rows `group` and `group + 8`.
    let mut sums = Array::<Vector<f32, Const<2>>>::new(comptime!(4 * tile.fragments));
    #[unroll]
    for i in 0..comptime!(4 * tile.fragments) {
        sums[i] = Vector::new(0.0f32);
    }
    #[unroll(comptime!(tile.steps() <= 16))]
    for round in 0..comptime!(tile.steps() / tile.ahead()) {
        // All loads of a round come before the first product, which waits for them.
        let mut left = Array::<Vector<F, V>>::new(comptime!(2 * tile.fragments * tile.ahead()));
        let mut right = Array::<Vector<F, V>>::new(comptime!(2 * tile.ahead()));
        #[unroll]
        for ahead in 0..comptime!(tile.ahead()) {
            let step = round * comptime!(tile.ahead()) + ahead;
            let own = (step * planes + plane) * 4 + turn;
            let inside = own < vectors;
            let at = select(inside, own, 0);
            #[unroll]
            for half in 0..2usize {
                let row = wide + comptime!(half * 8) + group;
                let values = matrix[row * vectors + at];
                // Past the end: the beginning, zero times.
                right[comptime!(2 * ahead + half)] = if comptime!(tile.is_whole()) {
                    values
                } else {
                    select(inside, values, Vector::<F, V>::new(F::new(0.0)))
                };
            }
            #[unroll]
            for i in 0..comptime!(2 * tile.fragments) {
                let row = first + comptime!(i * 8) + group;
                left[comptime!(ahead * 2 * fragments + i)] = x[row * vectors + at];
            }
        }
        #[unroll]
        for ahead in 0..comptime!(tile.ahead()) {
            #[unroll]
            for half in 0..2usize {
                #[unroll]
                for i in 0..fragments {
                    let a = comptime!(2 * (ahead * fragments + i));
                    let sum = comptime!(2 * (2 * i + half));
                    multiply::<F, V>(
                        left[a],
                        left[comptime!(a + 1)],
                        right[comptime!(2 * ahead + half)],
                        &mut sums,
                        sum,
                    );
                }
            }
        }
    }

    let area = comptime!(EDGE * tile.height());
    let mut shared = Shared::<[f32]>::new_slice(comptime!(area * tile.planes));
    let begin = plane * area + group * EDGE + 2 * turn;
    #[unroll]
    for i in 0..fragments {
        #[unroll]
        for half in 0..2usize {
            #[unroll]
            for low in 0..2usize {
                let pair = sums[comptime!(2 * (2 * i + half) + low)];
                let place = begin + comptime!((i * EDGE + low * 8) * EDGE + half * 8);
                shared[place] = pair.extract(0usize);
                shared[place + 1] = pair.extract(1usize);
            }
        }
    }
    let mut scales = Shared::<[f32]>::new_slice(comptime!(tile.height()));
    if comptime!(tile.parts > 0) {
        store_scales(&parts, &mut scales, epsilon, tile);
    }
    sync_cube();
    #[unroll]
    for k in 0..comptime!(tile.places()) {
        let place = unit + comptime!(k * tile.units());
        // All of a plane or none.
        if place < area {
            let mut sum = shared[place];
            #[unroll]
            for other in 1..planes {
                sum += shared[comptime!(other * area) + place];
            }
            if comptime!(tile.parts > 0) {
                sum *= scales[place / EDGE];
            }
            let (row, column) = place_of(place, first, wide);
            let inside = row < rows && column < width;
            #[comptime]
            if let ComptimeOption::Some(stream) = &mut stream {
                sum += before[k];
                if inside {
                    stream[row * width + column] = sum;
                }
            }
            if inside {
                y[row * width + column] = round_to::<O>(sum);
            }
            #[comptime]
            if let ComptimeOption::Some(squares) = &mut squares {
                // The columns of a row are neighbours within a plane.
                let mut square = select(inside, sum * sum, 0.0f32);
                #[unroll]
                for level in 0..comptime!(EDGE.ilog2()) {
                    square += plane_shuffle_xor(square, comptime!(1u32 << level));
                }
                if row < rows && place.is_multiple_of(EDGE) {
                    squares[row * width.div_ceil(EDGE) + CUBE_POS_X as usize] = square;
                }
            }
        }
    }
}

/// Row and column of a cube's place.
#[cube]
fn place_of(place: usize, first: usize, wide: usize) -> (usize, usize) {
    (first + place / EDGE, wide + place % EDGE)
}

/// The unit's shares of the sums of squares of the cube's rows, which begin at `first`.
#[cube]
fn load_parts(norm: &Tensor<f32>, parts: &mut Array<f32>, first: usize, #[comptime] tile: Tile) {
    #[unroll]
    for round in 0..comptime!(tile.rounds()) {
        let slot = UNIT_POS as usize + comptime!(round * tile.units());
        let row = slot / comptime!(tile.share());
        #[unroll]
        for k in 0..comptime!(tile.own_parts()) {
            let part = slot % comptime!(tile.share()) + comptime!(k * tile.share());
            let own = comptime!(round * tile.kept_parts() + k % tile.kept_parts());
            let at = (first + row) * comptime!(tile.parts) + part;
            let value = if comptime!(tile.shares_evenly()) {
                norm[at]
            } else {
                let inside = row < comptime!(tile.height()) && part < comptime!(tile.parts);
                select(inside, norm[select(inside, at, 0)], 0.0f32)
            };
            parts[own] = if comptime!(k < tile.kept_parts()) {
                value
            } else {
                parts[own] + value
            };
        }
    }
}

/// What each row of the cube is divided by, inverted, from the units' shares of its sums of squares.
#[cube]
fn store_scales(
    parts: &Array<f32>,
    scales: &mut Shared<[f32]>,
    epsilon: f32,
    #[comptime] tile: Tile,
) {
    let share = comptime!(tile.share());
    #[unroll]
    for round in 0..comptime!(tile.rounds()) {
        let slot = UNIT_POS as usize + comptime!(round * tile.units());
        let mut sum = parts[comptime!(round * tile.kept_parts())];
        #[unroll]
        for k in 1..comptime!(tile.kept_parts()) {
            sum += parts[comptime!(round * tile.kept_parts() + k)];
        }
        #[unroll]
        for level in 0..comptime!(tile.share().ilog2()) {
            sum += plane_shuffle_xor(sum, comptime!(1u32 << level));
        }
        if slot.is_multiple_of(share) && slot / share < comptime!(tile.height()) {
            let mean = sum * comptime!(1.0 / tile.columns as f32);
            scales[slot / share] = 1.0f32 / (mean + epsilon).sqrt();
        }
    }
}

/// Adds the products of a block, two instructions of 16 x 8 x 16, to `sums[at]` and the one behind it.
#[cube]
fn multiply<F: Float, V: Size>(
    upper: Vector<F, V>,
    lower: Vector<F, V>,
    right: Vector<F, V>,
    sums: &mut Array<Vector<f32, Const<2>>>,
    #[comptime] at: usize,
) {
    let instruction = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    #[unroll]
    for part in 0..2usize {
        let (near, far) = comptime!((4 * part, 4 * part + 2));
        let mut a = Array::<Vector<F, Const<2>>>::new(4usize);
        a[0] = pair::<F, V>(upper, near);
        a[1] = pair::<F, V>(lower, near);
        a[2] = pair::<F, V>(upper, far);
        a[3] = pair::<F, V>(lower, far);
        let mut b = Array::<Vector<F, Const<2>>>::new(2usize);
        b[0] = pair::<F, V>(right, near);
        b[1] = pair::<F, V>(right, far);
        let mut c = Array::<Vector<f32, Const<2>>>::new(2usize);
        c[0] = sums[at];
        c[1] = sums[comptime!(at + 1)];
        let sum = instruction.execute(&a, &b, &c);
        sums[at] = sum[0];
        sums[comptime!(at + 1)] = sum[1];
    }
}

#[cube]
fn pair<F: Float, V: Size>(vector: Vector<F, V>, #[comptime] at: usize) -> Vector<F, Const<2>> {
    let mut pair = Vector::<F, Const<2>>::empty();
    pair.insert(0usize, vector.extract(at));
    pair.insert(1usize, vector.extract(comptime!(at + 1)));
    pair
}
