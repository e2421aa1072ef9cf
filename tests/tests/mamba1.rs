//! The Mamba-1 block against PyTorch and against itself.
#![recursion_limit = "256"]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor, s};
use mamba_core::{Mamba1, Mamba1Config, Mamba1State};
use mamba_tests::devices::{autodiff_devices, device};
use mamba_tests::fixtures::{self, Fixture};
use mamba_tests::tensors::{assert_fixture, assert_same, float, int, numbers};
use mamba_tests::tolerances::{MAMBA1_BLOCK_F32, MAMBA1_BLOCK_F32_GRADIENT};

fn parameter<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(tensor)
}

/// PyTorch keeps `[d_output, d_input]`.
fn linear(fixture: &Fixture, name: &str, device: &Device) -> Linear {
    let weight = float::<2>(fixture.floats(&format!("{name}.weight")), device);
    let bias = fixture.find_floats(&format!("{name}.bias"));
    Linear {
        weight: parameter(weight.transpose()),
        bias: bias.map(|bias| parameter(float(bias, device))),
    }
}

fn block(fixture: &Fixture, device: &Device) -> Mamba1 {
    let config = Mamba1Config::new(fixture.setting("d_model"))
        .with_d_state(fixture.setting("d_state"))
        .with_d_conv(fixture.setting("d_conv"))
        .with_expand(fixture.setting("expand"))
        .with_dt_rank(fixture.setting("dt_rank"))
        .with_bias(fixture.setting("bias"))
        .with_conv_bias(fixture.setting("conv_bias"));
    let conv = float::<3>(fixture.floats("conv1d.weight"), device);
    let module = config.init(device);
    assert_eq!(
        module.in_proj.bias.is_some(),
        fixture.setting::<bool>("bias")
    );
    assert_eq!(
        module.conv_bias.is_some(),
        fixture.setting::<bool>("conv_bias")
    );
    Mamba1 {
        in_proj: linear(fixture, "in_proj", device),
        conv_weight: parameter(conv.squeeze_dim(1)),
        conv_bias: fixture
            .find_floats("conv1d.bias")
            .map(|bias| parameter(float(bias, device))),
        x_proj: linear(fixture, "x_proj", device),
        dt_proj: linear(fixture, "dt_proj", device),
        a_log: parameter(float(fixture.floats("A_log"), device)),
        d: parameter(float(fixture.floats("D"), device)),
        out_proj: linear(fixture, "out_proj", device),
    }
}

#[test]
fn the_block_equals_pytorch() {
    for device in autodiff_devices() {
        for name in fixtures::names("mamba1_block_") {
            let fixture = Fixture::load(&name);
            let module = block(&fixture, &device);
            let leaf = |key: &str| float::<3>(fixture.floats(key), &device).require_grad();
            let x = leaf("x");
            let state = Mamba1State {
                conv: leaf("initial_conv_state"),
                ssm: leaf("initial_ssm_state"),
            };
            let (y, last) = match fixture.find_ints("seq_idx") {
                Some(ids) => {
                    module.forward_packed(x.clone(), int(ids, &device), Some(state.clone()))
                }
                None => module.forward(x.clone(), Some(state.clone())),
            };
            let values = |key: &str, got: Tensor<3>| {
                assert_fixture(&name, &fixture, key, got.inner(), MAMBA1_BLOCK_F32);
            };
            values("y", y.clone());
            values("final_conv_state", last.conv.clone());
            values("final_ssm_state", last.ssm.clone());

            let weighted =
                |key: &str, output: Tensor<3>| (output * float(fixture.floats(key), &device)).sum();
            let loss = weighted("grad_y", y)
                + weighted("grad_final_conv_state", last.conv)
                + weighted("grad_final_ssm_state", last.ssm);
            let gradients = loss.backward();
            let check3 = |key: &str, tensor: &Tensor<3>| {
                let gradient = tensor.grad(&gradients).expect(key);
                let key = format!("grad.{key}");
                assert_fixture(&name, &fixture, &key, gradient, MAMBA1_BLOCK_F32_GRADIENT);
            };
            check3("x", &x);
            check3("initial_conv_state", &state.conv);
            check3("initial_ssm_state", &state.ssm);
            let check_linear = |key: &str, module: &Linear| {
                let gradient = module.weight.grad(&gradients).expect(key).transpose();
                let weight = format!("grad.{key}.weight");
                assert_fixture(
                    &name,
                    &fixture,
                    &weight,
                    gradient,
                    MAMBA1_BLOCK_F32_GRADIENT,
                );
                if let Some(bias) = &module.bias {
                    let gradient = bias.grad(&gradients).expect(key);
                    let bias = format!("grad.{key}.bias");
                    assert_fixture(&name, &fixture, &bias, gradient, MAMBA1_BLOCK_F32_GRADIENT);
                }
            };
            check_linear("in_proj", &module.in_proj);
            check_linear("x_proj", &module.x_proj);
            check_linear("dt_proj", &module.dt_proj);
            check_linear("out_proj", &module.out_proj);
            let gradient = module.conv_weight.grad(&gradients).expect("conv1d.weight");
            let gradient = gradient.unsqueeze_dim::<3>(1);
            assert_fixture(
                &name,
                &fixture,
                "grad.conv1d.weight",
                gradient,
                MAMBA1_BLOCK_F32_GRADIENT,
            );
            if let Some(bias) = &module.conv_bias {
                let gradient = bias.grad(&gradients).expect("conv1d.bias");
                let tolerance = MAMBA1_BLOCK_F32_GRADIENT;
                assert_fixture(&name, &fixture, "grad.conv1d.bias", gradient, tolerance);
            }
            let gradient = module.a_log.grad(&gradients).expect("A_log");
            assert_fixture(
                &name,
                &fixture,
                "grad.A_log",
                gradient,
                MAMBA1_BLOCK_F32_GRADIENT,
            );
            let gradient = module.d.grad(&gradients).expect("D");
            assert_fixture(
                &name,
                &fixture,
                "grad.D",
                gradient,
                MAMBA1_BLOCK_F32_GRADIENT,
            );
        }
    }
}

fn small(device: &Device) -> Mamba1 {
    device.seed(7);
    Mamba1Config::new(12).with_d_state(5).init(device)
}

#[test]
fn step_by_step_equals_forward() {
    let device = device();
    let module = small(&device);
    let x = numbers(1, [2, 9, 12], &device);
    let (whole, last) = module.forward(x.clone(), None);
    let mut state = module.initial_state(2, &device);
    for t in 0..9 {
        let token = x.clone().slice(s![.., t..t + 1]).squeeze_dim::<2>(1);
        let (y, next) = module.step(token, state);
        state = next;
        let want = whole.clone().slice(s![.., t..t + 1]).squeeze_dim::<2>(1);
        assert_same(&format!("position {t}"), y, want, MAMBA1_BLOCK_F32);
    }
    assert_same("ssm", state.ssm, last.ssm, MAMBA1_BLOCK_F32);
    assert_same("conv", state.conv, last.conv, MAMBA1_BLOCK_F32);
}

/// Lengths on both sides of a checkpoint of the scan, and cuts shorter than the window.
const LENGTHS: [(usize, usize); 4] = [(2, 1), (17, 2), (40, 33), (70, 31)];

#[test]
fn final_state_continues_a_sequence() {
    let device = device().autodiff();
    let module = small(&device);
    for (seq_len, cut) in LENGTHS {
        let x = numbers(2, [2, seq_len, 12], &device).require_grad();
        let weights = numbers(3, [2, seq_len, 12], &device);
        let (whole, last) = module.forward(x.clone(), None);
        let wanted = ((whole.clone() * weights.clone()).sum() + last.ssm.clone().sum()).backward();

        let parts = numbers(2, [2, seq_len, 12], &device).require_grad();
        let (head, state) = module.forward(parts.clone().slice(s![.., ..cut]), None);
        let (tail, state) = module.forward(parts.clone().slice(s![.., cut..]), Some(state));
        let joined = Tensor::cat(vec![head, tail], 1);
        let got = ((joined.clone() * weights).sum() + state.ssm.clone().sum()).backward();

        let name = format!("{seq_len} cut at {cut}");
        assert_same(&name, joined.inner(), whole.inner(), MAMBA1_BLOCK_F32);
        assert_same(&name, state.ssm.inner(), last.ssm.inner(), MAMBA1_BLOCK_F32);
        assert_same(
            &name,
            state.conv.inner(),
            last.conv.inner(),
            MAMBA1_BLOCK_F32,
        );
        let (got_x, want_x) = (parts.grad(&got).unwrap(), x.grad(&wanted).unwrap());
        assert_same(&name, got_x, want_x, MAMBA1_BLOCK_F32_GRADIENT);
        let gradient = |gradients| module.a_log.grad(gradients).unwrap();
        assert_same(
            &name,
            gradient(&got),
            gradient(&wanted),
            MAMBA1_BLOCK_F32_GRADIENT,
        );
    }
}

#[test]
fn packed_sequences_equal_separate_ones() {
    let device = device().autodiff();
    let module = small(&device);
    let lengths = [1, 2, 35, 5];
    let total = lengths.iter().sum();
    let packed = numbers(4, [1, total, 12], &device).require_grad();
    let separate = numbers(4, [1, total, 12], &device).require_grad();
    // A number may come back: only its change ends a run.
    let ids: Vec<i32> = [3, 0, 1, 0]
        .into_iter()
        .zip(lengths)
        .flat_map(|(id, length)| std::iter::repeat_n(id, length))
        .collect();
    let ids = Tensor::<1, Int>::from_data(ids.as_slice(), &device).unsqueeze::<2>();
    let weights = numbers(5, [1, total, 12], &device);

    let (y, last) = module.forward_packed(packed.clone(), ids, None);
    let got = ((y.clone() * weights.clone()).sum() + last.ssm.clone().sum()).backward();

    let mut outputs = Vec::new();
    let mut start = 0;
    let mut states = Vec::new();
    for length in lengths {
        let run = separate.clone().slice(s![.., start..start + length]);
        let (y, state) = module.forward(run, None);
        outputs.push(y);
        states.push(state);
        start += length;
    }
    let joined = Tensor::cat(outputs, 1);
    let state = states.pop().unwrap();
    let wanted = ((joined.clone() * weights).sum() + state.ssm.clone().sum()).backward();

    assert_same("y", y.inner(), joined.inner(), MAMBA1_BLOCK_F32);
    assert_same("ssm", last.ssm.inner(), state.ssm.inner(), MAMBA1_BLOCK_F32);
    assert_same(
        "conv",
        last.conv.inner(),
        state.conv.inner(),
        MAMBA1_BLOCK_F32,
    );
    let (got_x, want_x) = (packed.grad(&got).unwrap(), separate.grad(&wanted).unwrap());
    assert_same("grad x", got_x, want_x, MAMBA1_BLOCK_F32_GRADIENT);
    let gradient = |gradients| module.conv_weight.grad(gradients).unwrap();
    assert_same(
        "grad conv",
        gradient(&got),
        gradient(&wanted),
        MAMBA1_BLOCK_F32_GRADIENT,
    );
}

#[test]
fn gradients_are_bit_identical_from_run_to_run() {
    let device = device().autodiff();
    let module = small(&device);
    let run = || {
        let x = numbers(6, [2, 70, 12], &device).require_grad();
        let (y, _) = module.forward(x.clone(), None);
        let gradients = y.square().sum().backward();
        let x = x.grad(&gradients).unwrap().into_data();
        (
            x,
            module.x_proj.weight.grad(&gradients).unwrap().into_data(),
        )
    };
    let first = run();
    for _ in 0..3 {
        assert_eq!(run(), first);
    }
}

#[test]
fn initialisation_is_the_official_one() {
    let device = device();
    device.seed(11);
    let config = Mamba1Config::new(64);
    let module = config.init(&device);
    assert_eq!(config.resolved_dt_rank(), 4);
    assert_eq!(
        module.num_params(),
        64 * 256 + 128 * 4 + 128 + 128 * 36 + 4 * 128 + 128 + 128 * 16 + 128 + 128 * 64
    );

    let a = module.a_log.val().exp().into_data();
    for (index, value) in a.iter::<f32>().enumerate() {
        let want = (index % 16 + 1) as f32;
        assert!(
            (value - want).abs() < 1e-4 * want,
            "A[{index}] = -{value}, expected -{want}"
        );
    }
    assert!(module.d.val().into_data().iter::<f32>().all(|d| d == 1.0));
    let bias = module.dt_proj.bias.as_ref().unwrap().val().into_data();
    let dt: Vec<f64> = bias.iter::<f64>().map(|bias| bias.exp().ln_1p()).collect();
    assert!(
        dt.iter().all(|dt| (0.000_999..0.1001).contains(dt)),
        "{dt:?}"
    );
    let (low, high) = (
        dt.iter().cloned().fold(1.0, f64::min),
        dt.iter().cloned().fold(0.0, f64::max),
    );
    assert!(
        low < 0.002 && high > 0.05,
        "log-uniform over the range: {low} .. {high}"
    );
    let bound = |tensor: Tensor<2>| tensor.abs().max().into_scalar::<f32>();
    assert!(
        (0.45..=0.5).contains(&bound(module.dt_proj.weight.val())),
        "dt_rank^-1/2"
    );
    assert!(
        (0.45..=0.5).contains(&bound(module.conv_weight.val())),
        "d_conv^-1/2"
    );
    assert!(
        (0.12..=0.125).contains(&bound(module.in_proj.weight.val())),
        "d_model^-1/2"
    );
}
