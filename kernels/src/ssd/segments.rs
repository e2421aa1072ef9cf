//! Time in parallel: what segments do to the state, one after the other.

use cubecl::prelude::*;

use crate::bits::is_negative;

/// In the place of a decay, which is never negative: nothing of the state passes. Zero would not do, since
/// a state may be NaN.
pub(super) const DROPPED: f32 = -1.0;

/// One unit a sequence, head, channel and state. `local` becomes the state before each segment.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn carry_kernel(
    local: &mut Tensor<f32>, // [batch, segments, nheads, headdim, d_state]
    decay: &Tensor<f32>,     // [batch, segments, nheads]
    initial: ComptimeOption<&Tensor<f32>>, // [batch, nheads, headdim, d_state]
) {
    let segments = local.shape(1);
    let nheads = local.shape(2);
    let size = local.shape(3) * local.shape(4);
    let states = nheads * size;
    if ABSOLUTE_POS >= local.shape(0) * states {
        terminate!();
    }
    let batch = ABSOLUTE_POS / states;
    let within = ABSOLUTE_POS % states;

    let mut state = 0.0f32;
    #[comptime]
    if let ComptimeOption::Some(initial) = initial {
        state = initial[ABSOLUTE_POS];
    }
    for segment in 0..segments {
        let place = batch * segments + segment;
        let index = place * states + within;
        // What the last segment does to the state nobody computed.
        let last = segment + 1 == segments;
        let change = if last { 0.0f32.runtime() } else { local[index] };
        let factor = if last {
            0.0f32.runtime()
        } else {
            decay[place * nheads + within / size]
        };
        local[index] = state;
        state = select(is_negative(factor), 0.0f32, factor * state) + change;
    }
}
