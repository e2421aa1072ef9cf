use super::Numbers;
use super::ops::{Conv, Heads, Ssd};

/// Inputs of Mamba-2's recurrence, with time steps from 0.001 to 0.1. Shapes are those of
/// [`mamba_core::ops::Ssd`], values in row-major order.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // documented there
pub struct SsdData {
    pub x: Vec<f32>,
    pub dt: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub c: Vec<f32>,
    pub d: Vec<f32>,
    pub dt_bias: Vec<f32>,
    /// For a step.
    pub initial_state: Option<Vec<f32>>,
}

impl Ssd {
    /// Reproducible inputs.
    pub fn data(&self) -> SsdData {
        let Self {
            batch,
            seq_len,
            nheads,
            headdim,
            d_state,
        } = *self;
        let positions = batch * seq_len;
        let mut numbers = Numbers::new(17);
        SsdData {
            x: numbers.vector(positions * nheads * headdim, -1.0, 1.0),
            dt: numbers.vector(positions * nheads, -0.5, 0.5),
            a: numbers.vector(nheads, -16.0, -1.0),
            b: numbers.vector(positions * d_state, -1.0, 1.0),
            c: numbers.vector(positions * d_state, -1.0, 1.0),
            d: numbers.vector(nheads, 0.5, 1.5),
            dt_bias: numbers.vector(nheads, -6.0, -2.5),
            initial_state: (seq_len == 1)
                .then(|| numbers.vector(batch * nheads * headdim * d_state, -1.0, 1.0)),
        }
    }
}

impl Conv {
    /// Reproducible sequence, filters and bias.
    pub fn data(&self) -> [Vec<f32>; 3] {
        let Self {
            batch,
            seq_len,
            channels,
            width,
        } = *self;
        let mut numbers = Numbers::new(19);
        [batch * seq_len * channels, channels * width, channels]
            .map(|count| numbers.vector(count, -1.0, 1.0))
    }
}

impl Heads {
    /// Reproducible queries, keys and values, `[batch, num_heads, seq_len, head_dim]` each.
    pub fn data(&self) -> [Vec<f32>; 3] {
        let count = self.batch * self.num_heads * self.seq_len * self.head_dim;
        let mut numbers = Numbers::new(23);
        [(); 3].map(|()| numbers.vector(count, -2.0, 2.0))
    }
}
