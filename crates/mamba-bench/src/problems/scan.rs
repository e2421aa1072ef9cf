use serde::Serialize;

use super::Numbers;

/// Sizes of a selective scan.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Scan {
    /// Sequences.
    pub batch: usize,
    /// Positions of a sequence.
    pub seq_len: usize,
    /// Channels.
    pub d_inner: usize,
    /// States of a channel.
    pub d_state: usize,
}

impl Scan {
    /// The size that is timed.
    pub const LARGE: Self = Self {
        batch: 8,
        seq_len: 2048,
        d_inner: 256,
        d_state: 16,
    };
    /// The size that proofs run at: neither chunks, lanes nor groups of states come out even.
    pub const SMALL: Self = Self {
        batch: 2,
        seq_len: 70,
        d_inner: 40,
        d_state: 6,
    };

    /// Values of `u`.
    pub fn positions(&self) -> usize {
        self.batch * self.seq_len * self.d_inner
    }

    /// A state before the first position, `[batch, d_inner, d_state]`.
    pub fn state(&self) -> Vec<f32> {
        Numbers::new(13).vector(self.batch * self.d_inner * self.d_state, -1.0, 1.0)
    }

    /// Inputs as a trained mixer has them: time steps from 0.001 to 0.1, decays of 1 to `d_state`.
    pub fn data(&self) -> ScanData {
        let mut numbers = Numbers::new(11);
        let states = self.batch * self.seq_len * self.d_state;
        let a = (0..self.d_inner * self.d_state).map(|i| -((i % self.d_state + 1) as f32));
        ScanData {
            u: numbers.vector(self.positions(), -1.0, 1.0),
            delta: numbers.vector(self.positions(), -0.5, 0.5),
            a: a.collect(),
            b: numbers.vector(states, -1.0, 1.0),
            c: numbers.vector(states, -1.0, 1.0),
            d: numbers.vector(self.d_inner, 0.5, 1.5),
            z: numbers.vector(self.positions(), -2.0, 2.0),
            delta_bias: numbers.vector(self.d_inner, -6.0, -2.5),
            grad_y: numbers.vector(self.positions(), -1.0, 1.0),
        }
    }
}

/// Inputs of a selective scan with all that a Mamba-1 mixer gives it, and the gradient of its
/// output. Shapes are those of [`mamba_core::ops::SelectiveScan`], values in row-major order.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // documented there
pub struct ScanData {
    pub u: Vec<f32>,
    pub delta: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub c: Vec<f32>,
    pub d: Vec<f32>,
    pub z: Vec<f32>,
    pub delta_bias: Vec<f32>,
    /// Gradient of the loss by the output, `[batch, seq_len, d_inner]`.
    pub grad_y: Vec<f32>,
}
