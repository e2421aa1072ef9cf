//! What pairs of positions have for all heads, in shared memory while rows come ahead.
//!
//! It is asked for twice a head. Registers that a compiler lacks it takes from memory, where they wait behind whatever else
//! is on its way from there: a fifth of the kernel's time before this.

use cubecl::prelude::*;

use super::super::plan::Plan;

/// `C B^T` and the sum of its gradients over heads: what each unit holds of them, in vectors.
#[derive(CubeType)]
pub(super) struct KeptPairs {
    values: Shared<[Vector<f32, Const<KEPT_LANES>>]>,
}

/// Values of such a vector.
const KEPT_LANES: usize = 4;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kept {
    Scores,
    Gradients,
}

impl Plan {
    /// Vectors of both for all units. Some, where they are in registers: memory cannot be empty.
    pub fn kept_vectors(&self) -> usize {
        match self.ahead {
            true => 2 * self.kept_a_unit() * self.units,
            false => 1,
        }
    }

    fn kept_a_unit(&self) -> usize {
        self.weight_sums().values() / KEPT_LANES
    }

    fn kept_at(&self, kept: Kept) -> usize {
        match kept {
            Kept::Scores => 0,
            Kept::Gradients => self.kept_a_unit() * self.units,
        }
    }
}

#[cube]
pub(super) fn kept_pairs(#[comptime] plan: Plan) -> KeptPairs {
    KeptPairs {
        values: Shared::new_aligned_slice(comptime!(plan.kept_vectors()), 16usize),
    }
}

/// The unit's own.
#[cube]
pub(super) fn recall(
    pairs: &KeptPairs,
    sums: &mut Array<f32>,
    #[comptime] kept: Kept,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for vector in 0..comptime!(plan.kept_a_unit()) {
        let at = comptime!(plan.kept_at(kept) + vector * plan.units);
        let values = pairs.values[at + UNIT_POS as usize];
        #[unroll]
        for i in 0..KEPT_LANES {
            sums[comptime!(vector * KEPT_LANES + i)] = values.extract(i);
        }
    }
}

/// The counterpart of [`recall`].
#[cube]
pub(super) fn keep(
    pairs: &mut KeptPairs,
    sums: &Array<f32>,
    #[comptime] kept: Kept,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for vector in 0..comptime!(plan.kept_a_unit()) {
        let at = comptime!(plan.kept_at(kept) + vector * plan.units);
        let mut values = Vector::<f32, Const<KEPT_LANES>>::empty();
        #[unroll]
        for i in 0..KEPT_LANES {
            values.insert(i, sums[comptime!(vector * KEPT_LANES + i)]);
        }
        pairs.values[at + UNIT_POS as usize] = values;
    }
}
