use super::*;
use crate::oracle::finite_differences::{assert_gradient, dot, uniform};

/// Owned inputs of one scan with every option present.
struct Case {
    batch: usize,
    seq_len: usize,
    d_inner: usize,
    d_state: usize,
    u: Vec<f64>,
    delta: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
    d: Vec<f64>,
    z: Vec<f64>,
    delta_bias: Vec<f64>,
    initial_state: Vec<f64>,
}

impl Case {
    fn new(seq_len: usize) -> Self {
        let (batch, d_inner, d_state) = (2, 2, 3);
        let sequence = batch * seq_len * d_inner;
        let projection = batch * seq_len * d_state;
        Self {
            batch,
            seq_len,
            d_inner,
            d_state,
            u: uniform(1, sequence, -1.5, 1.5),
            delta: uniform(2, sequence, -1.0, 1.0),
            a: uniform(3, d_inner * d_state, -2.0, -0.1),
            b: uniform(4, projection, -1.0, 1.0),
            c: uniform(5, projection, -1.0, 1.0),
            d: uniform(6, d_inner, -1.0, 1.0),
            z: uniform(7, sequence, -2.0, 2.0),
            delta_bias: uniform(8, d_inner, -0.5, 0.5),
            initial_state: uniform(9, batch * d_inner * d_state, -1.0, 1.0),
        }
    }

    fn required_inputs(&self) -> SelectiveScanInputs<'_> {
        SelectiveScanInputs {
            batch: self.batch,
            seq_len: self.seq_len,
            d_inner: self.d_inner,
            d_state: self.d_state,
            u: &self.u,
            delta: &self.delta,
            a: &self.a,
            b: &self.b,
            c: &self.c,
            d: None,
            z: None,
            delta_bias: None,
            initial_state: None,
            seq_idx: None,
            delta_softplus: false,
        }
    }

    fn all_inputs(&self) -> SelectiveScanInputs<'_> {
        SelectiveScanInputs {
            d: Some(&self.d),
            z: Some(&self.z),
            delta_bias: Some(&self.delta_bias),
            initial_state: Some(&self.initial_state),
            delta_softplus: true,
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
fn assert_all_gradients(inputs: SelectiveScanInputs) {
    let states = inputs.batch * inputs.d_inner * inputs.d_state;
    let grad_y = uniform(20, inputs.u.len(), -1.0, 1.0);
    let grad_final = uniform(21, states, -1.0, 1.0);
    let loss = |inputs: &SelectiveScanInputs| {
        let output = selective_scan(inputs);
        dot(&output.y, &grad_y) + dot(&output.final_state, &grad_final)
    };
    let grads = selective_scan_backward(&inputs, &grad_y, Some(&grad_final));

    macro_rules! check_required {
        ($($name:ident),*) => { $(
            assert_gradient(stringify!($name), inputs.$name, &grads.$name, |$name| {
                loss(&SelectiveScanInputs { $name, ..inputs })
            });
        )* };
    }
    macro_rules! check_optional {
        ($($name:ident),*) => { $(
            assert_eq!(inputs.$name.is_some(), grads.$name.is_some());
            if let (Some(input), Some(gradient)) = (inputs.$name, &grads.$name) {
                assert_gradient(stringify!($name), input, gradient, |$name| {
                    loss(&SelectiveScanInputs { $name: Some($name), ..inputs })
                });
            }
        )* };
    }
    check_required!(u, delta, a, b, c);
    check_optional!(d, z, delta_bias, initial_state);
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
fn gradients_equal_finite_differences_in_packed_sequences() {
    let seq_idx = packed_17();
    let case = Case::new(17);
    assert_all_gradients(SelectiveScanInputs {
        seq_idx: Some(&seq_idx),
        ..case.all_inputs()
    });
}

#[test]
fn an_absent_final_gradient_equals_zeros() {
    let case = Case::new(17);
    let inputs = case.all_inputs();
    let grad_y = uniform(20, inputs.u.len(), -1.0, 1.0);
    let zeros = vec![0.0; case.initial_state.len()];
    let absent = selective_scan_backward(&inputs, &grad_y, None);
    let present = selective_scan_backward(&inputs, &grad_y, Some(&zeros));
    assert_eq!(absent.delta, present.delta);
    assert_eq!(absent.initial_state, present.initial_state);
}

#[test]
fn one_channel_by_hand() {
    // h_0 = e^0.5 * 1 + 0.5 * 2 * 3, y_0 = 4 * h_0 + 10 * 3: a positive `a` keeps the sum simple.
    let output = selective_scan(&SelectiveScanInputs {
        batch: 1,
        seq_len: 1,
        d_inner: 1,
        d_state: 1,
        u: &[3.0],
        delta: &[0.25],
        a: &[1.0],
        b: &[2.0],
        c: &[4.0],
        d: Some(&[10.0]),
        z: None,
        delta_bias: Some(&[0.25]),
        initial_state: Some(&[1.0]),
        seq_idx: None,
        delta_softplus: false,
    });
    let state = 0.5f64.exp() + 3.0;
    assert_eq!(output.final_state, [state]);
    assert_eq!(output.y, [4.0 * state + 30.0]);
}

#[test]
fn no_gradient_passes_a_reset() {
    let case = Case::new(17);
    let seq_idx = packed_17();
    let inputs = SelectiveScanInputs {
        seq_idx: Some(&seq_idx),
        ..case.all_inputs()
    };
    let grad_y = vec![0.0; case.u.len()];
    let grad_final = vec![1.0; case.initial_state.len()];
    let grads = selective_scan_backward(&inputs, &grad_y, Some(&grad_final));

    assert!(
        grads
            .initial_state
            .unwrap()
            .iter()
            .all(|&gradient| gradient == 0.0)
    );
    let last_run = 6;
    let (before, after) = grads.u[..17 * case.d_inner].split_at(last_run * case.d_inner);
    assert!(before.iter().all(|&gradient| gradient == 0.0));
    assert!(after.iter().all(|&gradient| gradient != 0.0));
}

#[test]
fn packed_runs_equal_separate_scans() {
    let case = Case::new(17);
    let seq_idx = packed_17();
    let packed = selective_scan(&SelectiveScanInputs {
        seq_idx: Some(&seq_idx),
        ..case.all_inputs()
    });

    let (start, end) = (6, 17);
    let channels = start * case.d_inner..end * case.d_inner;
    let projections = start * case.d_state..end * case.d_state;
    let separate = selective_scan(&SelectiveScanInputs {
        batch: 1,
        seq_len: end - start,
        u: &case.u[channels.clone()],
        delta: &case.delta[channels.clone()],
        b: &case.b[projections.clone()],
        c: &case.c[projections],
        z: Some(&case.z[channels.clone()]),
        initial_state: None,
        ..case.all_inputs()
    });
    assert_eq!(packed.y[channels], separate.y);
    assert_eq!(
        packed.final_state[..case.d_inner * case.d_state],
        separate.final_state
    );
}

#[test]
#[should_panic(expected = "selective_scan: b must hold 6 values for shape [2, 1, 3], got 5")]
fn a_wrong_length_is_named() {
    let case = Case::new(1);
    selective_scan(&SelectiveScanInputs {
        b: &case.b[1..],
        ..case.all_inputs()
    });
}
