use super::{
    super::{
        simd::tests::with_each_set,
        testing::{assert_close, assert_gradient, dot, noise, widen},
    },
    *,
};

mod sequences;

struct Case {
    dims: SsdDims,
    values: [Vec<f32>; 8],
    seq_idx: Vec<i32>,
    full: bool,
}

/// Positions of the inputs in [`Case::values`].
const NAMES: [&str; 8] = ["x", "dt", "a", "b", "c", "d", "dt_bias", "initial_state"];

/// Both limits are met by some of the steps.
const LIMIT: (f32, f32) = (0.2, 1.2);

impl Case {
    /// With `full`, every optional input and `d` of every channel; else none but `d` of every head.
    fn new(dims: SsdDims, full: bool) -> Self {
        let (rows, heads) = (dims.rows(), dims.nheads);
        let states = dims.ngroups * dims.d_state;
        let mut values = [
            noise(rows * dims.d_inner(), 1),
            noise(rows * heads, 2),
            noise(heads, 3),
            noise(rows * states, 4),
            noise(rows * states, 5),
            noise(if full { dims.d_inner() } else { heads }, 6),
            noise(heads, 7),
            noise(dims.state_len(), 8),
        ];
        for a in &mut values[2] {
            *a = -(1.0 + *a) * 2.0;
        }
        if !full {
            for dt in &mut values[1] {
                *dt = 0.3 * (1.0 + *dt);
            }
        }
        let seq_idx = (0..rows)
            .map(|row| (row % dims.seq_len / 7) as i32 % 3)
            .collect();
        Self {
            dims,
            values,
            seq_idx,
            full,
        }
    }

    fn inputs(&self) -> SsdInputs<'_> {
        let dims = self.dims;
        let states = dims.ngroups * dims.d_state;
        let [x, dt, a, b, c, d, dt_bias, initial_state] = &self.values;
        SsdInputs {
            dims,
            x: Rows::contiguous(x, dims.d_inner()),
            dt: Rows::contiguous(dt, dims.nheads),
            a,
            b: Rows::contiguous(b, states),
            c: Rows::contiguous(c, states),
            d: Some(d),
            dt_bias: self.full.then_some(dt_bias),
            dt_softplus: self.full,
            dt_limit: if self.full {
                LIMIT
            } else {
                (0.0, f32::INFINITY)
            },
            initial_state: self.full.then_some(initial_state),
            seq_idx: self.full.then_some(&self.seq_idx),
        }
    }

    fn grad_y(&self) -> Vec<f32> {
        noise(self.dims.rows() * self.dims.d_inner(), 10)
    }

    fn grad_state(&self) -> Vec<f32> {
        noise(self.dims.state_len(), 11)
    }

    /// The definition in f64, step by step: outputs, final states.
    fn exact(&self, values: &[Vec<f64>; 8]) -> (Vec<f64>, Vec<f64>) {
        let dims = self.dims;
        let (p, n) = (dims.headdim, dims.d_state);
        let [x, dt, a, b, c, d, dt_bias, initial_state] = values;
        let mut y = vec![0.0; dims.rows() * dims.d_inner()];
        let mut states = vec![0.0; dims.state_len()];
        for (batch, head) in (0..dims.batch).flat_map(|i| (0..dims.nheads).map(move |j| (i, j))) {
            let first = (batch * dims.nheads + head) * p * n;
            let h = &mut states[first..first + p * n];
            if self.full {
                h.copy_from_slice(&initial_state[first..first + p * n]);
            }
            for t in 0..dims.seq_len {
                let row = batch * dims.seq_len + t;
                let mut dt = dt[row * dims.nheads + head];
                if self.full {
                    let (least, most) = (f64::from(LIMIT.0), f64::from(LIMIT.1));
                    dt = (dt + dt_bias[head]).exp().ln_1p().clamp(least, most);
                    if t > 0 && self.seq_idx[row] != self.seq_idx[row - 1] {
                        h.fill(0.0);
                    }
                }
                let group = row * dims.ngroups + head / dims.heads_per_group();
                let (b, c) = (&b[group * n..][..n], &c[group * n..][..n]);
                let decay = (dt * a[head]).exp();
                for i in 0..p {
                    let at = row * dims.d_inner() + head * p + i;
                    y[at] = x[at] * if self.full { d[head * p + i] } else { d[head] };
                    for j in 0..n {
                        let h = &mut h[i * n + j];
                        *h = decay * *h + dt * b[j] * x[at];
                        y[at] += c[j] * *h;
                    }
                }
            }
        }
        (y, states)
    }
}

fn dims([batch, seq_len, nheads, headdim, ngroups, d_state]: [usize; 6]) -> SsdDims {
    SsdDims {
        batch,
        seq_len,
        nheads,
        headdim,
        ngroups,
        d_state,
    }
}

fn all_dims() -> Vec<SsdDims> {
    [
        [1, 1, 1, 1, 1, 1],
        [2, 1, 3, 5, 1, 16],
        [2, 17, 2, 16, 2, 3],
        [1, 63, 2, 8, 1, 20],
        [1, 64, 1, 33, 1, 16],
        [2, 65, 4, 4, 2, 24],
        [1, 130, 9, 3, 1, 7],
        [1, 70, 2, 80, 1, 100],
    ]
    .map(dims)
    .into()
}

#[test]
fn forward_equals_the_definition_on_every_instruction_set() {
    for dims in all_dims() {
        for full in [false, true] {
            let case = Case::new(dims, full);
            let (y, state) = case.exact(&case.values.each_ref().map(|values| widen(values)));
            for save in [false, true] {
                for (set, outputs) in with_each_set(|| forward(&case.inputs(), save)) {
                    let name = format!("{dims:?} {full} {set:?}");
                    assert_close(&format!("{name} y"), &outputs.y, &y, 3e-6);
                    assert_close(&format!("{name} state"), &outputs.final_state, &state, 3e-6);
                    let saved = outputs.checkpoints.map(|checkpoints| checkpoints.len());
                    assert_eq!(saved, save.then_some(dims.checkpoint_len()));
                }
            }
        }
    }
}

#[test]
fn gradients_equal_finite_differences_of_the_definition_on_every_instruction_set() {
    for dims in all_dims() {
        for full in [false, true] {
            let case = Case::new(dims, full);
            let (grad_y, grad_state) = (case.grad_y(), case.grad_state());
            let loss = |values: &[Vec<f64>; 8]| {
                let (y, state) = case.exact(values);
                dot(&y, &grad_y) + dot(&state, &grad_state)
            };
            let results = with_each_set(|| {
                let checkpoints = forward(&case.inputs(), true).checkpoints.unwrap();
                let grad_y = Rows::contiguous(&grad_y, dims.d_inner());
                backward(&case.inputs(), &checkpoints, grad_y, Some(&grad_state))
            });
            let mut proved: Option<Vec<Vec<f32>>> = None;
            for (set, grads) in results {
                assert_eq!(grads.dt_bias.is_some(), full);
                assert_eq!(grads.initial_state.is_some(), full);
                let name = |input| format!("{dims:?} {full} {set:?} {}", NAMES[input]);
                let d = grads.d.unwrap();
                let always = [grads.x, grads.dt, grads.a, grads.b, grads.c, d];
                let optional = [grads.dt_bias, grads.initial_state];
                let got: Vec<_> = always
                    .into_iter()
                    .chain(optional.into_iter().flatten())
                    .collect();
                match &proved {
                    Some(proved) => {
                        for (input, (got, want)) in got.iter().zip(proved).enumerate() {
                            assert_close(&name(input), got, &widen(want), 1e-5);
                        }
                    }
                    None => {
                        let mut values = case.values.each_ref().map(|values| widen(values));
                        for (input, got) in got.iter().enumerate() {
                            assert_gradient(&name(input), got, &mut values, input, loss);
                        }
                        proved = Some(got);
                    }
                }
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// All outputs and gradients.
fn everything(inputs: &SsdInputs, grad_y: &[f32], grad_state: Option<&[f32]>) -> Vec<Vec<f32>> {
    let outputs = forward(inputs, true);
    let checkpoints = outputs.checkpoints.unwrap();
    let grad_y = Rows::contiguous(grad_y, inputs.dims.d_inner());
    let grads = backward(inputs, &checkpoints, grad_y, grad_state);
    let always = [
        outputs.y,
        outputs.final_state,
        grads.x,
        grads.dt,
        grads.a,
        grads.b,
        grads.c,
    ];
    let optional = [grads.d, grads.dt_bias, grads.initial_state];
    always
        .into_iter()
        .chain(optional.into_iter().flatten())
        .collect()
}

#[test]
fn repeated_runs_agree_bit_by_bit_for_any_number_of_threads() {
    let case = Case::new(dims([3, 130, 18, 20, 2, 12]), true);
    let (grad_y, grad_state) = (case.grad_y(), case.grad_state());
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let all = everything(&case.inputs(), &grad_y, Some(&grad_state));
            all.iter().map(|values| bits(values)).collect::<Vec<_>>()
        })
    };
    let once = run(1);
    for threads in [1, 2, 3, 5] {
        assert!(run(threads) == once, "{threads} threads");
    }
}

#[test]
fn strided_rows_read_only_their_columns() {
    let case = Case::new(dims([2, 70, 3, 20, 1, 6]), true);
    let rows = case.dims.rows();
    let pad = |data: &[f32], width: usize| -> Vec<f32> {
        let padding = [f32::NAN; 3];
        data.chunks(width)
            .flat_map(|row| row.iter().chain(&padding))
            .copied()
            .collect()
    };
    let wide: Vec<Vec<f32>> = [(0, 60), (1, 3), (3, 6), (4, 6)]
        .map(|(input, width)| pad(&case.values[input], width))
        .into();
    let strided = |index: usize| Rows {
        data: &wide[index],
        row_stride: wide[index].len() / rows,
    };
    let inputs = SsdInputs {
        x: strided(0),
        dt: strided(1),
        b: strided(2),
        c: strided(3),
        ..case.inputs()
    };
    let grad_y = case.grad_y();
    let (plain, wide) = (
        everything(&case.inputs(), &grad_y, None),
        everything(&inputs, &grad_y, None),
    );
    assert_eq!(plain, wide);
}

#[test]
fn steep_decays_and_long_sequences_stay_exact() {
    let mut case = Case::new(dims([1, 300, 2, 4, 1, 4]), false);
    // One head forgets at once, with logarithms past every float; the other one hardly.
    case.values[2] = vec![-1e30, -1e-4];
    let (y, state) = case.exact(&case.values.each_ref().map(|values| widen(values)));
    let outputs = forward(&case.inputs(), false);
    assert_close("y", &outputs.y, &y, 3e-6);
    assert_close("state", &outputs.final_state, &state, 3e-6);
    let all = everything(&case.inputs(), &case.grad_y(), None);
    assert!(all.iter().flatten().all(|value| value.is_finite()));
}

#[test]
#[should_panic(expected = "dt_bias needs 2 values, got 1")]
fn sizes_that_do_not_fit_are_refused() {
    let case = Case::new(dims([1, 4, 2, 3, 1, 2]), true);
    let inputs = SsdInputs {
        dt_bias: Some(&[0.0]),
        ..case.inputs()
    };
    forward(&inputs, false);
}
