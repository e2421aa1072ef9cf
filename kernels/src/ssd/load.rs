//! What the kernels share: where a cube works, and how tiles reach shared memory.

use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;

use super::geometry::Geometry;
use super::tile::{Spot, Tile};

/// Where a cube works. Cubes lie over heads and slices of their channels, sequences and segments of time.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub batch: usize,
    pub head: usize,
    /// The group whose projections the head reads.
    pub group: usize,
    pub segment: usize,
    /// The slice's first channel.
    pub channel: usize,
    /// First position of the segment.
    pub begin: usize,
    /// The position after the segment's last.
    pub end: usize,
}

#[cube]
pub(super) fn place<F: Float, L: Size>(
    x: &Tensor<Vector<F, L>>, // [batch, seq_len, nheads, headdim]
    b: &Tensor<Vector<F, L>>, // [batch, seq_len, ngroups, d_state]
    segment_len: u32,
    #[comptime] geometry: Geometry,
) -> Place {
    let seq_len = x.shape(1);
    let slices = comptime!(geometry.slices());
    let head = CUBE_POS_X as usize / slices;
    let begin = CUBE_POS_Z as usize * segment_len as usize;
    let stop = begin + segment_len as usize;
    Place {
        batch: CUBE_POS_Y as usize,
        head,
        group: head / (x.shape(2) / b.shape(2)),
        segment: CUBE_POS_Z as usize,
        channel: CUBE_POS_X as usize % slices * comptime!(geometry.channels),
        begin,
        end: select(stop < seq_len, stop, seq_len),
    }
}

/// Rows of a sequence or projection that a tile is filled from.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    /// Of the row's first value, in values.
    pub base: usize,
    /// From a row to the next, in values.
    pub stride: usize,
    /// Rows that there are.
    pub rows: usize,
    /// Columns that there are.
    pub columns: usize,
}

/// The rows of `source` from position `start` on, and of their last two axes `columns` values from `first` on.
#[cube]
pub(super) fn rows<F: Float, L: Size>(
    source: &Tensor<Vector<F, L>>,
    place: &Place,
    start: usize,
    first: usize,
    columns: usize,
) -> Rows {
    Rows {
        base: place.batch * source.stride(0) + start * source.stride(1) + first,
        stride: source.stride(1),
        rows: place.end - start,
        columns,
    }
}

/// Fills a tile. Rows and columns that there are not are zeros.
#[cube]
pub(super) fn stage<F: Float, L: Size, E: Float, V: Size>(
    source: &Tensor<Vector<F, L>>,
    rows: &Rows,
    target: &mut Shared<[Vector<E, V>]>,
    at: usize,
    #[comptime] tile: Tile,
    #[comptime] geometry: Geometry,
) {
    let across = comptime!(tile.columns / tile.lanes);
    let lanes = comptime!(tile.lanes);
    let width = comptime!(geometry.width);
    let mut slot = UNIT_POS as usize;
    while slot < comptime!(tile.rows * across) {
        let row = slot / across;
        let column = slot % across * lanes;
        let mut vector = Vector::<E, V>::empty();
        #[unroll]
        for i in 0..comptime!(lanes / width) {
            let here = column + comptime!(i * width);
            let inside = row < rows.rows && here < rows.columns;
            let index = rows.base + row * rows.stride + here;
            let values = source[select(inside, index, rows.base) / width];
            #[unroll]
            for j in 0..width {
                let value = select(inside, values.extract(j), F::new(0.0));
                vector.insert(comptime!(i * width + j), E::cast_from(value));
            }
        }
        target[at + row * comptime!(tile.pitch()) + slot % across] = vector;
        slot += comptime!(geometry.units);
    }
}

/// The same, on its way when it returns, of rows that begin at multiples of 16 bytes. Rows that there are not repeat the
/// last one, columns that there are not are left as they are.
#[cube]
pub(super) fn request<F: Float, L: Size, V: Size>(
    source: &Tensor<Vector<F, L>>,
    rows: &Rows,
    target: &mut Shared<[Vector<F, V>]>,
    at: usize,
    #[comptime] tile: Tile,
    #[comptime] geometry: Geometry,
) {
    let across = comptime!(tile.columns / tile.lanes);
    let lanes = comptime!(tile.lanes);
    let vectors = comptime!(tile.rows * across);
    #[unroll]
    for i in 0..comptime!(vectors.div_ceil(geometry.units)) {
        let slot = UNIT_POS as usize + comptime!(i * geometry.units);
        let row = slot / across;
        let column = slot % across * lanes;
        let inside = select(row < rows.rows, row, rows.rows - 1);
        let from = (rows.base + inside * rows.stride + column) / lanes;
        let to = at + row * comptime!(tile.pitch()) + slot % across;
        if slot < vectors && column < rows.columns {
            copy_async(
                &source[from..from + 1],
                target[to..to + 1].with_vector_size_mut::<L>(),
                comptime!(lanes as u32),
            );
        }
    }
}

/// Fills shared memory with zeros, for the columns that [`request`] leaves.
#[cube]
pub(super) fn clear<E: Float, V: Size>(
    target: &mut Shared<[Vector<E, V>]>,
    #[comptime] vectors: usize,
    #[comptime] geometry: Geometry,
) {
    let mut slot = UNIT_POS as usize;
    while slot < vectors {
        target[slot] = Vector::<E, V>::new(E::new(0.0));
        slot += comptime!(geometry.units);
    }
}

/// Values of a vector of steps.
pub(super) const STEP_LANES: usize = 4;

/// Fills a row of steps with a chunk's, from position `start` on.
#[cube]
pub(super) fn stage_steps<T: Numeric>(
    source: &Tensor<Vector<T, Const<4>>>,
    row: usize,
    start: usize,
    target: &mut Shared<[T]>,
    at: usize,
    #[comptime] geometry: Geometry,
) {
    let mut slot = UNIT_POS as usize;
    while slot < comptime!(geometry.chunk / STEP_LANES) {
        let values = source[(row + start) / STEP_LANES + slot];
        #[unroll]
        for j in 0..STEP_LANES {
            target[at + slot * STEP_LANES + j] = values.extract(j);
        }
        slot += comptime!(geometry.units);
    }
}

/// The same, on its way when it returns.
#[cube]
pub(super) fn request_steps<T: Numeric>(
    source: &Tensor<Vector<T, Const<4>>>,
    row: usize,
    start: usize,
    target: &mut Shared<[Vector<T, Const<4>>]>,
    at: usize,
    #[comptime] geometry: Geometry,
) {
    let slot = UNIT_POS as usize;
    if slot < comptime!(geometry.chunk / STEP_LANES) {
        let from = (row + start) / STEP_LANES + slot;
        let to = at / STEP_LANES + slot;
        copy_async(
            &source[from..from + 1],
            &mut target[to..to + 1],
            comptime!(STEP_LANES as u32),
        );
    }
}

/// Where a sum of the states lies in a tensor of states, `[.., headdim, d_state]`, and whether there is such a state.
#[cube]
pub(super) fn state_index(
    base: usize,
    spot: &Spot,
    place: &Place,
    #[comptime] geometry: Geometry,
) -> (usize, bool) {
    let channel = place.channel + spot.column;
    let inside = spot.owned
        && channel < comptime!(geometry.headdim)
        && spot.row < comptime!(geometry.d_state);
    (
        base + channel * comptime!(geometry.d_state) + spot.row,
        inside,
    )
}

/// The weight of a head's skip; zero where there is none, or where every channel has its own.
#[cube]
pub(super) fn head_skip(
    d: ComptimeOption<&Tensor<f32>>, // [nheads] or [nheads, headdim]
    place: &Place,
    #[comptime] geometry: Geometry,
) -> f32 {
    let mut weight = 0.0f32.runtime();
    #[comptime]
    if let ComptimeOption::Some(d) = d {
        if comptime!(!geometry.skips_channels) {
            weight = d[place.head];
        }
    }
    weight
}

/// The weight of a channel's skip; of the last channel where there is no such channel.
#[cube]
pub(super) fn channel_skip(
    d: ComptimeOption<&Tensor<f32>>, // [nheads] or [nheads, headdim]
    head_skip: f32,
    place: &Place,
    channel: usize,
    #[comptime] geometry: Geometry,
) -> f32 {
    let headdim = comptime!(geometry.headdim);
    let mut weight = head_skip;
    #[comptime]
    if let ComptimeOption::Some(d) = d {
        if comptime!(geometry.skips_channels) {
            weight = d[place.head * headdim + select(channel < headdim, channel, headdim - 1)];
        }
    }
    weight
}
