//! What a task keeps in memory.

use super::*;

/// What one lane block carries from chunk to chunk; one vector a state where it is a `Vec`.
pub struct Block {
    pub channels: Range<usize>,
    pub a: Vec<Lanes>,
    pub scaled_a: Vec<Lanes>,
    /// Gradient of the state after the chunk at hand.
    pub grad_state: Vec<Lanes>,
    pub grad_a: Vec<Lanes>,
    pub grad_d: Lanes,
    pub grad_bias: Lanes,
}

/// What the passes over the states need of one position of one lane block.
///
/// Together in memory what is used together: arrays a multiple of 4 KiB apart would make a load
/// look, in its low address bits, like the store before it, and wait for that.
#[derive(Clone, Copy)]
pub struct Position {
    pub dt: Lanes,
    pub dt_u: Lanes,
    /// Gradient of the output before the gate.
    pub grad: Lanes,
    /// Output before the gate, without the direct path; only if there is a gate.
    pub y: Lanes,
    pub grad_dt: Lanes,
    pub grad_dt_u: Lanes,
}

/// What only the end needs of it: apart, so that the passes do not carry it through the first-level
/// cache.
#[derive(Clone, Copy)]
pub struct Slopes {
    /// Derivative of `dt` by `delta`.
    pub dt: Lanes,
    /// Derivative of the loss by `z`, but for the factor of the output before the gate.
    pub gate: Lanes,
}

/// One chunk of one lane block.
#[derive(Clone)]
pub struct Chunk {
    pub positions: [Position; CHECKPOINT_INTERVAL],
    pub slopes: [Slopes; CHECKPOINT_INTERVAL],
}

impl Chunk {
    pub const ZERO: Self = Self {
        positions: [Position {
            dt: Lanes::ZERO,
            dt_u: Lanes::ZERO,
            grad: Lanes::ZERO,
            y: Lanes::ZERO,
            grad_dt: Lanes::ZERO,
            grad_dt_u: Lanes::ZERO,
        }; CHECKPOINT_INTERVAL],
        slopes: [Slopes {
            dt: Lanes::ZERO,
            gate: Lanes::ZERO,
        }; CHECKPOINT_INTERVAL],
    };
}

/// One state at one position.
#[derive(Clone, Copy)]
pub struct Cell {
    pub decay: Lanes,
    /// The state before the position.
    pub before: Lanes,
    /// Gradients of `b` and `c`, summed over the blocks but not yet over the lanes.
    pub grad_b: Lanes,
    pub grad_c: Lanes,
}

/// A group of states at one position.
///
/// `b` and `c` are copied here once for all blocks: in the inner loops, finding them in their
/// tensors and checking bounds would take as many instructions as a third of the arithmetic.
#[derive(Clone, Copy)]
pub struct Step {
    pub b: [f32; GROUP],
    pub c: [f32; GROUP],
    pub cells: [Cell; GROUP],
}

impl Step {
    pub const ZERO: Self = Self {
        b: [0.0; GROUP],
        c: [0.0; GROUP],
        cells: [Cell {
            decay: Lanes::ZERO,
            before: Lanes::ZERO,
            grad_b: Lanes::ZERO,
            grad_c: Lanes::ZERO,
        }; GROUP],
    };
}

/// A group of states in one chunk.
pub type Group = [Step; CHECKPOINT_INTERVAL];

/// Where a chunk lies.
pub struct Place<'a> {
    pub rows: &'a Range<usize>,
    pub resets: &'a [bool; CHECKPOINT_INTERVAL],
    /// Row of the checkpoints that holds the chunk's first state.
    pub checkpoint: usize,
}
