use super::*;
use crate::oracle::finite_differences::{assert_gradient, dot, uniform};

const BATCH: usize = 2;
const CHANNELS: usize = 3;

/// Owned inputs of one convolution with every float option present.
struct Case {
    seq_len: usize,
    width: usize,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    initial_state: Vec<f64>,
}

impl Case {
    fn new(seq_len: usize, width: usize) -> Self {
        Self {
            seq_len,
            width,
            x: uniform(1, BATCH * seq_len * CHANNELS, -1.5, 1.5),
            weight: uniform(2, CHANNELS * width, -1.0, 1.0),
            bias: uniform(3, CHANNELS, -1.0, 1.0),
            initial_state: uniform(4, BATCH * (width - 1) * CHANNELS, -1.0, 1.0),
        }
    }

    fn required_inputs(&self) -> CausalConv1dInputs<'_> {
        CausalConv1dInputs {
            batch: BATCH,
            seq_len: self.seq_len,
            channels: CHANNELS,
            width: self.width,
            x: &self.x,
            weight: &self.weight,
            bias: None,
            initial_state: None,
            seq_idx: None,
            activation: false,
        }
    }

    fn all_inputs(&self) -> CausalConv1dInputs<'_> {
        CausalConv1dInputs {
            bias: Some(&self.bias),
            initial_state: Some(&self.initial_state),
            activation: true,
            ..self.required_inputs()
        }
    }
}

/// Two sequences of 17 positions; the last run of the second is shorter than most windows.
fn packed_17() -> Vec<i64> {
    [
        [vec![0; 2], vec![1; 1], vec![2; 14]].concat(),
        [vec![5; 9], vec![4; 6], vec![5; 2]].concat(),
    ]
    .concat()
}

/// Checks every gradient of a loss that weighs `y` and the final window.
fn assert_all_gradients(inputs: CausalConv1dInputs) {
    let window = inputs.batch * (inputs.width - 1) * inputs.channels;
    let grad_y = uniform(20, inputs.x.len(), -1.0, 1.0);
    let grad_final = uniform(21, window, -1.0, 1.0);
    let loss = |inputs: &CausalConv1dInputs| {
        let output = causal_conv1d(inputs);
        dot(&output.y, &grad_y) + dot(&output.final_state, &grad_final)
    };
    let grads = causal_conv1d_backward(&inputs, &grad_y, Some(&grad_final));

    assert_gradient("x", inputs.x, &grads.x, |x| {
        loss(&CausalConv1dInputs { x, ..inputs })
    });
    assert_gradient("weight", inputs.weight, &grads.weight, |weight| {
        loss(&CausalConv1dInputs { weight, ..inputs })
    });
    assert_eq!(inputs.bias.is_some(), grads.bias.is_some());
    if let (Some(bias), Some(gradient)) = (inputs.bias, &grads.bias) {
        assert_gradient("bias", bias, gradient, |bias| {
            loss(&CausalConv1dInputs {
                bias: Some(bias),
                ..inputs
            })
        });
    }
    assert_eq!(
        inputs.initial_state.is_some(),
        grads.initial_state.is_some()
    );
    if let (Some(state), Some(gradient)) = (inputs.initial_state, &grads.initial_state) {
        assert_gradient("initial_state", state, gradient, |state| {
            loss(&CausalConv1dInputs {
                initial_state: Some(state),
                ..inputs
            })
        });
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for seq_len in [1, 17] {
        for width in 1..=5 {
            let case = Case::new(seq_len, width);
            assert_all_gradients(case.required_inputs());
            assert_all_gradients(case.all_inputs());
        }
    }
}

#[test]
fn gradients_equal_finite_differences_in_packed_sequences() {
    let seq_idx = packed_17();
    for width in 1..=5 {
        let case = Case::new(17, width);
        assert_all_gradients(CausalConv1dInputs {
            seq_idx: Some(&seq_idx),
            ..case.all_inputs()
        });
    }
}

/// One channel with the taps 1000, 100, 10, 1, so that digits tell which inputs were read.
fn digits<'a>(
    x: &'a [f64],
    initial_state: Option<&'a [f64]>,
    seq_idx: Option<&'a [i64]>,
) -> CausalConv1dOutput {
    causal_conv1d(&CausalConv1dInputs {
        batch: 1,
        seq_len: x.len(),
        channels: 1,
        width: 4,
        x,
        weight: &[1000.0, 100.0, 10.0, 1.0],
        bias: None,
        initial_state,
        seq_idx,
        activation: false,
    })
}

#[test]
fn the_last_tap_reads_the_newest_input() {
    let output = digits(&[1.0, 2.0, 3.0, 4.0, 5.0], None, None);
    assert_eq!(output.y, [1.0, 12.0, 123.0, 1234.0, 2345.0]);
    assert_eq!(output.final_state, [3.0, 4.0, 5.0]);
}

#[test]
fn a_short_sequence_keeps_the_newest_of_the_initial_window() {
    let output = digits(&[1.0], Some(&[7.0, 8.0, 9.0]), None);
    assert_eq!(output.y, [7891.0]);
    assert_eq!(output.final_state, [8.0, 9.0, 1.0]);
}

#[test]
fn an_empty_sequence_keeps_its_window() {
    let output = digits(&[], Some(&[7.0, 8.0, 9.0]), None);
    assert_eq!(output.final_state, [7.0, 8.0, 9.0]);
}

#[test]
fn taps_stay_in_their_run() {
    let (x, seq_idx) = ([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 0, 0]);
    let output = digits(&x, Some(&[7.0, 8.0, 9.0]), Some(&seq_idx));
    assert_eq!(output.y, [7891.0, 8912.0, 3.0, 4.0, 45.0]);
    assert_eq!(output.final_state, [0.0, 4.0, 5.0]);
}

#[test]
fn width_one_has_an_empty_window() {
    let case = Case::new(17, 1);
    let output = causal_conv1d(&case.required_inputs());
    assert!(output.final_state.is_empty());
    assert_eq!(output.y[0], case.x[0] * case.weight[0]);
}

#[test]
fn the_final_window_continues_a_sequence() {
    let case = Case::new(17, 4);
    let whole = causal_conv1d(&case.required_inputs());
    let cut = 2 * CHANNELS;
    let one = CausalConv1dInputs {
        batch: 1,
        ..case.required_inputs()
    };
    let head = causal_conv1d(&CausalConv1dInputs {
        seq_len: 2,
        x: &case.x[..cut],
        ..one
    });
    let tail = causal_conv1d(&CausalConv1dInputs {
        seq_len: 15,
        x: &case.x[cut..17 * CHANNELS],
        initial_state: Some(&head.final_state),
        ..one
    });
    assert_eq!(whole.y[..17 * CHANNELS], [head.y, tail.y].concat());
    assert_eq!(whole.final_state[..3 * CHANNELS], tail.final_state);
}

#[test]
#[should_panic(expected = "causal_conv1d: width must be at least 1, got 0")]
fn width_zero_is_refused() {
    let case = Case::new(1, 1);
    causal_conv1d(&CausalConv1dInputs {
        width: 0,
        ..case.required_inputs()
    });
}
