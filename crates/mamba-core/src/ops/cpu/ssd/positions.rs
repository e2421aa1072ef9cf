//! What a head's chunk needs of each position, and of each pair of them.

use super::super::simd::{
    Kernel, LANES, Lanes, Vector, dispatch,
    math::{exp2, softplus, softplus_with_derivative},
};
use super::{CHECKPOINT_INTERVAL, SsdInputs};
use std::{f64::consts::LOG2_E, ops::Range};

const VECTORS: usize = CHECKPOINT_INTERVAL / LANES;

/// A value a position.
#[derive(Clone, Copy)]
pub struct PerPosition([Lanes; VECTORS]);

impl PerPosition {
    pub const ZERO: Self = Self([Lanes::ZERO; VECTORS]);

    #[inline(always)]
    pub fn vector<V: Vector>(&self, vector: usize) -> V {
        V::load(&self.0[vector])
    }

    #[inline(always)]
    pub fn set<V: Vector>(&mut self, vector: usize, value: V) {
        value.store(&mut self.0[vector]);
    }

    #[inline(always)]
    pub fn values(&self) -> &[f32] {
        Lanes::values(&self.0)
    }

    #[inline(always)]
    pub fn values_mut(&mut self) -> &mut [f32] {
        Lanes::values_mut(&mut self.0)
    }
}

/// The positions of a chunk of one head. Those past the chunk's end have a step size of zero.
pub struct Positions {
    /// Step sizes.
    pub dt: PerPosition,
    /// Derivatives of the step sizes by the raw ones.
    pub slope: PerPosition,
    /// How much of the state before the chunk is left after a position.
    pub entered: PerPosition,
    /// How much of a position's own part is left at the end of the chunk.
    pub to_end: PerPosition,
    /// The same times its step size.
    pub left: PerPosition,
    /// How much of the state before the chunk is left at its end.
    pub through: f32,
    /// Base-2 logarithms of the decay from the chunk's beginning, in two parts: their differences
    /// are as exact as if they had been added up by themselves.
    high: PerPosition,
    low: PerPosition,
}

/// The logarithm of a decay that leaves nothing.
const NOTHING: f32 = -1024.0;

/// Decays with a smaller logarithm count as nothing: products with them might be subnormal, which makes
/// them a hundred times slower.
const LEAST: f32 = -100.0;

/// `2^log` of a decay.
#[inline(always)]
pub fn decay<V: Vector>(log: V) -> V {
    exp2((log - V::splat(LEAST)).select_negative(V::splat(NOTHING), log))
}

impl Positions {
    pub const ZERO: Self = Self {
        dt: PerPosition::ZERO,
        slope: PerPosition::ZERO,
        entered: PerPosition::ZERO,
        to_end: PerPosition::ZERO,
        left: PerPosition::ZERO,
        through: 0.0,
        high: PerPosition::ZERO,
        low: PerPosition::ZERO,
    };

    /// Those of rows `rows` and head `head`; slopes only if asked for.
    pub fn fill(&mut self, inputs: &SsdInputs, rows: &Range<usize>, head: usize, slopes: bool) {
        let bias = inputs.dt_bias.map_or(0.0, |bias| bias[head]);
        let dt = self.dt.values_mut();
        for (dt, row) in dt.iter_mut().zip(rows.clone()) {
            *dt = inputs.dt.get(row, head..head + 1)[0] + bias;
        }
        dispatch(StepSizes {
            inputs,
            positions: self,
            slopes,
        });
        let rate = f64::from(inputs.a[head]) * LOG2_E;
        let dt = self.dt.values_mut();
        dt[rows.len()..].fill(0.0);
        let (high, low) = (self.high.values_mut(), self.low.values_mut());
        let mut sum = 0.0;
        for (t, &dt) in dt.iter().enumerate() {
            let step = f64::from(dt) * rate;
            // Resets are decays that leave nothing; as sums of these the logarithms stay exact.
            let nothing = step < f64::from(NOTHING)
                || t < rows.len() && inputs.seq_idx.is_some() && inputs.reset(rows.start + t);
            sum += if nothing { f64::from(NOTHING) } else { step };
            high[t] = sum as f32;
            low[t] = (sum - f64::from(high[t])) as f32;
        }
        dispatch(Edges(self));
        self.through = self.entered.values()[CHECKPOINT_INTERVAL - 1];
    }

    /// Decays from position `s` to those of vector `vector`, which is not before that of `s`; none
    /// to positions before it.
    #[inline(always)]
    pub fn decays_from<V: Vector>(&self, s: usize, vector: usize) -> V {
        let high = self.high.vector::<V>(vector) - V::splat(self.high.values()[s]);
        let low = self.low.vector::<V>(vector) - V::splat(self.low.values()[s]);
        let mut log = high + low;
        if vector == s / LANES {
            log = from_lane::<V>(s % LANES, log, V::splat(NOTHING));
        }
        decay(log)
    }
}

/// `then` from lane `lane` onwards, `before` in those before it.
#[inline(always)]
pub fn from_lane<V: Vector>(lane: usize, then: V, before: V) -> V {
    const NUMBERS: Lanes = {
        let mut numbers = [0.0; LANES];
        let mut lane = 0;
        while lane < LANES {
            numbers[lane] = lane as f32;
            lane += 1;
        }
        Lanes(numbers)
    };
    (V::load(&NUMBERS) - V::splat(lane as f32)).select_negative(before, then)
}

/// Bias has been added: softplus and limits, and their derivatives.
struct StepSizes<'a, 'b> {
    inputs: &'a SsdInputs<'b>,
    positions: &'a mut Positions,
    slopes: bool,
}

impl Kernel for StepSizes<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Positions { dt, slope, .. } = self.positions;
        let (least, most) = self.inputs.dt_limit;
        let (least, most) = (V::splat(least), V::splat(most));
        for vector in 0..VECTORS {
            let raw = dt.vector::<V>(vector);
            let (step, mut derivative) = match (self.inputs.dt_softplus, self.slopes) {
                (false, _) => (raw, V::splat(1.0)),
                (true, false) => (softplus(raw), V::zero()),
                (true, true) => softplus_with_derivative(raw),
            };
            dt.set(vector, step.at_least(least).at_most(most));
            if self.slopes {
                derivative = (step - least).select_negative(V::zero(), derivative);
                derivative = (most - step).select_negative(V::zero(), derivative);
                slope.set(vector, derivative);
            }
        }
    }
}

/// Decays from the chunk's beginning and to its end.
struct Edges<'a>(&'a mut Positions);

impl Kernel for Edges<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let at = self.0;
        let end = CHECKPOINT_INTERVAL - 1;
        let high_end = V::splat(at.high.values()[end]);
        let low_end = V::splat(at.low.values()[end]);
        for vector in 0..VECTORS {
            let (high, low) = (at.high.vector::<V>(vector), at.low.vector::<V>(vector));
            at.entered.set(vector, decay(high + low));
            let to_end = decay((high_end - high) + (low_end - low));
            at.to_end.set(vector, to_end);
            at.left.set(vector, to_end * at.dt.vector::<V>(vector));
        }
    }
}
