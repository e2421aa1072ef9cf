//! The least time that the selective scan's arithmetic takes on this machine.
//!
//! Counted are vector instructions of the arithmetic ports: products, sums, fused products with
//! sums, minima, range reduction and scaling of exponentials, estimates of reciprocals, blends.
//! Loads, stores, broadcasts, address arithmetic and the sums across lanes count nothing, and all
//! are taken to run as fast as a fused multiply-add does here on registers alone.
//!
//! For every state of every channel and position, the state's decay included:
//!
//! | | forward | backward |
//! |---|---|---|
//! | `dt * a`, then `2^x`: range 2, polynomial 5, scaling 1 | 9 | 9 |
//! | `b * (dt u)`, `h = decay * h + ..` | 2 | 2 |
//! | `y += c * h` (in backward for the gradient of the gate) | 1 | 1 |
//! | gradients of `c`, `h`, `b`, `dt u` | | 4 |
//! | `g * decay`, `g * decay * h`, gradients of `dt` and `a` | | 4 |
//!
//! For every channel and position:
//!
//! | | forward | backward |
//! |---|---|---|
//! | bias, softplus (backward: its derivative too) | 31 | 37 |
//! | SiLU (backward: its derivative too) | 24 | 29 |
//! | `dt u`, `D u`, gate | 3 | 3 |
//! | gradients of `u`, `dt`, `delta`, `z`, `D`, bias | | 9 |

use std::hint::black_box;
use std::time::Instant;

use mamba_core::ops::cpu::simd::{Kernel, LANES, Vector, dispatch};

use crate::problems::Scan;

/// Instructions a state, forward and backward.
const PER_STATE: [usize; 2] = [12, 20];

/// Instructions a channel and position, forward and backward.
const PER_POSITION: [usize; 2] = [58, 78];

/// Arithmetic vector instructions of forward and backward, each on [`LANES`] values.
pub fn scan_instructions(scan: &Scan) -> f64 {
    let vectors = (scan.positions() / LANES) as f64;
    let states = PER_STATE.iter().sum::<usize>() * scan.d_state;
    vectors * (states + PER_POSITION.iter().sum::<usize>()) as f64
}

/// Fused multiply-adds of [`LANES`] values a second that all threads together reach at best.
pub fn peak_multiply_adds() -> f64 {
    const ATTEMPTS: usize = 12;
    let attempt = |_| f64::max(attempt::<CHAINS_NARROW>(), attempt::<CHAINS_WIDE>());
    (0..ATTEMPTS).map(attempt).fold(0.0, f64::max)
}

/// Independent sums that hide the latency and, with two registers a vector, still fit in sixteen.
const CHAINS_NARROW: usize = 6;

/// Independent sums for 32 registers of the full width.
const CHAINS_WIDE: usize = 12;

fn attempt<const CHAINS: usize>() -> f64 {
    const ROUNDS: usize = 4_000_000;
    let seconds = rayon::broadcast(|_| {
        let start = Instant::now();
        black_box(dispatch(MultiplyAdds::<CHAINS> { rounds: ROUNDS }));
        start.elapsed().as_secs_f64()
    });
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    (seconds.len() * ROUNDS * CHAINS) as f64 / slowest
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
