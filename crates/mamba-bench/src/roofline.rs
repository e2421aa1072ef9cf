//! The least time that the selective scan's arithmetic takes on this machine.
//!
//! Counted are vector instructions of the arithmetic ports: products, sums, fused products with
//! sums, minima, range reduction and scaling of exponentials, estimates of reciprocals, blends.
//! Loads, stores, broadcasts, address arithmetic and the sums across lanes count nothing, and all
//! are taken to run as fast as a fused multiply-add does here on registers alone.
//!
//! The README of `mamba_core::ops::cpu` counts them one by one; here are its sums, without those over
//! lanes.

use std::hint::black_box;
use std::time::Instant;

use mamba_core::ops::cpu::simd::{Kernel, LANES, Vector, dispatch};
use rayon::prelude::*;

use crate::problems::Scan;

/// Instructions a state of a channel and position, forward and backward: the decay's exponential,
/// the recurrence, and in backward eight products and sums of the gradients.
const PER_STATE: [usize; 2] = [12, 20];

/// Instructions a channel and position, forward and backward: softplus, SiLU and what is left.
const PER_POSITION: [usize; 2] = [59, 75];

/// Arithmetic vector instructions of forward and backward, each on [`LANES`] values.
pub fn scan_instructions(scan: &Scan) -> f64 {
    let vectors = (scan.positions() / LANES) as f64;
    let states = PER_STATE.iter().sum::<usize>() * scan.d_state;
    vectors * (states + PER_POSITION.iter().sum::<usize>()) as f64
}

/// As many fused multiply-adds, on registers alone, as an op has arithmetic instructions: what its least
/// time is measured with, in turns with the op itself, as the clock of a core changes from minute to minute.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    instructions: f64,
    wide: bool,
}

impl Floor {
    /// Finds out which form of the loop is faster here.
    pub fn new(instructions: f64) -> Self {
        const ATTEMPTS: usize = 10;
        let best = |attempt: fn() -> f64| (0..ATTEMPTS).map(|_| attempt()).fold(0.0, f64::max);
        Self {
            instructions,
            wide: best(attempt::<CHAINS_WIDE>) > best(attempt::<CHAINS_NARROW>),
        }
    }

    /// Takes the least time of the instructions, shared out over all threads.
    pub fn run(&self) {
        if self.wide {
            share_out::<CHAINS_WIDE>(self.instructions);
        } else {
            share_out::<CHAINS_NARROW>(self.instructions);
        }
    }
}

/// Independent sums that hide the latency and, with two registers a vector, still fit in sixteen.
const CHAINS_NARROW: usize = 6;

/// Independent sums for 32 registers of the full width.
const CHAINS_WIDE: usize = 12;

fn share_out<const CHAINS: usize>(instructions: f64) {
    // Small parts, so that no thread waits long for another.
    let parts = 32 * rayon::current_num_threads();
    let rounds = (instructions / (parts * CHAINS) as f64).ceil() as usize;
    (0..parts).into_par_iter().for_each(|_| {
        black_box(dispatch(MultiplyAdds::<CHAINS> { rounds }));
    });
}

/// The rate of one thread over about a millisecond.
fn attempt<const CHAINS: usize>() -> f64 {
    const ROUNDS: usize = 400_000;
    let start = Instant::now();
    black_box(dispatch(MultiplyAdds::<CHAINS> { rounds: ROUNDS }));
    (ROUNDS * CHAINS) as f64 / start.elapsed().as_secs_f64()
}

struct MultiplyAdds<const CHAINS: usize> {
    rounds: usize,
}

impl<const CHAINS: usize> Kernel for MultiplyAdds<CHAINS> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let (factor, term) = (V::splat(black_box(0.5)), V::splat(black_box(0.5)));
        let mut sums = [V::splat(black_box(1.0)); CHAINS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = sum.mul_add(factor, term);
            }
        }
        let mut total = V::zero();
        for sum in sums {
            total = total + sum;
        }
        total.sum()
    }
}
