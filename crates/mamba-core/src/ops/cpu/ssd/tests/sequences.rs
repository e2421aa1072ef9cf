//! Sequences in parts, and several in one.

use super::*;

/// Inputs of which positions `from..to` are left.
struct Part {
    dims: SsdDims,
    values: [Vec<f32>; 4],
}

impl Part {
    fn new(whole: &SsdInputs, from: usize, to: usize) -> Self {
        assert_eq!(whole.dims.batch, 1);
        let cut = |rows: Rows| -> Vec<f32> {
            rows.data[from * rows.row_stride..to * rows.row_stride].to_vec()
        };
        Self {
            dims: SsdDims {
                seq_len: to - from,
                ..whole.dims
            },
            values: [cut(whole.x), cut(whole.dt), cut(whole.b), cut(whole.c)],
        }
    }

    fn inputs<'a>(&'a self, whole: &SsdInputs<'a>, state: Option<&'a [f32]>) -> SsdInputs<'a> {
        let [x, dt, b, c] = &self.values;
        SsdInputs {
            dims: self.dims,
            x: Rows::contiguous(x, whole.x.row_stride),
            dt: Rows::contiguous(dt, whole.dt.row_stride),
            b: Rows::contiguous(b, whole.b.row_stride),
            c: Rows::contiguous(c, whole.c.row_stride),
            initial_state: state,
            seq_idx: None,
            ..*whole
        }
    }
}

#[test]
fn final_state_continues_a_sequence() {
    let case = Case::new(dims([1, 150, 3, 17, 1, 5]), true);
    let whole = SsdInputs {
        seq_idx: None,
        ..case.inputs()
    };
    let want = forward(&whole, false);
    for middle in [1, 64, 97, 149] {
        let parts = [Part::new(&whole, 0, middle), Part::new(&whole, middle, 150)];
        let first = forward(&parts[0].inputs(&whole, whole.initial_state), false);
        let second = forward(&parts[1].inputs(&whole, Some(&first.final_state)), false);
        let y = [first.y, second.y].concat();
        assert_close("y", &y, &widen(&want.y), 2e-6);
        assert_close(
            "state",
            &second.final_state,
            &widen(&want.final_state),
            2e-6,
        );
    }
}

#[test]
fn step_by_step_equals_forward() {
    // Enough states for the heads of a step to be shared out.
    for sizes in [[1, 70, 4, 17, 2, 20], [1, 3, 40, 64, 1, 64]] {
        let case = Case::new(dims(sizes), true);
        let whole = SsdInputs {
            seq_idx: None,
            ..case.inputs()
        };
        let want = forward(&whole, false);
        let mut state = whole.initial_state.unwrap().to_vec();
        let mut y = Vec::new();
        for t in 0..case.dims.seq_len {
            let part = Part::new(&whole, t, t + 1);
            let outputs = forward(&part.inputs(&whole, Some(&state)), false);
            y.extend(outputs.y);
            state = outputs.final_state;
        }
        assert_close("y", &y, &widen(&want.y), 2e-6);
        assert_close("state", &state, &widen(&want.final_state), 2e-6);
    }
}

#[test]
fn packed_sequences_do_not_meet() {
    // Boundaries at a chunk's edge, next to it, in one chunk twice, and before the last position.
    let ends = [64, 65, 80, 81, 149, 150];
    let mut case = Case::new(dims([1, 150, 2, 5, 1, 9]), true);
    let mut start = 0;
    for (index, &end) in ends.iter().enumerate() {
        case.seq_idx[start..end].fill(index as i32);
        start = end;
    }
    let packed = SsdInputs {
        initial_state: None,
        ..case.inputs()
    };
    let (grad_y, grad_state) = (case.grad_y(), case.grad_state());
    let got = everything(&packed, &grad_y, Some(&grad_state));
    let width = case.dims.d_inner();
    let mut want: Vec<Vec<f32>> = Vec::new();
    let mut start = 0;
    for end in ends {
        let part = Part::new(&packed, start, end);
        let upstream = (end == 150).then_some(&grad_state[..]);
        let grad_y = &grad_y[start * width..end * width];
        let next = everything(&part.inputs(&packed, None), grad_y, upstream);
        if want.is_empty() {
            want = next;
        } else {
            for (i, (want, next)) in want.iter_mut().zip(next).enumerate() {
                match i {
                    // A value a position.
                    0 | 2 | 3 | 5 | 6 => want.extend(next),
                    1 => *want = next,
                    _ => want.iter_mut().zip(next).for_each(|(sum, x)| *sum += x),
                }
            }
        }
        start = end;
    }
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_close(&format!("result {i}"), got, &widen(want), 3e-6);
    }
}
