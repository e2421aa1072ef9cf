//! What is measured: sizes and reproducible inputs, free of any engine.

pub mod flops;
mod models;
mod op_data;
mod ops;
mod scan;
mod tutorial;

pub use models::{Family, Model, Size};
pub use op_data::SsdData;
pub use ops::{Conv, Heads, Op, Ssd};
pub use scan::{Scan, ScanData};
pub use tutorial::Tutorial;

/// Reproducible numbers (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Between `low` and `high`.
    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (self.next() >> 40) as f32 / (1u64 << 24) as f32 * (high - low)
    }

    fn vector(&mut self, len: usize, low: f32, high: f32) -> Vec<f32> {
        (0..len).map(|_| self.between(low, high)).collect()
    }
}
