use super::*;
use crate::oracle::finite_differences::{assert_gradient, dot, uniform};
use crate::oracle::{SelectiveScanInputs, selective_scan};

/// Owned inputs of one problem with every option present: four heads in two groups.
struct Case {
    seq_len: usize,
    x: Vec<f64>,
    dt: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
    d: Vec<f64>,
    d_rows: Vec<f64>,
    dt_bias: Vec<f64>,
    initial_state: Vec<f64>,
}

const BATCH: usize = 2;
const HEADS: usize = 4;
const HEADDIM: usize = 2;
const GROUPS: usize = 2;
const STATE: usize = 3;

impl Case {
    fn new(seq_len: usize) -> Self {
        let steps = BATCH * seq_len * HEADS;
        let projection = BATCH * seq_len * GROUPS * STATE;
        Self {
            seq_len,
            x: uniform(1, steps * HEADDIM, -1.5, 1.5),
            dt: uniform(2, steps, -1.0, 1.0),
            a: uniform(3, HEADS, -2.0, -0.1),
            b: uniform(4, projection, -1.0, 1.0),
            c: uniform(5, projection, -1.0, 1.0),
            d: uniform(6, HEADS, -1.0, 1.0),
            d_rows: uniform(7, HEADS * HEADDIM, -1.0, 1.0),
            dt_bias: uniform(8, HEADS, -0.5, 0.5),
            initial_state: uniform(9, BATCH * HEADS * HEADDIM * STATE, -1.0, 1.0),
        }
    }

    fn required_inputs(&self) -> SsdInputs<'_> {
        SsdInputs {
            batch: BATCH,
            seq_len: self.seq_len,
            nheads: HEADS,
            headdim: HEADDIM,
            ngroups: GROUPS,
            d_state: STATE,
            x: &self.x,
            dt: &self.dt,
            a: &self.a,
            b: &self.b,
            c: &self.c,
            d: None,
            dt_bias: None,
            initial_state: None,
            seq_idx: None,
            dt_softplus: false,
            dt_limit: (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    fn all_inputs(&self) -> SsdInputs<'_> {
        SsdInputs {
            d: Some(&self.d),
            dt_bias: Some(&self.dt_bias),
            initial_state: Some(&self.initial_state),
            dt_softplus: true,
            dt_limit: (0.0, f64::INFINITY),
            ..self.required_inputs()
        }
    }
}

/// Two sequences of 17 positions: runs of several lengths, and an index that returns.
fn packed_17() -> Vec<i64> {
    [
        [vec![0; 5], vec![1; 1], vec![2; 11]].concat(),
        [vec![3; 8], vec![1; 6], vec![3; 3]].concat(),
    ]
    .concat()
}

/// Checks every gradient of a loss that weighs `y` and the final state.
fn assert_all_gradients(inputs: SsdInputs) {
    let grad_y = uniform(20, inputs.x.len(), -1.0, 1.0);
    let grad_final = uniform(21, inputs.states(), -1.0, 1.0);
    let loss = |inputs: &SsdInputs| {
        let output = ssd(inputs);
        dot(&output.y, &grad_y) + dot(&output.final_state, &grad_final)
    };
    let grads = ssd_backward(&inputs, &grad_y, Some(&grad_final));

    macro_rules! check_required {
        ($($name:ident),*) => { $(
            assert_gradient(stringify!($name), inputs.$name, &grads.$name, |$name| {
                loss(&SsdInputs { $name, ..inputs })
            });
        )* };
    }
    macro_rules! check_optional {
        ($($name:ident),*) => { $(
            assert_eq!(inputs.$name.is_some(), grads.$name.is_some());
            if let (Some(input), Some(gradient)) = (inputs.$name, &grads.$name) {
                assert_gradient(stringify!($name), input, gradient, |$name| {
                    loss(&SsdInputs { $name: Some($name), ..inputs })
                });
            }
        )* };
    }
    check_required!(x, dt, a, b, c);
    check_optional!(d, dt_bias, initial_state);
}

fn assert_close(name: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= 1e-12 * (1.0 + expected.abs()),
            "{name}[{index}]: {got} != {expected}"
        );
    }
}

#[test]
fn gradients_equal_finite_differences_without_options() {
    for seq_len in [1, 17] {
        assert_all_gradients(Case::new(seq_len).required_inputs());
    }
}

#[test]
fn gradients_equal_finite_differences_with_all_options() {
    for seq_len in [1, 17] {
        assert_all_gradients(Case::new(seq_len).all_inputs());
    }
}

#[test]
fn gradients_equal_finite_differences_with_a_skip_of_each_row() {
    let case = Case::new(5);
    assert_all_gradients(SsdInputs {
        d: Some(&case.d_rows),
        ..case.all_inputs()
    });
}

#[test]
fn gradients_equal_finite_differences_in_packed_sequences() {
    let seq_idx = packed_17();
    let case = Case::new(17);
    assert_all_gradients(SsdInputs {
        seq_idx: Some(&seq_idx),
        ..case.all_inputs()
    });
}

#[test]
fn gradients_equal_finite_differences_beyond_limits() {
    let case = Case::new(17);
    let inputs = SsdInputs {
        dt_limit: (0.5, 0.9),
        ..case.all_inputs()
    };
    assert_all_gradients(inputs);
    let grads = ssd_backward(&inputs, &vec![1.0; case.x.len()], None);
    let clamped = grads.dt.iter().filter(|&&gradient| gradient == 0.0).count();
    assert!(0 < clamped && clamped < case.dt.len());
}

#[test]
fn the_gradient_of_a_step_passes_at_its_limit() {
    let case = Case::new(1);
    let dt = vec![0.5; case.dt.len()];
    let grads = ssd_backward(
        &SsdInputs {
            dt: &dt,
            dt_limit: (0.5, 0.5),
            ..case.required_inputs()
        },
        &vec![1.0; case.x.len()],
        None,
    );
    assert!(grads.dt.iter().all(|&gradient| gradient != 0.0));
}

#[test]
fn an_absent_final_gradient_equals_zeros() {
    let case = Case::new(17);
    let inputs = case.all_inputs();
    let grad_y = uniform(20, inputs.x.len(), -1.0, 1.0);
    let zeros = vec![0.0; case.initial_state.len()];
    let absent = ssd_backward(&inputs, &grad_y, None);
    let present = ssd_backward(&inputs, &grad_y, Some(&zeros));
    assert_eq!(absent.dt, present.dt);
    assert_eq!(absent.initial_state, present.initial_state);
}

#[test]
fn one_step_by_hand() {
    // h_0 = e^0.5 * 1 + 0.5 * 2 * 3, y_0 = 4 * h_0 + 10 * 3: a positive `a` keeps the sum simple.
    let output = ssd(&SsdInputs {
        batch: 1,
        seq_len: 1,
        nheads: 1,
        headdim: 1,
        ngroups: 1,
        d_state: 1,
        x: &[3.0],
        dt: &[0.25],
        a: &[1.0],
        b: &[2.0],
        c: &[4.0],
        d: Some(&[10.0]),
        dt_bias: Some(&[0.25]),
        initial_state: Some(&[1.0]),
        seq_idx: None,
        dt_softplus: false,
        dt_limit: (0.0, f64::INFINITY),
    });
    let state = 0.5f64.exp() + 3.0;
    assert_eq!(output.final_state, [state]);
    assert_eq!(output.y, [4.0 * state + 30.0]);
}

#[test]
fn the_recurrence_equals_masked_attention() {
    let seq_idx = packed_17();
    let case = Case::new(17);
    for seq_idx in [None, Some(&seq_idx[..])] {
        for inputs in [case.required_inputs(), case.all_inputs()] {
            let inputs = SsdInputs { seq_idx, ..inputs };
            let (recurrent, quadratic) = (ssd(&inputs), ssd_quadratic(&inputs));
            assert_close("y", &quadratic.y, &recurrent.y);
            assert_close(
                "final_state",
                &quadratic.final_state,
                &recurrent.final_state,
            );
        }
    }
}

#[test]
fn tied_rates_equal_the_selective_scan() {
    // A group a problem of Mamba-1, whose channels are the rows of all heads.
    let case = Case::new(17);
    let repeat = |values: &[f64]| -> Vec<f64> {
        values.iter().flat_map(|&value| [value; HEADDIM]).collect()
    };
    let inputs = SsdInputs {
        ngroups: 1,
        b: &case.b[..BATCH * 17 * STATE],
        c: &case.c[..BATCH * 17 * STATE],
        ..case.all_inputs()
    };
    let a: Vec<f64> = repeat(inputs.a)
        .iter()
        .flat_map(|&rate| [rate; STATE])
        .collect();
    let scan = selective_scan(&SelectiveScanInputs {
        batch: BATCH,
        seq_len: 17,
        d_inner: HEADS * HEADDIM,
        d_state: STATE,
        u: inputs.x,
        delta: &repeat(inputs.dt),
        a: &a,
        b: inputs.b,
        c: inputs.c,
        d: Some(&repeat(&case.d)),
        z: None,
        delta_bias: Some(&repeat(&case.dt_bias)),
        initial_state: inputs.initial_state,
        seq_idx: None,
        delta_softplus: true,
    });
    let output = ssd(&inputs);
    assert_close("y", &output.y, &scan.y);
    assert_close("final_state", &output.final_state, &scan.final_state);
}

#[test]
fn no_gradient_passes_a_reset() {
    let case = Case::new(17);
    let seq_idx = packed_17();
    let inputs = SsdInputs {
        seq_idx: Some(&seq_idx),
        ..case.all_inputs()
    };
    let grad_y = vec![0.0; case.x.len()];
    let grad_final = vec![1.0; case.initial_state.len()];
    let grads = ssd_backward(&inputs, &grad_y, Some(&grad_final));

    let initial = grads.initial_state.unwrap();
    assert!(initial.iter().all(|&gradient| gradient == 0.0));
    let last_run = 6;
    let (before, after) = grads.x[..17 * HEADS * HEADDIM].split_at(last_run * HEADS * HEADDIM);
    assert!(before.iter().all(|&gradient| gradient == 0.0));
    assert!(after.iter().all(|&gradient| gradient != 0.0));
}

#[test]
#[should_panic(expected = "ssd: b must hold 12 values for shape [2, 1, 2, 3], got 11")]
fn a_wrong_length_is_named() {
    let case = Case::new(1);
    ssd(&SsdInputs {
        b: &case.b[1..],
        ..case.all_inputs()
    });
}
