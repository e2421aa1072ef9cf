//! Every path of every operation against PyTorch: values, states and all gradients.
#![recursion_limit = "256"]

use burn::tensor::{Device, Gradients, Tensor};
use mamba_core::ops::{
    CausalConv1d, LinearCrossEntropy, SelectiveScan, Strategy, causal_attention, causal_conv1d,
    linear_cross_entropy, reference, selective_scan, token_losses,
};
use mamba_tests::devices::{autodiff_devices, device};
use mamba_tests::fixtures::{self, Fixture};
use mamba_tests::tensors::{
    assert_fixture, assert_same, float, int, numbers, sequence_tensor, values,
};
use mamba_tests::tolerances::{self, Tolerance};

/// Paths under test, the fused one first.
const STRATEGIES: [Strategy; 2] = [Strategy::Fused, Strategy::Reference];

struct Case<'a> {
    name: &'a str,
    fixture: Fixture,
    device: Device,
}

impl<'a> Case<'a> {
    fn load(name: &'a str, device: &Device) -> Self {
        Self {
            name,
            fixture: Fixture::load(name),
            device: device.clone(),
        }
    }

    fn leaf<const D: usize>(&self, key: &str) -> Tensor<D> {
        float(self.fixture.floats(key), &self.device).require_grad()
    }

    fn optional_leaf<const D: usize>(&self, key: &str) -> Option<Tensor<D>> {
        let array = self.fixture.find_floats(key)?;
        Some(float(array, &self.device).require_grad())
    }

    fn assert<const D: usize>(&self, key: &str, got: Tensor<D>, tolerance: Tolerance) {
        assert_fixture(self.name, &self.fixture, key, got, tolerance);
    }

    /// The loss that the fixtures differentiate: outputs times their weights.
    fn loss(&self, y: Tensor<3>, final_state: Tensor<3>) -> Tensor<1> {
        let mut loss = (y * float(self.fixture.floats("grad_y"), &self.device)).sum();
        if let Some(grad) = self.fixture.find_floats("grad_final_state") {
            loss = loss + (final_state * float(grad, &self.device)).sum();
        }
        loss
    }

    fn assert_gradient<const D: usize>(
        &self,
        key: &str,
        leaf: &Tensor<D>,
        gradients: &Gradients,
        tolerance: Tolerance,
    ) {
        let gradient = leaf
            .grad(gradients)
            .unwrap_or_else(|| panic!("{}: {key} has no gradient", self.name));
        self.assert(&format!("grad.{key}"), gradient, tolerance);
    }
}

fn scan_of(case: &Case) -> SelectiveScan {
    SelectiveScan {
        d: case.optional_leaf("d"),
        z: case.optional_leaf("z"),
        delta_bias: case.optional_leaf("delta_bias"),
        initial_state: case.optional_leaf("initial_state"),
        seq_idx: case
            .fixture
            .find_ints("seq_idx")
            .map(|ids| int(ids, &case.device)),
        delta_softplus: case.fixture.setting("delta_softplus"),
        ..SelectiveScan::new(
            case.leaf("u"),
            case.leaf("delta"),
            case.leaf("a"),
            case.leaf("b"),
            case.leaf("c"),
        )
    }
}

fn check_scan(case: &Case, scan: SelectiveScan, outputs: (Tensor<3>, Tensor<3>)) {
    let values = tolerances::SELECTIVE_SCAN_F32;
    let tolerance = tolerances::SELECTIVE_SCAN_F32_GRADIENT;
    let (y, final_state) = outputs;
    case.assert("y", y.clone().inner(), values);
    case.assert("final_state", final_state.clone().inner(), values);

    let gradients = case.loss(y, final_state).backward();
    case.assert_gradient("u", &scan.u, &gradients, tolerance);
    case.assert_gradient("delta", &scan.delta, &gradients, tolerance);
    case.assert_gradient("a", &scan.a, &gradients, tolerance);
    case.assert_gradient("b", &scan.b, &gradients, tolerance);
    case.assert_gradient("c", &scan.c, &gradients, tolerance);
    if let Some(d) = &scan.d {
        case.assert_gradient("d", d, &gradients, tolerance);
    }
    if let Some(z) = &scan.z {
        case.assert_gradient("z", z, &gradients, tolerance);
    }
    if let Some(bias) = &scan.delta_bias {
        case.assert_gradient("delta_bias", bias, &gradients, tolerance);
    }
    if let Some(state) = &scan.initial_state {
        case.assert_gradient("initial_state", state, &gradients, tolerance);
    }
}

#[test]
fn selective_scan_equals_pytorch() {
    for device in autodiff_devices() {
        for name in fixtures::names("selective_scan_") {
            for strategy in STRATEGIES {
                let case = Case::load(&name, &device);
                let scan = SelectiveScan {
                    strategy,
                    ..scan_of(&case)
                };
                check_scan(&case, scan.clone(), selective_scan(scan));
            }
        }
    }
}

/// f32 has no number between 2^24 and 2^24 + 2.
#[test]
fn runs_of_large_numbers_are_told_apart() {
    let device = device();
    let outputs = |ids: [i64; 5], strategy| {
        let seq_idx = Some(sequence_tensor(&ids, [1, 5], &device));
        let of = |seed, size| numbers::<3>(seed, [1, 5, size], &device);
        let scan = SelectiveScan::new(
            of(1, 3),
            of(2, 3),
            numbers::<2>(3, [3, 2], &device).abs().neg(),
            of(4, 2),
            of(5, 2),
        );
        let (y, _) = selective_scan(SelectiveScan {
            seq_idx: seq_idx.clone(),
            strategy,
            ..scan
        });
        let conv = CausalConv1d::new(of(6, 3), numbers(7, [3, 4], &device));
        let (z, _) = causal_conv1d(CausalConv1d {
            seq_idx,
            strategy,
            ..conv
        });
        [values(y), values(z)]
    };
    let large = 1 << 24;
    for strategy in STRATEGIES {
        let want = outputs([0, 0, 1, 1, 0], strategy);
        assert_ne!(outputs([0; 5], strategy), want);
        let ids = [large, large, large + 1, large + 1, large];
        assert_eq!(outputs(ids, strategy), want, "{strategy:?}");
    }
}

#[test]
fn the_parallel_scan_equals_pytorch() {
    let device = device().autodiff();
    for name in fixtures::names("selective_scan_") {
        let case = Case::load(&name, &device);
        let scan = scan_of(&case);
        check_scan(
            &case,
            scan.clone(),
            reference::selective_scan_parallel(scan),
        );
    }
}

#[test]
fn causal_conv1d_equals_pytorch() {
    let values = tolerances::CAUSAL_CONV1D_F32;
    let tolerance = tolerances::CAUSAL_CONV1D_F32_GRADIENT;
    for device in autodiff_devices() {
        for name in fixtures::names("causal_conv1d_") {
            for strategy in STRATEGIES {
                let case = Case::load(&name, &device);
                let without_window = case.fixture.floats("final_state").values.is_empty();
                let conv = CausalConv1d {
                    bias: case.optional_leaf("bias"),
                    initial_state: case
                        .optional_leaf("initial_state")
                        .filter(|_| !without_window),
                    seq_idx: case
                        .fixture
                        .find_ints("seq_idx")
                        .map(|ids| int(ids, &device)),
                    silu: case.fixture.setting("activation"),
                    strategy,
                    ..CausalConv1d::new(case.leaf("x"), case.leaf("weight"))
                };
                let (y, final_state) = causal_conv1d(conv.clone());
                case.assert("y", y.clone().inner(), values);
                let loss = match without_window {
                    true => (y * float(case.fixture.floats("grad_y"), &device)).sum(),
                    false => {
                        case.assert("final_state", final_state.clone().inner(), values);
                        case.loss(y, final_state)
                    }
                };
                let gradients = loss.backward();
                case.assert_gradient("x", &conv.x, &gradients, tolerance);
                case.assert_gradient("weight", &conv.weight, &gradients, tolerance);
                if let Some(bias) = &conv.bias {
                    case.assert_gradient("bias", bias, &gradients, tolerance);
                }
                if let Some(state) = &conv.initial_state {
                    case.assert_gradient("initial_state", state, &gradients, tolerance);
                }
            }
        }
    }
}

#[test]
fn linear_cross_entropy_equals_pytorch() {
    for device in autodiff_devices() {
        for name in fixtures::names("linear_cross_entropy_") {
            for strategy in STRATEGIES {
                let case = Case::load(&name, &device);
                let ignored: i64 = case.fixture.setting("ignore_index");
                let targets = int::<1>(case.fixture.ints("targets"), &device);
                let counted = targets.clone().not_equal_elem(ignored).int();
                let arguments = LinearCrossEntropy {
                    hidden: case.leaf("hidden"),
                    weight: case.leaf("weight"),
                    // Ours leaves out whatever is negative.
                    targets: targets * counted.clone() + (counted - 1),
                    vocab_size: case.fixture.setting("vocab_size"),
                    strategy,
                };
                let loss = linear_cross_entropy(arguments.clone());
                let want = float::<1>(&scalar(case.fixture.floats("loss").values[0]), &device);
                mamba_tests::tensors::assert_same(
                    &name,
                    loss.clone().inner(),
                    want.clone().inner(),
                    tolerances::LINEAR_CROSS_ENTROPY_F32,
                );

                let counted = arguments.targets.clone().greater_equal_elem(0).int().sum();
                let mean = token_losses(arguments.clone()).sum() / counted.float();
                mamba_tests::tensors::assert_same(
                    &name,
                    mean.inner(),
                    want.inner(),
                    tolerances::LINEAR_CROSS_ENTROPY_F32,
                );

                let scale = case.fixture.floats("grad_loss").values[0];
                let gradients = (loss * scale).backward();
                let tolerance = tolerances::LINEAR_CROSS_ENTROPY_F32_GRADIENT;
                case.assert_gradient("hidden", &arguments.hidden, &gradients, tolerance);
                case.assert_gradient("weight", &arguments.weight, &gradients, tolerance);
            }
        }
    }
}

/// Queries, keys and values of two heads to a head of keys, behind a past, and weights of a loss.
fn attention_of(device: &Device) -> ([Tensor<3>; 3], Tensor<3>) {
    let leaf = |seed, shape| numbers(seed, shape, device).require_grad();
    let inputs = [
        leaf(1, [2, 19, 20]),
        leaf(2, [2, 83, 10]),
        leaf(3, [2, 83, 10]),
    ];
    (inputs, numbers(4, [2, 19, 20], device))
}

#[test]
fn causal_attention_equals_the_reference() {
    for device in autodiff_devices() {
        let run = |way: fn(Tensor<3>, Tensor<3>, Tensor<3>, usize) -> Tensor<3>| {
            let (inputs, weights) = attention_of(&device);
            let [query, key, value] = inputs.clone();
            let y = way(query, key, value, 4);
            let grads = (y.clone() * weights).sum().backward();
            let grads = inputs.map(|tensor| tensor.grad(&grads).unwrap());
            [y.inner()].into_iter().chain(grads).collect::<Vec<_>>()
        };
        let names = ["y", "grad_query", "grad_key", "grad_value"];
        let pairs = run(causal_attention)
            .into_iter()
            .zip(run(reference::causal_attention));
        for (name, (got, want)) in names.into_iter().zip(pairs) {
            assert_same(name, got, want, tolerances::ATTENTION_F32);
        }
    }
}

#[test]
#[should_panic(expected = "do not fit")]
fn heads_that_do_not_fit_are_refused() {
    let zeros = || Tensor::<3>::zeros([1, 2, 12], &device());
    causal_attention(zeros(), zeros(), zeros(), 5);
}

fn scalar(value: f32) -> fixtures::Array<f32> {
    fixtures::Array::new(&[1], vec![value])
}

#[test]
fn a_device_with_operations_of_its_own_uses_them() {
    assert_eq!(Strategy::Auto.resolve(&device()), Strategy::Fused);
    assert_eq!(
        Strategy::Auto.resolve(&device().autodiff()),
        Strategy::Fused
    );
}
