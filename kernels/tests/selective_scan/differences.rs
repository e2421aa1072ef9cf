//! The gradient kernels against central differences of the forward kernels, in f32.

use mamba_kernels::selective_scan::Strategy;

use crate::support::scan::{Case, Numbers, Options};
use crate::support::{Named, central_differences, client};

/// The gradient of an input, and the input.
type Input = (&'static str, fn(&mut Numbers) -> &mut Vec<f32>);

const INPUTS: [Input; 9] = [
    ("grad_u", |it| &mut it.u),
    ("grad_delta", |it| &mut it.delta),
    ("grad_a", |it| &mut it.a),
    ("grad_b", |it| &mut it.b),
    ("grad_c", |it| &mut it.c),
    ("grad_d", |it| &mut it.d),
    ("grad_z", |it| &mut it.z),
    ("grad_delta_bias", |it| &mut it.delta_bias),
    ("grad_initial_state", |it| &mut it.initial_state),
];

#[test]
fn gradients_are_the_slopes_of_the_values() {
    let mut numbers = Numbers::new(Case::new([1, 17, 3, 16], Options::ALL));
    let kernels =
        |numbers: &Numbers| -> Vec<Named> { numbers.kernels(&client(), Strategy::Sequential) };
    let weights = [&numbers.grad_y, &numbers.grad_final_state].map(Vec::clone);
    let gradients = kernels(&numbers);
    for (name, input) in INPUTS {
        let found = gradients.iter().find(|it| it.0 == name);
        let gradient = &found.expect("all options are there").1;
        central_differences(name, &mut numbers, input, gradient, |numbers| {
            let values = kernels(numbers);
            assert_eq!([values[0].0, values[1].0], ["y", "final_state"]);
            let loss = |index: usize| -> f64 {
                let weighted = values[index].1.iter().zip(&weights[index]);
                weighted.map(|(value, &weight)| value * weight as f64).sum()
            };
            loss(0) + loss(1)
        });
    }
}
