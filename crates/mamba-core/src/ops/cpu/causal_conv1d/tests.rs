use super::{
    super::testing::{assert_close, assert_gradient, dot, noise, widen},
    *,
};

struct Case {
    batch: usize,
    seq_len: usize,
    channels: usize,
    width: usize,
    values: [Vec<f32>; 4],
    seq_idx: Vec<i32>,
    full: bool,
}

/// Positions of the inputs in [`Case::values`].
const NAMES: [&str; 4] = ["x", "weight", "bias", "initial_window"];

impl Case {
    fn new(seq_len: usize, channels: usize, width: usize, full: bool) -> Self {
        let batch = 2;
        let values = [
            noise(batch * seq_len * channels, 1),
            noise(channels * width, 2),
            noise(channels, 3),
            noise(batch * (width - 1) * channels, 4),
        ];
        // Runs of 1, 2, 3, .. positions, so that some are shorter than the window.
        let runs = (0_i32..)
            .flat_map(|run| (0..=run).map(move |_| run % 2))
            .take(seq_len);
        let seq_idx = runs.clone().chain(runs).collect();
        Self {
            batch,
            seq_len,
            channels,
            width,
            values,
            seq_idx,
            full,
        }
    }

    /// Every optional input, or none.
    fn inputs(&self) -> ConvInputs<'_> {
        let [x, weight, bias, window] = &self.values;
        ConvInputs {
            batch: self.batch,
            seq_len: self.seq_len,
            channels: self.channels,
            width: self.width,
            x: Rows::contiguous(x, self.channels),
            weight,
            bias: self.full.then_some(bias),
            initial_window: self.full.then_some(window),
            seq_idx: self.full.then_some(&self.seq_idx),
            silu: self.full,
        }
    }

    /// The value at a position that may lie before the sequence, if position `of` sees it.
    fn at(
        &self,
        values: &[Vec<f64>; 4],
        batch: usize,
        of: usize,
        position: isize,
        channel: usize,
    ) -> f64 {
        let idx = &self.seq_idx[batch * self.seq_len..][..self.seq_len];
        let begins = |t: usize| self.full && t > 0 && idx[t] != idx[t - 1];
        let run = (0..=of)
            .rev()
            .find(|&t| begins(t))
            .map_or(isize::MIN, |t| t as isize);
        if position < run {
            0.0
        } else if position >= 0 {
            values[0][(batch * self.seq_len + position as usize) * self.channels + channel]
        } else if self.full {
            let row = position + self.width as isize - 1;
            values[3][(batch * (self.width - 1) + row as usize) * self.channels + channel]
        } else {
            0.0
        }
    }

    /// The definition in f64: outputs, final windows.
    fn exact(&self, values: &[Vec<f64>; 4]) -> (Vec<f64>, Vec<f64>) {
        let history = self.width - 1;
        let (mut y, mut windows) = (Vec::new(), Vec::new());
        for batch in 0..self.batch {
            for t in 0..self.seq_len {
                for channel in 0..self.channels {
                    let mut sum = if self.full { values[2][channel] } else { 0.0 };
                    for tap in 0..self.width {
                        let position = (t + tap) as isize - history as isize;
                        let x = self.at(values, batch, t, position, channel);
                        sum += values[1][channel * self.width + tap] * x;
                    }
                    y.push(if self.full {
                        sum / (1.0 + (-sum).exp())
                    } else {
                        sum
                    });
                }
            }
            for entry in 0..history {
                let position = (self.seq_len + entry) as isize - history as isize;
                for channel in 0..self.channels {
                    windows.push(self.at(values, batch, self.seq_len - 1, position, channel));
                }
            }
        }
        (y, windows)
    }
}

fn all() -> impl Iterator<Item = Case> {
    let sizes = [
        (1, 1, 1),
        (1, 20, 4),
        (2, 16, 4),
        (17, 12, 4),
        (17, 5, 7),
        (130, 40, 4),
        (65, 16, 2),
    ];
    sizes.into_iter().flat_map(|(seq_len, channels, width)| {
        [false, true].map(|full| Case::new(seq_len, channels, width, full))
    })
}

#[test]
fn forward_equals_the_definition() {
    for case in all() {
        let (y, window) = case.exact(&case.values.each_ref().map(|values| widen(values)));
        let outputs = forward(&case.inputs());
        assert_close("y", &outputs.y, &y, 2e-6);
        assert_close("final_window", &outputs.final_window, &window, 0.0);
    }
}

#[test]
fn gradients_equal_finite_differences_of_the_definition() {
    for case in all() {
        let grad_y = noise(case.batch * case.seq_len * case.channels, 10);
        let grad_window = noise(case.batch * (case.width - 1) * case.channels, 11);
        let grads = backward(&case.inputs(), &grad_y, Some(&grad_window));
        let loss = |values: &[Vec<f64>; 4]| {
            let (y, window) = case.exact(values);
            dot(&y, &grad_y) + dot(&window, &grad_window)
        };
        let got = [
            Some(grads.x),
            Some(grads.weight),
            grads.bias,
            case.full.then_some(grads.initial_window),
        ];
        let mut values = case.values.each_ref().map(|values| widen(values));
        for (input, got) in got.into_iter().enumerate() {
            if let Some(got) = got {
                let name = format!(
                    "{} of length {}, width {}, full {}",
                    NAMES[input], case.seq_len, case.width, case.full
                );
                assert_gradient(&name, &got, &mut values, input, loss);
            }
        }
    }
}

#[test]
fn final_window_continues_a_sequence() {
    let (channels, width) = (20, 4);
    for cut in [1, 2, 50] {
        let case = Case::new(70, channels, width, true);
        let whole = ConvInputs {
            batch: 1,
            seq_idx: None,
            ..case.inputs()
        };
        let whole = ConvInputs {
            initial_window: Some(&case.values[3][..3 * channels]),
            ..whole
        };
        let outputs = forward(&whole);
        let first = forward(&ConvInputs {
            seq_len: cut,
            ..whole
        });
        let second = forward(&ConvInputs {
            seq_len: 70 - cut,
            x: Rows::contiguous(&case.values[0][cut * channels..], channels),
            initial_window: Some(&first.final_window),
            ..whole
        });
        assert_eq!([first.y, second.y].concat(), outputs.y);
        assert_eq!(second.final_window, outputs.final_window);
    }
}

#[test]
fn repeated_runs_agree_bit_by_bit_for_any_number_of_threads() {
    let case = Case::new(500, 33, 4, true);
    let grad_y = noise(case.batch * case.seq_len * case.channels, 10);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let grads = pool.install(|| backward(&case.inputs(), &grad_y, None));
        [
            grads.x,
            grads.weight,
            grads.bias.unwrap(),
            grads.initial_window,
        ]
        .map(|values| {
            values
                .iter()
                .map(|value| value.to_bits())
                .collect::<Vec<_>>()
        })
    };
    let once = run(1);
    for threads in [1, 2, 3] {
        assert_eq!(run(threads), once);
    }
}
