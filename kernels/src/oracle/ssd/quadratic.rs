use super::head::Head;
use super::{SsdInputs, SsdOutput};
use crate::oracle::dot_product;

/// [`ssd`](super::ssd) in its dual form: attention under a mask that decays (Dao and Gu 2024, section 3.3).
///
/// For every sequence and head, with `s` and `t` over all positions of the sequence:
///
/// ```text
/// M_ts = (C_t . B_s) exp(a (dt_{s+1} + .. + dt_t))  for s <= t of the same run, else 0
/// y_t  = sum over s of M_ts dt_s x_s + d x_t
/// ```
///
/// The initial state is one more term of the first run. Quadratic in the sequence's length.
///
/// # Panics
///
/// Panics if a slice's length does not match the dimensions.
pub fn ssd_quadratic(inputs: &SsdInputs) -> SsdOutput {
    inputs.assert_shapes("ssd_quadratic");
    let (seq_len, d_state) = (inputs.seq_len, inputs.d_state);
    let mut y = vec![0.0; inputs.x.len()];
    let mut final_state = Vec::with_capacity(inputs.states());

    for head in inputs.heads() {
        let starts = head.run_starts();
        for t in 0..seq_len {
            let mut sums = vec![0.0; inputs.headdim];
            for s in starts[t]..=t {
                let score = dot_product(head.c(t), head.b(s)) * decay(&head, s + 1..=t);
                for (sum, x) in sums.iter_mut().zip(head.x(s)) {
                    *sum += score * head.dt(s) * x;
                }
            }
            if starts[t] == 0 {
                let first = head.first_state();
                for (sum, row) in sums.iter_mut().zip(first.chunks(d_state)) {
                    *sum += decay(&head, 0..=t) * dot_product(row, head.c(t));
                }
            }
            for (p, x) in head.x(t).iter().enumerate() {
                y[head.row(t).start + p] = sums[p] + head.skip(p) * x;
            }
        }

        let last = seq_len - 1;
        for p in 0..inputs.headdim {
            for n in 0..d_state {
                let mut sum: f64 = (starts[last]..=last)
                    .map(|s| decay(&head, s + 1..=last) * head.dt(s) * head.x(s)[p] * head.b(s)[n])
                    .sum();
                if starts[last] == 0 {
                    sum += decay(&head, 0..=last) * head.first_state()[p * d_state + n];
                }
                final_state.push(sum);
            }
        }
    }
    SsdOutput { y, final_state }
}

/// What is left of a state after `positions`.
fn decay(head: &Head, positions: std::ops::RangeInclusive<usize>) -> f64 {
    let elapsed: f64 = positions.map(|t| head.dt(t)).sum();
    (elapsed * head.a()).exp()
}
