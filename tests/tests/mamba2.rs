//! The Mamba-2 block against PyTorch.
#![recursion_limit = "256"]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use mamba_core::{Mamba2, Mamba2Config, Mamba2State};
use mamba_tests::devices::{autodiff_devices, device, seeded};
use mamba_tests::fixtures::{self, Fixture};
use mamba_tests::tensors::{assert_fixture, float, int, values};
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

fn block(fixture: &Fixture, device: &Device) -> Mamba2 {
    let size = |key: &str| fixture.setting::<usize>(key);
    let flag = |key: &str| fixture.setting::<bool>(key);
    let config = Mamba2Config::new(size("d_model"))
        .with_d_state(size("d_state"))
        .with_d_conv(size("d_conv"))
        .with_expand(size("expand"))
        .with_headdim(size("headdim"))
        .with_d_ssm(Some(size("headdim") * size("nheads")))
        .with_ngroups(size("ngroups"))
        .with_d_has_hdim(flag("d_has_hdim"))
        .with_rmsnorm(flag("rmsnorm"))
        .with_norm_before_gate(flag("norm_before_gate"))
        .with_dt_limit(["dt_limit_min", "dt_limit_max"].map(|key| fixture.setting(key)))
        .with_bias(flag("bias"))
        .with_conv_bias(flag("conv_bias"))
        .with_chunk_size(8);
    let vector = |key: &str| {
        let array = fixture.find_floats(key)?;
        Some(parameter(float::<1>(array, device)))
    };
    let module = seeded(1, device, |device| config.init(device));
    assert_eq!(module.in_proj.bias.is_some(), flag("bias"));
    assert_eq!(module.conv_bias.is_some(), flag("conv_bias"));
    assert_eq!(module.norm_weight.is_some(), flag("rmsnorm"));
    let conv = float::<3>(fixture.floats("conv1d.weight"), device).squeeze_dim::<2>(1);
    assert_eq!(module.conv_weight.dims(), conv.dims());
    let in_proj = linear(fixture, "in_proj", device);
    assert_eq!(module.in_proj.weight.dims(), in_proj.weight.dims());
    let mut module = module;
    module.in_proj = in_proj;
    module.conv_weight = parameter(conv);
    module.conv_bias = vector("conv1d.bias");
    module.dt_bias = vector("dt_bias").unwrap();
    module.a_log = vector("A_log").unwrap();
    module.d = vector("D").unwrap();
    module.norm_weight = vector("norm.weight");
    module.out_proj = linear(fixture, "out_proj", device);
    module
}

#[test]
fn the_block_equals_pytorch() {
    for device in autodiff_devices() {
        for name in fixtures::names("mamba2_block_") {
            let fixture = Fixture::load(&name);
            let module = block(&fixture, &device);
            let leaf = |key: &str| float::<3>(fixture.floats(key), &device).require_grad();
            let x = leaf("x");
            let state = Mamba2State {
                conv: leaf("initial_conv_state"),
                ssm: float(fixture.floats("initial_ssm_state"), &device).require_grad(),
            };
            let (y, last) = match fixture.find_ints("seq_idx") {
                Some(ids) => {
                    module.forward_packed(x.clone(), int(ids, &device), Some(state.clone()))
                }
                None => module.forward(x.clone(), Some(state.clone())),
            };
            let values3 = |key: &str, got: Tensor<3>| {
                assert_fixture(&name, &fixture, key, got.inner(), MIXER_F32);
            };
            values3("y", y.clone());
            values3("final_conv_state", last.conv.clone());
            let ssm = last.ssm.clone().inner();
            assert_fixture(&name, &fixture, "final_ssm_state", ssm, MIXER_F32);

            let weighted =
                |key: &str, output: Tensor<3>| (output * float(fixture.floats(key), &device)).sum();
            let of_state = last.ssm * float(fixture.floats("grad_final_ssm_state"), &device);
            let loss = weighted("grad_y", y)
                + weighted("grad_final_conv_state", last.conv)
                + of_state.sum();
            let gradients = loss.backward();

            fn check<const D: usize>(name: &str, fixture: &Fixture, key: &str, got: Tensor<D>) {
                let key = format!("grad.{key}");
                assert_fixture(name, fixture, &key, got, MIXER_F32_GRADIENT);
            }
            let check1 = |key: &str, parameter: &Param<Tensor<1>>| {
                check(&name, &fixture, key, parameter.grad(&gradients).expect(key));
            };
            let check_linear = |key: &str, module: &Linear| {
                let gradient = module.weight.grad(&gradients).expect(key).transpose();
                check(&name, &fixture, &format!("{key}.weight"), gradient);
                if let Some(bias) = &module.bias {
                    check1(&format!("{key}.bias"), bias);
                }
            };
            check(&name, &fixture, "x", x.grad(&gradients).expect("x"));
            let conv = state.conv.grad(&gradients).expect("window");
            check(&name, &fixture, "initial_conv_state", conv);
            let ssm = state.ssm.grad(&gradients).expect("state");
            check(&name, &fixture, "initial_ssm_state", ssm);
            check_linear("in_proj", &module.in_proj);
            check_linear("out_proj", &module.out_proj);
            let filters = module.conv_weight.grad(&gradients).expect("filters");
            check(
                &name,
                &fixture,
                "conv1d.weight",
                filters.unsqueeze_dim::<3>(1),
            );
            if let Some(bias) = &module.conv_bias {
                check1("conv1d.bias", bias);
            }
            if let Some(weight) = &module.norm_weight {
                check1("norm.weight", weight);
            }
            check1("dt_bias", &module.dt_bias);
            check1("A_log", &module.a_log);
            check1("D", &module.d);
        }
    }
}

#[test]
fn initialisation_is_the_official_one() {
    let device = device();
    let config = Mamba2Config::new(256).with_d_state(16).with_headdim(8);
    let module = seeded(11, &device, |device| config.init(device));
    let (d_inner, nheads, conv_dim) = (512, 64, 512 + 32);
    assert_eq!(config.nheads(), nheads);
    assert_eq!(
        module.num_params(),
        256 * (d_inner + conv_dim + nheads) + conv_dim * 5 + 3 * nheads + d_inner + d_inner * 256
    );

    let a: Vec<f32> = values(module.a_log.val().exp());
    assert!(a.iter().all(|a| (0.999..16.001).contains(a)), "{a:?}");
    let (low, high) = a.iter().fold((16.0f32, 0.0f32), |(low, high), a| {
        (low.min(*a), high.max(*a))
    });
    assert!(
        low < 3.0 && high > 14.0,
        "uniform over the range: {low} .. {high}"
    );
    assert!(values(module.d.val()).iter().all(|d| *d == 1.0));
    let norm = module.norm_weight.as_ref().unwrap().val();
    assert!(values(norm).iter().all(|weight| *weight == 1.0));
    let dt: Vec<f64> = values(module.dt_bias.val())
        .iter()
        .map(|bias| f64::from(*bias).exp().ln_1p())
        .collect();
    assert!(
        dt.iter().all(|dt| (0.000_999..0.1001).contains(dt)),
        "{dt:?}"
    );
    let (low, high) = dt.iter().fold((1.0f64, 0.0f64), |(low, high), dt| {
        (low.min(*dt), high.max(*dt))
    });
    assert!(
        low < 0.003 && high > 0.04,
        "log-uniform over the range: {low} .. {high}"
    );
    let bound = |tensor: Tensor<2>| tensor.abs().max().into_scalar::<f32>();
    let (filters, weights) = (
        bound(module.conv_weight.val()),
        bound(module.in_proj.weight.val()),
    );
    assert!(
        (0.48..=0.5).contains(&filters),
        "d_conv^-1/2, got {filters}"
    );
    assert!(
        (0.06..=0.0625).contains(&weights),
        "d_model^-1/2, got {weights}"
    );
    let config = config.with_conv_init(Some(0.1));
    let custom = seeded(12, &device, |device| config.init(device));
    assert!(
        (0.09..=0.1).contains(&bound(custom.conv_weight.val())),
        "conv_init"
    );
}

#[test]
fn a_config_that_cannot_work_names_the_field() {
    let config = || Mamba2Config::new(64);
    for (config, field) in [
        (config().with_headdim(48), "headdim"),
        (config().with_ngroups(3), "ngroups"),
        (config().with_d_state(300), "d_state"),
        (config().with_d_ssm(Some(256)), "d_ssm"),
        (config().with_d_conv(1), "d_conv"),
        (config().with_chunk_size(0), "chunk_size"),
        (config().with_a_init_range([0.0, 16.0]), "a_init_range"),
        (config().with_dt_limit([2.0, 1.0]), "dt_limit"),
    ] {
        let problem = config.validate().unwrap_err();
        assert!(problem.contains(field), "{field}: {problem}");
    }
}
