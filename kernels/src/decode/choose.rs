//! The first and the last kernels of a step: a token becomes a vector, logits become a token.

use cubecl::prelude::*;

use crate::tensors::cubes;

/// Units of a cube.
const UNITS: usize = 128;

/// Logits that a cube looks at, and then one of them.
const TILE: usize = 2 * UNITS;

/// Into which the units' sums are put together.
const GROUPS: usize = 8;

/// Below every logit, and finite, since WGSL has no infinity.
const LEAST: f32 = -1e30;

/// What stands for a token where the logits allow none.
pub(super) const NO_TOKEN: u32 = u32::MAX;

/// Most entries of a vocabulary: the tiles' sums lie in shared memory.
pub(super) const MAX_VOCABULARY: usize = 2048 * TILE;

pub(super) fn tiles(vocab_size: usize) -> usize {
    vocab_size.div_ceil(TILE)
}

/// Writes the rows of an embedding into vectors that may be padded.
pub(super) fn embed(
    client: &Client,
    table: TensorBinding,
    tokens: TensorBinding,
    x: TensorBinding,
) {
    let units = CubeDim::new_1d(UNITS as u32);
    // SAFETY: every index lies inside its tensor, whatever the tokens are.
    unsafe {
        embed_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, x.size(), units),
            units,
            crate::tensors::address_type([&table]),
            table.into_tensor_arg(),
            tokens.into_tensor_arg(),
            x.into_tensor_arg(),
        );
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn embed_kernel(
    table: &Tensor<f32>,  // [vocabulary, d_model]
    tokens: &Tensor<u32>, // [batch]
    x: &mut Tensor<f32>,  // [batch, d_model or more]
) {
    if ABSOLUTE_POS >= x.len() {
        terminate!();
    }
    let padded = x.shape(1);
    let column = ABSOLUTE_POS % padded;
    let mut token = tokens[ABSOLUTE_POS / padded] as usize;
    if token >= table.shape(0) {
        token = 0usize.runtime();
    }
    let mut value = 0.0f32;
    if column < table.shape(1) {
        value = table[token * table.shape(1) + column];
    }
    x[ABSOLUTE_POS] = value;
}

/// Scratch of the choice, and what it reads besides the logits.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    /// The largest logit of each tile, `[batch, tiles]`.
    pub most: TensorBinding,
    /// The sum of the weights of each tile, relative to its largest, as shaped.
    pub sums: TensorBinding,
    /// A number in `[0, 1)` a sequence.
    pub uniform: TensorBinding,
    /// Divides the logits; the most likely token where it is 0.
    pub temperature: f32,
}

/// Chooses a token of each sequence by its logits.
pub(super) fn choose(
    client: &Client,
    logits: TensorBinding,
    chooser: Chooser,
    tokens: TensorBinding,
) {
    let [batch, vocab_size] = [logits.shape[0], logits.shape[1]];
    let count = tiles(vocab_size);
    let scale = chooser.temperature.recip();
    // Of a temperature that has no reciprocal: what it tends to.
    let greedy = !scale.is_finite();
    let scale = if greedy { 1.0 } else { scale };
    let (cube_count, cube) = cubes(client, batch * count, UNITS);
    // SAFETY: every index lies inside its tensor; all loops end.
    unsafe {
        tiles_kernel::launch_unchecked(
            client,
            cube_count,
            cube,
            logits.clone().into_tensor_arg(),
            chooser.most.clone().into_tensor_arg(),
            chooser.sums.clone().into_tensor_arg(),
            scale,
        );
        let (cube_count, cube) = cubes(client, batch, UNITS);
        choose_kernel::launch_unchecked(
            client,
            cube_count,
            cube,
            logits.into_tensor_arg(),
            chooser.most.into_tensor_arg(),
            chooser.sums.into_tensor_arg(),
            chooser.uniform.into_tensor_arg(),
            tokens.into_tensor_arg(),
            scale,
            count,
            greedy,
        );
    }
}

/// The largest logit of a tile, and the sum of `exp((logit - largest) / temperature)`; the sum is -1 where a
/// logit is not a number or positive infinity.
#[cube(launch_unchecked)]
fn tiles_kernel(
    logits: &Tensor<f32>,   // [batch, vocabulary]
    most: &mut Tensor<f32>, // [batch, tiles]
    sums: &mut Tensor<f32>, // [batch, tiles]
    scale: f32,
) {
    if CUBE_POS >= most.len() {
        terminate!();
    }
    let vocab_size = logits.shape(1);
    let tile = CUBE_POS % most.shape(1);
    let first = CUBE_POS / most.shape(1) * vocab_size;
    let unit = UNIT_POS as usize;
    let mut values = Array::<f32>::new(comptime!(TILE / UNITS));
    let mut largest = LEAST.runtime();
    let mut wrong = 0.0f32;
    #[unroll]
    for k in 0..comptime!(TILE / UNITS) {
        let entry = tile * TILE + comptime!(k * UNITS) + unit;
        let mut value = LEAST.runtime();
        if entry < vocab_size {
            value = logits[first + entry];
            wrong = select(is_wrong(value), 1.0f32, wrong);
        }
        values[k] = value;
        largest = largest.max(value);
    }
    let largest = over_cube(largest, false);
    let wrong = over_cube(wrong, false);
    let mut sum = 0.0f32;
    #[unroll]
    for k in 0..comptime!(TILE / UNITS) {
        sum += ((values[k] - largest) * scale).exp();
    }
    let sum = over_cube(sum, true);
    if UNIT_POS == 0 {
        most[CUBE_POS] = largest;
        sums[CUBE_POS] = select(wrong > 0.0f32, -1.0f32, sum);
    }
}

/// The sum or the largest of what the units of a cube have, in one order. All of them take part.
#[cube]
fn over_cube(value: f32, #[comptime] sum: bool) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(UNITS.ilog2() as usize + 1) {
        let half = comptime!(UNITS >> step);
        if unit < half {
            let (ours, theirs) = (shared[unit], shared[unit + half]);
            shared[unit] = if sum { ours + theirs } else { ours.max(theirs) };
        }
        sync_cube();
    }
    shared[0]
}

/// Not a number, or positive infinity: by its bits, since a compiler may take NaN for impossible.
#[cube]
fn is_wrong(value: f32) -> bool {
    let bits = u32::reinterpret(value);
    let special = (bits & 0x7f80_0000u32) == 0x7f80_0000u32;
    special && bits != 0xff80_0000u32
}

/// A cube a sequence: the tile at the uniform number of all weights, then the token within it.
#[cube(launch_unchecked)]
fn choose_kernel(
    logits: &Tensor<f32>,     // [batch, vocabulary]
    most: &Tensor<f32>,       // [batch, tiles]
    sums: &Tensor<f32>,       // [batch, tiles]
    uniform: &Tensor<f32>,    // [batch]
    tokens: &mut Tensor<u32>, // [batch]
    scale: f32,
    #[comptime] tiles: usize,
    #[comptime] greedy: bool,
) {
    let sequence = CUBE_POS;
    if sequence >= tokens.len() {
        terminate!();
    }
    let vocab_size = logits.shape(1);
    let unit = UNIT_POS as usize;
    let first_tile = sequence * tiles;

    let mut largest = LEAST.runtime();
    let mut tile = unit;
    while tile < tiles {
        largest = largest.max(most[first_tile + tile]);
        tile += UNITS;
    }
    let largest = over_cube(largest, false);

    // What each tile weighs; of a greedy choice, whether it holds the largest. Below zero: no number.
    let mut weights =
        Shared::<[f32]>::new_slice(comptime!(if tiles > TILE { tiles } else { TILE }));
    let mut tile = unit;
    while tile < tiles {
        let sum = sums[first_tile + tile];
        let weight = weigh(most[first_tile + tile], largest, scale, greedy);
        weights[tile] = select(sum < 0.0f32, -1.0f32, sum * weight);
        tile += UNITS;
    }
    sync_cube();
    let mut ladder = Shared::<[f32]>::new_slice(comptime!(UNITS + GROUPS));
    let mut wrong = Shared::<[f32]>::new_slice(comptime!(UNITS + GROUPS));
    climb(&weights, &mut ladder, &mut wrong, tiles);
    let mut total = 0.0f32;
    let mut mistakes = 0.0f32;
    #[unroll]
    for group in 0..GROUPS {
        total += ladder[comptime!(UNITS + group)];
        mistakes += wrong[comptime!(UNITS + group)];
    }
    // The place, and what is left of the number within it.
    let mut found = Shared::<[f32]>::new_slice(2usize);
    descend(
        &weights,
        &ladder,
        &mut found,
        uniform[sequence] * total,
        tiles,
        greedy,
    );
    let tile = u32::cast_from(found[0]) as usize;
    let rest = found[1];

    #[unroll]
    for k in 0..comptime!(TILE / UNITS) {
        let within = comptime!(k * UNITS) + unit;
        let entry = tile * TILE + within;
        let mut weight = 0.0f32;
        if entry < vocab_size {
            weight = weigh(
                logits[sequence * vocab_size + entry],
                largest,
                scale,
                greedy,
            );
        }
        weights[within] = weight;
    }
    sync_cube();
    climb(&weights, &mut ladder, &mut wrong, TILE);
    descend(&weights, &ladder, &mut found, rest, TILE, greedy);
    if UNIT_POS == 0 {
        let well = mistakes == 0.0f32 && largest > comptime!(0.5 * LEAST);
        let token = (tile * TILE) as u32 + u32::cast_from(found[0]);
        tokens[sequence] = select(well, token, NO_TOKEN);
    }
}

/// Sums of weights: of a run of `count / UNITS` each, then of `UNITS / GROUPS` such runs each. What is below zero
/// is counted instead.
#[cube]
fn climb(
    weights: &Shared<[f32]>,
    ladder: &mut Shared<[f32]>,
    wrong: &mut Shared<[f32]>,
    #[comptime] count: usize,
) {
    let unit = UNIT_POS as usize;
    let run = comptime!(count.div_ceil(UNITS));
    let mut sum = 0.0f32;
    let mut mistakes = 0.0f32;
    for k in 0..run {
        let place = unit * run + k;
        if place < count {
            let weight = weights[place];
            sum += weight.max(0.0f32);
            mistakes += select(weight < 0.0f32, 1.0f32, 0.0f32);
        }
    }
    ladder[unit] = sum;
    wrong[unit] = mistakes;
    sync_cube();
    if unit < GROUPS {
        let mut sum = 0.0f32;
        let mut mistakes = 0.0f32;
        #[unroll]
        for k in 0..comptime!(UNITS / GROUPS) {
            sum += ladder[unit * comptime!(UNITS / GROUPS) + k];
            mistakes += wrong[unit * comptime!(UNITS / GROUPS) + k];
        }
        ladder[UNITS + unit] = sum;
        wrong[UNITS + unit] = mistakes;
    }
    sync_cube();
}

/// The place at `rest` of the sum of weights, and what is then left: down from the sums of [`climb`], by one unit.
#[cube]
fn descend(
    weights: &Shared<[f32]>,
    ladder: &Shared<[f32]>,
    found: &mut Shared<[f32]>,
    rest: f32,
    #[comptime] count: usize,
    #[comptime] greedy: bool,
) {
    if UNIT_POS == 0 {
        let run = comptime!(count.div_ceil(UNITS));
        let (group, rest) = walk(ladder, UNITS, GROUPS, rest, greedy);
        let first = group * comptime!(UNITS / GROUPS);
        let (unit, rest) = walk(ladder, first, comptime!(UNITS / GROUPS), rest, greedy);
        let first = (first + unit) * run;
        let mut end = first + run;
        if end > count {
            end = count;
        }
        let (place, rest) = walk(weights, first, end - first, rest, greedy);
        found[0] = f32::cast_from((first + place) as u32);
        found[1] = rest;
    }
    sync_cube();
}

/// The first of `count` weights that `rest` does not reach past, or the last positive one, since rounding may leave a
/// rest behind it; and what is left there.
#[cube]
fn walk(
    weights: &Shared<[f32]>,
    first: usize,
    count: usize,
    rest: f32,
    #[comptime] greedy: bool,
) -> (usize, f32) {
    let mut left = rest;
    let mut place = 0usize.runtime();
    let mut before = rest;
    let mut over = false.runtime();
    for k in 0..count {
        let weight = weights[first + k];
        if !over && weight > 0.0f32 {
            place = k;
            before = left;
            left -= weight;
            over = greedy || left < 0.0f32;
        }
    }
    (place, before)
}

/// The weight of a logit relative to the largest; of a greedy choice, 1 for the largest and 0 for others.
#[cube]
fn weigh(logit: f32, largest: f32, scale: f32, #[comptime] greedy: bool) -> f32 {
    if greedy {
        select(logit >= largest, 1.0f32, 0.0f32)
    } else {
        ((logit - largest) * scale).exp()
    }
}
