//! How the states of Mamba-2 lie in memory between two steps: as f32, or beside matrices of halves as the upper 24 bits of
//! f32, of which a step of many sequences moves a quarter less. A state is within `2^-17` of itself then, a matrix within
//! `2^-9` at best; arithmetic is f32.
//!
//! Packed, 16 states of a row are 12 words: the first 12 in the upper bits of a word each, the three bytes of each of the
//! others in the lowest of three. The words are three vectors, and the first vectors of a row come before its second.

use cubecl::prelude::*;

use crate::tensors::{address_type, scratch};

/// States that are packed together, and their words.
const BLOCK: usize = 16;
const WORDS: usize = 12;

/// Words of a vector where rows are whole vectors.
const VECTOR: usize = 4;

const UNITS: u32 = 128;

/// The form of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Store {
    d_state: usize,
    pub packed: bool,
    /// Words of a vector.
    pub lanes: usize,
}

impl Store {
    /// Beside matrices of type `dtype`.
    pub fn new(d_state: usize, dtype: ElemType) -> Self {
        Self {
            d_state,
            packed: dtype.size() == 2 && d_state.is_multiple_of(BLOCK),
            lanes: match d_state.is_multiple_of(VECTOR) {
                true => VECTOR,
                false => 1,
            },
        }
    }

    /// States that a unit has at once.
    pub fn block(&self) -> usize {
        if self.packed { BLOCK } else { self.lanes }
    }

    /// Vectors of a block.
    pub fn loads(&self) -> usize {
        if self.packed { WORDS / self.lanes } else { 1 }
    }

    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.d_state / self.block()
    }

    /// Words of so many states.
    pub fn words(&self, states: usize) -> usize {
        if self.packed {
            states / BLOCK * WORDS
        } else {
            states
        }
    }

    /// f32 states in this form.
    pub fn keep(&self, client: &Client, states: TensorBinding) -> TensorBinding {
        if !self.packed {
            return states;
        }
        let words = scratch(client, &[self.words(states.size())]);
        self.keep_in(client, states, &words);
        words
    }

    /// Writes f32 states in this form, which is packed.
    pub fn keep_in(&self, client: &Client, states: TensorBinding, words: &TensorBinding) {
        self.convert(client, states, words.clone(), true);
    }

    /// A copy as f32 of so many states in this form, which is packed.
    pub fn restore(
        &self,
        client: &Client,
        words: &TensorBinding,
        shape: &[usize],
    ) -> TensorBinding {
        let states = scratch(client, shape);
        self.convert(client, states.clone(), words.clone(), false);
        states
    }

    fn convert(&self, client: &Client, states: TensorBinding, words: TensorBinding, pack: bool) {
        let units = CubeDim::new_1d(UNITS);
        // SAFETY: every index lies inside its tensor: both hold as many blocks.
        unsafe {
            convert_kernel::launch_unchecked(
                client,
                cubecl::calculate_cube_count_elemwise(client, states.size() / BLOCK, units),
                units,
                address_type([&states]),
                VECTOR,
                states.into_tensor_arg(),
                words.into_tensor_arg(),
                *self,
                pack,
            );
        }
    }
}

/// Packs states, or takes them out. A unit owns a block.
#[cube(launch_unchecked, address_type = "dynamic")]
fn convert_kernel<S: Size>(
    states: &mut Tensor<f32>,           // [rows, d_state]
    words: &mut Tensor<Vector<u32, S>>, // [rows, loads, blocks]
    #[comptime] store: Store,
    #[comptime] pack: bool,
) {
    if ABSOLUTE_POS >= states.len() / BLOCK {
        terminate!();
    }
    let blocks = comptime!(store.blocks());
    let first = ABSOLUTE_POS / blocks * comptime!(store.blocks() * store.loads());
    let place = first + ABSOLUTE_POS % blocks;
    if pack {
        let mut values = Array::<f32>::new(BLOCK);
        #[unroll]
        for j in 0..BLOCK {
            values[j] = states[ABSOLUTE_POS * BLOCK + j];
        }
        let vectors = to_words::<S>(&values, store);
        #[unroll]
        for v in 0..comptime!(store.loads()) {
            words[place + comptime!(v * store.blocks())] = vectors[v];
        }
    } else {
        let mut vectors = Array::<Vector<u32, S>>::new(comptime!(store.loads()));
        #[unroll]
        for v in 0..comptime!(store.loads()) {
            vectors[v] = words[place + comptime!(v * store.blocks())];
        }
        let values = from_words::<S>(&vectors, 0usize, store);
        #[unroll]
        for j in 0..BLOCK {
            states[ABSOLUTE_POS * BLOCK + j] = values[j];
        }
    }
}

/// The states of the block whose vectors begin at `at`.
#[cube]
pub(super) fn from_words<S: Size>(
    vectors: &Array<Vector<u32, S>>,
    #[comptime] at: usize,
    #[comptime] store: Store,
) -> Array<f32> {
    let mut values = Array::<f32>::new(comptime!(store.block()));
    if comptime!(store.packed) {
        #[unroll]
        for j in 0..WORDS {
            let word = word::<S>(vectors, at, j, store);
            values[j] = f32::reinterpret(word & 0xffff_ff00u32);
        }
        #[unroll]
        for i in 0..comptime!(BLOCK - WORDS) {
            let low = word::<S>(vectors, at, comptime!(3 * i), store) & 0xffu32;
            let middle = word::<S>(vectors, at, comptime!(3 * i + 1), store) & 0xffu32;
            let high = word::<S>(vectors, at, comptime!(3 * i + 2), store) & 0xffu32;
            let bits = (low << 8u32) | (middle << 16u32) | (high << 24u32);
            values[comptime!(WORDS + i)] = f32::reinterpret(bits);
        }
    } else {
        #[unroll]
        for j in 0..comptime!(store.lanes) {
            values[j] = f32::reinterpret(vectors[at].extract(j));
        }
    }
    values
}

#[cube]
fn word<S: Size>(
    vectors: &Array<Vector<u32, S>>,
    #[comptime] at: usize,
    #[comptime] j: usize,
    #[comptime] store: Store,
) -> u32 {
    vectors[comptime!(at + j / store.lanes)].extract(comptime!(j % store.lanes))
}

/// The vectors of a block.
#[cube]
pub(super) fn to_words<S: Size>(
    values: &Array<f32>,
    #[comptime] store: Store,
) -> Array<Vector<u32, S>> {
    let mut vectors = Array::<Vector<u32, S>>::new(comptime!(store.loads()));
    #[unroll]
    for v in 0..comptime!(store.loads()) {
        let mut vector = Vector::<u32, S>::empty();
        #[unroll]
        for lane in 0..comptime!(store.lanes) {
            let j = comptime!(v * store.lanes + lane);
            if comptime!(store.packed) {
                let other = rounded(values[comptime!(WORDS + j / 3)]);
                let byte = (other >> comptime!(8 * (j as u32 % 3 + 1))) & 0xffu32;
                vector.insert(lane, (rounded(values[j]) & 0xffff_ff00u32) | byte);
            } else {
                vector.insert(lane, u32::reinterpret(values[j]));
            }
        }
        vectors[v] = vector;
    }
    vectors
}

/// The bits, of which the upper 24 are the nearest. What is no number stays none.
#[cube]
fn rounded(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let special = (bits & 0x7f80_0000u32) == 0x7f80_0000u32;
    select(special, bits, bits + 0x80u32)
}
