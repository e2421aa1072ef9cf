//! What the kernels share: where a unit works, and how a tile reaches shared memory.

use cubecl::prelude::*;

use super::geometry::Geometry;
use crate::bits::opaque_zero;

/// Where a unit works. Cubes lie over blocks of channels, sequences and chunks of time.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub batch: usize,
    pub chunk: usize,
    /// The channel within the cube.
    pub lane: usize,
    /// Which of the channel's states the unit owns.
    pub group: usize,
    /// The channel; the last one where the cube reaches beyond it, so that loads stay inside.
    pub column: usize,
    /// Whether the channel exists.
    pub owned: bool,
    /// First position of the chunk.
    pub begin: usize,
    /// The position after the chunk's last.
    pub end: usize,
    /// Zero, for states that begin: `NaN 0` is NaN.
    pub zero: f32,
}

#[cube]
pub(super) fn place(
    seq_len: usize,
    d_inner: usize,
    chunk: usize,
    chunk_len: u32,
    #[comptime] geometry: Geometry,
) -> Place {
    let lane = UNIT_POS_X as usize;
    let channel = CUBE_POS_X as usize * comptime!(geometry.channels) + lane;
    let begin = chunk * chunk_len as usize;
    let stop = begin + chunk_len as usize;
    Place {
        batch: CUBE_POS_Y as usize,
        chunk,
        lane,
        group: UNIT_POS_Y as usize,
        column: select(channel < d_inner, channel, d_inner - 1),
        owned: channel < d_inner,
        begin,
        end: select(stop < seq_len, stop, seq_len),
        zero: opaque_zero(chunk_len),
    }
}

/// The rows `group, group + groups, ..` of a tile, in the unit's channel. A row beyond the chunk
/// repeats the last one: whoever stages it masks it. Values stay in the tensor's type until they are used: a
/// conversion would wait for its load.
#[cube]
pub(super) fn load_rows<F: Float>(
    source: &Tensor<F>, // [batch, seq_len, d_inner]
    rows: &mut Array<F>,
    place: &Place,
    start: usize,
    #[comptime] geometry: Geometry,
) {
    let base = place.batch * source.stride(0) + place.column;
    let stride = source.stride(1);
    #[unroll]
    for i in 0..comptime!(geometry.rows()) {
        let t = start + place.group + comptime!(i * geometry.groups);
        let inside = select(t < place.end, t, place.end - 1);
        rows[i] = source[base + inside * stride];
    }
}

/// The unit's share of a tile of `b` or `c`, zero beyond the chunk and beyond `d_state`.
#[cube]
pub(super) fn load_vectors<F: Float, V: Size>(
    source: &Tensor<F>, // [batch, seq_len, d_state]
    vectors: &mut Array<Vector<F, V>>,
    place: &Place,
    start: usize,
    #[comptime] geometry: Geometry,
) {
    #[unroll]
    for i in 0..comptime!(geometry.vectors_per_unit()) {
        let slot = UNIT_POS as usize + comptime!(i * geometry.units());
        let mut vector = Vector::<F, V>::new(F::new(0.0));
        if comptime!((i + 1) * geometry.units() <= geometry.vectors()) {
            vector = load_vector::<F, V>(source, slot, place, start, geometry);
        } else if slot < comptime!(geometry.vectors()) {
            vector = load_vector::<F, V>(source, slot, place, start, geometry);
        }
        vectors[i] = vector;
    }
}

/// Vector `slot` of a tile `[tile, groups]`.
#[cube]
fn load_vector<F: Float, V: Size>(
    source: &Tensor<F>, // [batch, seq_len, d_state]
    slot: usize,
    place: &Place,
    start: usize,
    #[comptime] geometry: Geometry,
) -> Vector<F, V> {
    let d_state = comptime!(geometry.d_state);
    let t = start + slot / comptime!(geometry.groups);
    let first = (slot % comptime!(geometry.groups)) * comptime!(geometry.width);
    let inside = select(t < place.end, t, place.end - 1);
    let row = place.batch * source.stride(0) + inside * source.stride(1);
    let mut vector = Vector::<F, V>::empty();
    #[unroll]
    for j in 0..comptime!(geometry.width) {
        let n = first + j;
        let real = t < place.end && n < d_state;
        let n = select(n < d_state, n, d_state - 1);
        vector.insert(j, select(real, source[row + n], F::new(0.0)));
    }
    vector
}

/// Puts what [`load_vectors`] loaded where all units read it.
#[cube]
pub(super) fn stage_vectors<F: Float, V: Size>(
    vectors: &Array<Vector<F, V>>,
    staged: &mut Shared<[Vector<f32, V>]>, // [tile, groups]
    #[comptime] geometry: Geometry,
) {
    #[unroll]
    for i in 0..comptime!(geometry.vectors_per_unit()) {
        let slot = UNIT_POS as usize + comptime!(i * geometry.units());
        if slot < comptime!(geometry.vectors()) {
            staged[slot] = Vector::cast_from(vectors[i]);
        }
    }
}

/// Marks the positions of a tile before which the state is zeroed.
#[cube]
pub(super) fn stage_resets<I: Int>(
    seq_idx: &Tensor<I>, // [batch, seq_len]
    resets: &mut Shared<[u32]>,
    place: &Place,
    start: usize,
    #[comptime] geometry: Geometry,
) {
    let mut row = UNIT_POS as usize;
    while row < comptime!(geometry.tile) {
        let t = start + row;
        let inside = select(t < place.end, t, place.end - 1);
        let before = select(inside > 0, inside, 1) - 1;
        let base = place.batch * seq_idx.stride(0);
        let changes = seq_idx[base + inside] != seq_idx[base + before];
        resets[row] = select(changes && t < place.end, 1u32, 0u32);
        row += comptime!(geometry.units());
    }
}

/// The unit's states of a channel in a tensor whose channels and states lie at the given strides;
/// zero beyond `d_state`.
#[cube]
pub(super) fn load_state<V: Size>(
    source: &Tensor<f32>,
    base: usize,
    channel_stride: usize,
    state_stride: usize,
    place: &Place,
    #[comptime] geometry: Geometry,
) -> Vector<f32, V> {
    let d_state = comptime!(geometry.d_state);
    let row = base + place.column * channel_stride;
    let mut state = Vector::<f32, V>::empty();
    #[unroll]
    for j in 0..comptime!(geometry.width) {
        let n = place.group * comptime!(geometry.width) + j;
        let inside = select(n < d_state, n, d_state - 1);
        let value = source[row + inside * state_stride];
        state.insert(j, select(n < d_state, value, 0.0f32));
    }
    state
}

/// The counterpart of [`load_state`].
#[cube]
pub(super) fn store_state<V: Size>(
    target: &mut Tensor<f32>,
    state: Vector<f32, V>,
    base: usize,
    channel_stride: usize,
    state_stride: usize,
    place: &Place,
    #[comptime] geometry: Geometry,
) {
    let row = base + place.column * channel_stride;
    #[unroll]
    for j in 0..comptime!(geometry.width) {
        let n = place.group * comptime!(geometry.width) + j;
        if place.owned && n < comptime!(geometry.d_state) {
            target[row + n * state_stride] = state.extract(j);
        }
    }
}

/// Sum of a vector's components.
#[cube]
pub(super) fn component_sum<V: Size>(vector: Vector<f32, V>, #[comptime] width: usize) -> f32 {
    let mut total = vector.extract(0usize);
    #[unroll]
    for j in 1..width {
        total += vector.extract(j);
    }
    total
}

/// The value of a channel in an optional vector, zero if it was left out.
#[cube]
pub(super) fn channel_value(vector: ComptimeOption<&Tensor<f32>>, column: usize) -> f32 {
    #[comptime]
    match vector {
        ComptimeOption::Some(vector) => vector[column],
        ComptimeOption::None => 0.0f32.runtime(),
    }
}
