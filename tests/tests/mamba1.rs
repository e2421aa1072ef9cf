//! The Mamba-1 block against PyTorch.
#![recursion_limit = "256"]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use mamba_core::{Mamba1, Mamba1Config, Mamba1State};
use mamba_tests::devices::{autodiff_devices, device, seeded};
use mamba_tests::fixtures::{self, Fixture};
use mamba_tests::tensors::{assert_fixture, float, int};
use mamba_tests::tolerances::{MIXER_F32, MIXER_F32_GRADIENT};

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
    let module = seeded(1, device, |device| config.init(device));
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
        dt_bc_rms_epsilon: None,
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
                assert_fixture(&name, &fixture, key, got.inner(), MIXER_F32);
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
                assert_fixture(&name, &fixture, &key, gradient, MIXER_F32_GRADIENT);
            };
            check3("x", &x);
            check3("initial_conv_state", &state.conv);
            check3("initial_ssm_state", &state.ssm);
            let check_linear = |key: &str, module: &Linear| {
                let gradient = module.weight.grad(&gradients).expect(key).transpose();
                let weight = format!("grad.{key}.weight");
                assert_fixture(&name, &fixture, &weight, gradient, MIXER_F32_GRADIENT);
                if let Some(bias) = &module.bias {
                    let gradient = bias.grad(&gradients).expect(key);
                    let bias = format!("grad.{key}.bias");
                    assert_fixture(&name, &fixture, &bias, gradient, MIXER_F32_GRADIENT);
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
                MIXER_F32_GRADIENT,
            );
            if let Some(bias) = &module.conv_bias {
                let gradient = bias.grad(&gradients).expect("conv1d.bias");
                let tolerance = MIXER_F32_GRADIENT;
                assert_fixture(&name, &fixture, "grad.conv1d.bias", gradient, tolerance);
            }
            let gradient = module.a_log.grad(&gradients).expect("A_log");
            assert_fixture(&name, &fixture, "grad.A_log", gradient, MIXER_F32_GRADIENT);
            let gradient = module.d.grad(&gradients).expect("D");
            assert_fixture(&name, &fixture, "grad.D", gradient, MIXER_F32_GRADIENT);
        }
    }
}

#[test]
fn initialisation_is_the_official_one() {
    let device = device();
    let config = Mamba1Config::new(64);
    let module = seeded(11, &device, |device| config.init(device));
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
