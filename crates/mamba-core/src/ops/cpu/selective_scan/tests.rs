use super::{
    super::testing::{assert_close, assert_gradient, dot, noise, widen},
    *,
};

struct Case {
    dims: ScanDims,
    values: [Vec<f32>; 9],
    seq_idx: Vec<i32>,
    full: bool,
}

/// Positions of the inputs in [`Case::values`].
const NAMES: [&str; 9] = [
    "u",
    "delta",
    "a",
    "b",
    "c",
    "d",
    "z",
    "delta_bias",
    "initial_state",
];

impl Case {
    fn new(dims: ScanDims, full: bool) -> Self {
        let ScanDims {
            batch,
            d_inner,
            d_state,
            ..
        } = dims;
        let rows = dims.rows();
        let mut values = [
            noise(rows * d_inner, 1),
            noise(rows * d_inner, 2),
            noise(d_inner * d_state, 3),
            noise(rows * d_state, 4),
            noise(rows * d_state, 5),
            noise(d_inner, 6),
            noise(rows * d_inner, 7),
            noise(d_inner, 8),
            noise(batch * d_inner * d_state, 9),
        ];
        for a in &mut values[2] {
            *a = -(1.0 + *a) * 2.0;
        }
        if !full {
            values[1]
                .iter_mut()
                .for_each(|delta| *delta = 0.3 * (1.0 + *delta));
        }
        let seq_idx = (0..rows)
            .map(|row| (row % dims.seq_len / 5) as i32 % 3)
            .collect();
        Self {
            dims,
            values,
            seq_idx,
            full,
        }
    }

    /// Every optional input, or none.
    fn inputs(&self) -> ScanInputs<'_> {
        let ScanDims {
            d_inner, d_state, ..
        } = self.dims;
        let [u, delta, a, b, c, d, z, delta_bias, initial_state] = &self.values;
        ScanInputs {
            dims: self.dims,
            u: Rows::contiguous(u, d_inner),
            delta: Rows::contiguous(delta, d_inner),
            a,
            b: Rows::contiguous(b, d_state),
            c: Rows::contiguous(c, d_state),
            d: self.full.then_some(d),
            z: self.full.then_some(Rows::contiguous(z, d_inner)),
            delta_bias: self.full.then_some(delta_bias),
            delta_softplus: self.full,
            initial_state: self.full.then_some(initial_state),
            seq_idx: self.full.then_some(&self.seq_idx),
        }
    }

    /// The definition in f64: outputs, final states.
    fn exact(&self, values: &[Vec<f64>; 9]) -> (Vec<f64>, Vec<f64>) {
        let ScanDims {
            batch,
            seq_len,
            d_inner,
            d_state,
        } = self.dims;
        let [u, delta, a, b, c, d, z, delta_bias, initial_state] = values;
        let mut y = vec![0.0; batch * seq_len * d_inner];
        let mut states = vec![0.0; batch * d_inner * d_state];
        for batch in 0..batch {
            for channel in 0..d_inner {
                let first = (batch * d_inner + channel) * d_state;
                let h = &mut states[first..first + d_state];
                if self.full {
                    h.copy_from_slice(&initial_state[first..first + d_state]);
                }
                for t in 0..seq_len {
                    let row = batch * seq_len + t;
                    let at = row * d_inner + channel;
                    let mut dt = delta[at];
                    if self.full {
                        dt = (dt + delta_bias[channel]).exp().ln_1p();
                        if t > 0 && self.seq_idx[row] != self.seq_idx[row - 1] {
                            h.fill(0.0);
                        }
                        y[at] = d[channel] * u[at];
                    }
                    for n in 0..d_state {
                        let decay = (dt * a[channel * d_state + n]).exp();
                        h[n] = decay * h[n] + dt * b[row * d_state + n] * u[at];
                        y[at] += c[row * d_state + n] * h[n];
                    }
                    if self.full {
                        y[at] *= z[at] / (1.0 + (-z[at]).exp());
                    }
                }
            }
        }
        (y, states)
    }
}

fn all_dims() -> Vec<ScanDims> {
    let mut all = Vec::new();
    for (seq_len, d_inner, d_state) in [
        (1, 1, 1),
        (1, 40, 16),
        (1, 21, 24),
        (1, 300, 5),
        (17, 12, 3),
        (17, 16, 24),
        (32, 16, 16),
        (130, 20, 16),
        (130, 12, 5),
        (64, 140, 4),
    ] {
        all.push(ScanDims {
            batch: 2,
            seq_len,
            d_inner,
            d_state,
        });
    }
    all
}

#[test]
fn forward_equals_the_definition() {
    for dims in all_dims() {
        for full in [false, true] {
            let case = Case::new(dims, full);
            let exact = case.values.each_ref().map(|values| widen(values));
            let (y, state) = case.exact(&exact);
            let outputs = forward(&case.inputs(), false);
            assert_close("y", &outputs.y, &y, 3e-6);
            assert_close("final_state", &outputs.final_state, &state, 3e-6);
            assert!(outputs.checkpoints.is_none());
        }
    }
}

#[test]
fn gradients_equal_finite_differences_of_the_definition() {
    for dims in all_dims() {
        for full in [false, true] {
            let case = Case::new(dims, full);
            let grad_y = noise(dims.rows() * dims.d_inner, 10);
            let grad_state = noise(dims.batch * dims.d_inner * dims.d_state, 11);
            let checkpoints = forward(&case.inputs(), true).checkpoints.unwrap();
            let grads = backward(&case.inputs(), &checkpoints, &grad_y, Some(&grad_state));

            let loss = |values: &[Vec<f64>; 9]| {
                let (y, state) = case.exact(values);
                dot(&y, &grad_y) + dot(&state, &grad_state)
            };
            let got = [
                Some(grads.u),
                Some(grads.delta),
                Some(grads.a),
                Some(grads.b),
                Some(grads.c),
                grads.d,
                grads.z,
                grads.delta_bias,
                full.then_some(grads.initial_state),
            ];
            let mut values = case.values.each_ref().map(|values| widen(values));
            for (input, got) in got.into_iter().enumerate() {
                if let Some(got) = got {
                    let name = format!("{dims:?} {full} {}", NAMES[input]);
                    assert_gradient(&name, &got, &mut values, input, loss);
                }
            }
        }
    }
}

#[test]
fn repeated_runs_agree_bit_by_bit_for_any_number_of_threads() {
    let dims = ScanDims {
        batch: 3,
        seq_len: 130,
        d_inner: 300,
        d_state: 5,
    };
    let case = Case::new(dims, true);
    let grad_y = noise(dims.rows() * dims.d_inner, 10);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let outputs = forward(&case.inputs(), true);
            let grads = backward(
                &case.inputs(),
                outputs.checkpoints.as_ref().unwrap(),
                &grad_y,
                None,
            );
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            [
                bits(&outputs.y),
                bits(&outputs.final_state),
                bits(&grads.u),
                bits(&grads.delta),
                bits(&grads.a),
                bits(&grads.b),
                bits(&grads.c),
                bits(&grads.d.unwrap()),
                bits(&grads.z.unwrap()),
                bits(&grads.delta_bias.unwrap()),
                bits(&grads.initial_state),
            ]
        })
    };
    let once = run(1);
    for threads in [1, 2, 3, 5] {
        assert_eq!(run(threads), once);
    }
}

#[test]
fn strided_rows_read_only_their_columns() {
    let dims = ScanDims {
        batch: 2,
        seq_len: 40,
        d_inner: 20,
        d_state: 6,
    };
    let case = Case::new(dims, true);
    let rows = dims.rows();
    let pad = |data: &[f32], width: usize| -> Vec<f32> {
        let padding = [f32::NAN; 3];
        data.chunks(width)
            .flat_map(|row| row.iter().chain(&padding))
            .copied()
            .collect()
    };
    let wide: Vec<Vec<f32>> = [(0, 20), (1, 20), (3, 6), (4, 6), (6, 20)]
        .map(|(input, width)| pad(&case.values[input], width))
        .into();
    let strided = |index: usize| Rows {
        data: &wide[index],
        row_stride: wide[index].len() / rows,
    };
    let inputs = ScanInputs {
        u: strided(0),
        delta: strided(1),
        b: strided(2),
        c: strided(3),
        z: Some(strided(4)),
        ..case.inputs()
    };
    let grad_y = noise(rows * dims.d_inner, 10);
    let (plain, wide) = (forward(&case.inputs(), true), forward(&inputs, true));
    assert_eq!(plain.y, wide.y);
    let grads = |inputs, outputs: &ScanOutputs| {
        backward(inputs, outputs.checkpoints.as_ref().unwrap(), &grad_y, None)
    };
    let (plain, wide) = (grads(&case.inputs(), &plain), grads(&inputs, &wide));
    assert_eq!(plain.u, wide.u);
    assert_eq!(plain.b, wide.b);
    assert_eq!(plain.z, wide.z);
}

#[test]
fn final_state_continues_a_sequence() {
    let dims = ScanDims {
        batch: 1,
        seq_len: 70,
        d_inner: 17,
        d_state: 4,
    };
    let case = Case::new(dims, true);
    let whole = ScanInputs {
        seq_idx: None,
        ..case.inputs()
    };
    let outputs = forward(&whole, false);
    let part = |from: usize, to: usize, state| {
        let cut = |rows: Rows<'_>, width: usize| -> Vec<f32> {
            rows.data[from * width..to * width].to_vec()
        };
        let data = [
            cut(whole.u, 17),
            cut(whole.delta, 17),
            cut(whole.z.unwrap(), 17),
            cut(whole.b, 4),
            cut(whole.c, 4),
        ];
        let inputs = ScanInputs {
            dims: ScanDims {
                seq_len: to - from,
                ..dims
            },
            u: Rows::contiguous(&data[0], 17),
            delta: Rows::contiguous(&data[1], 17),
            z: Some(Rows::contiguous(&data[2], 17)),
            b: Rows::contiguous(&data[3], 4),
            c: Rows::contiguous(&data[4], 4),
            initial_state: Some(state),
            ..whole
        };
        forward(&inputs, false)
    };
    let first = part(0, 29, &case.values[8]);
    let second = part(29, 70, &first.final_state);
    assert_eq!([first.y, second.y].concat(), outputs.y);
    assert_eq!(second.final_state, outputs.final_state);
}
