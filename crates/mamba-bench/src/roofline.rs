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

/// Fused multiply-adds of [`LANES`] values a second that all threads together reach at best.
///
/// Each thread counts with its best attempt: attempts are short, so that some stay undisturbed on a
/// machine that has other work, too.
pub fn peak_multiply_adds() -> f64 {
    const ATTEMPTS: usize = 100;
    let mut best = vec![0.0; rayon::current_num_threads()];
    for _ in 0..ATTEMPTS {
        let rates =
            rayon::broadcast(|_| f64::max(attempt::<CHAINS_NARROW>(), attempt::<CHAINS_WIDE>()));
        for (best, rate) in best.iter_mut().zip(rates) {
            *best = f64::max(*best, rate);
        }
    }
    best.iter().sum()
}

/// Independent sums that hide the latency and, with two registers a vector, still fit in sixteen.
const CHAINS_NARROW: usize = 6;

/// Independent sums for 32 registers of the full width.
const CHAINS_WIDE: usize = 12;

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
