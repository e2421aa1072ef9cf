//! The f64 oracle against PyTorch: values, states and every gradient.

use mamba_kernels::oracle::{
    CausalConv1dInputs, LinearCrossEntropyInputs, SelectiveScanInputs, SsdInputs, causal_conv1d,
    causal_conv1d_backward, linear_cross_entropy, linear_cross_entropy_backward, selective_scan,
    selective_scan_backward, ssd, ssd_backward,
};
use mamba_tests::fixtures::{self, Fixture};
use mamba_tests::tolerances::{ORACLE, assert_close};

/// A fixture's tensors in the oracle's precision.
struct Doubles<'a> {
    name: &'a str,
    fixture: Fixture,
}

impl<'a> Doubles<'a> {
    fn load(name: &'a str) -> Self {
        Self {
            name,
            fixture: Fixture::load(name),
        }
    }

    fn required(&self, key: &str) -> Vec<f64> {
        self.fixture.floats(key).to_f64()
    }

    fn optional(&self, key: &str) -> Option<Vec<f64>> {
        Some(self.fixture.find_floats(key)?.to_f64())
    }

    fn shape<const RANK: usize>(&self, key: &str) -> [usize; RANK] {
        let shape = &self.fixture.floats(key).shape;
        shape
            .as_slice()
            .try_into()
            .expect("the fixture's README gives the rank")
    }

    fn seq_idx(&self) -> Option<&[i64]> {
        Some(&self.fixture.find_ints("seq_idx")?.values)
    }

    #[track_caller]
    fn assert(&self, key: &str, got: &[f64]) {
        let name = format!("{}: {key}", self.name);
        assert_close(&name, got, self.fixture.floats(key), ORACLE);
    }

    /// An optional input has a gradient exactly if the fixture has one.
    #[track_caller]
    fn assert_optional(&self, key: &str, got: Option<Vec<f64>>) {
        assert_eq!(
            got.is_some(),
            self.fixture.find_floats(key).is_some(),
            "{}: {key}",
            self.name
        );
        if let Some(got) = got {
            self.assert(key, &got);
        }
    }
}

#[test]
fn selective_scan_equals_pytorch() {
    for name in fixtures::names("selective_scan_") {
        let fixture = Doubles::load(&name);
        let [batch, seq_len, d_inner] = fixture.shape("u");
        let [_, d_state] = fixture.shape("a");
        let [d, z, delta_bias, initial_state] =
            ["d", "z", "delta_bias", "initial_state"].map(|key| fixture.optional(key));
        let inputs = SelectiveScanInputs {
            batch,
            seq_len,
            d_inner,
            d_state,
            u: &fixture.required("u"),
            delta: &fixture.required("delta"),
            a: &fixture.required("a"),
            b: &fixture.required("b"),
            c: &fixture.required("c"),
            d: d.as_deref(),
            z: z.as_deref(),
            delta_bias: delta_bias.as_deref(),
            initial_state: initial_state.as_deref(),
            seq_idx: fixture.seq_idx(),
            delta_softplus: fixture.fixture.setting("delta_softplus"),
        };
        let output = selective_scan(&inputs);
        fixture.assert("y", &output.y);
        fixture.assert("final_state", &output.final_state);

        let grad_final_state = fixture.optional("grad_final_state");
        let grad_y = fixture.required("grad_y");
        let grads = selective_scan_backward(&inputs, &grad_y, grad_final_state.as_deref());
        fixture.assert("grad.u", &grads.u);
        fixture.assert("grad.delta", &grads.delta);
        fixture.assert("grad.a", &grads.a);
        fixture.assert("grad.b", &grads.b);
        fixture.assert("grad.c", &grads.c);
        fixture.assert_optional("grad.d", grads.d);
        fixture.assert_optional("grad.z", grads.z);
        fixture.assert_optional("grad.delta_bias", grads.delta_bias);
        fixture.assert_optional("grad.initial_state", grads.initial_state);
    }
}

#[test]
fn ssd_equals_pytorch() {
    for name in fixtures::names("ssd_") {
        let fixture = Doubles::load(&name);
        let [batch, seq_len, nheads, headdim] = fixture.shape("x");
        let [_, _, ngroups, d_state] = fixture.shape("b");
        let [d, dt_bias, initial_state] =
            ["d", "dt_bias", "initial_state"].map(|key| fixture.optional(key));
        let inputs = SsdInputs {
            batch,
            seq_len,
            nheads,
            headdim,
            ngroups,
            d_state,
            x: &fixture.required("x"),
            dt: &fixture.required("dt"),
            a: &fixture.required("a"),
            b: &fixture.required("b"),
            c: &fixture.required("c"),
            d: d.as_deref(),
            dt_bias: dt_bias.as_deref(),
            initial_state: initial_state.as_deref(),
            seq_idx: fixture.seq_idx(),
            dt_softplus: fixture.fixture.setting("dt_softplus"),
            dt_limit: (
                fixture.fixture.setting("dt_limit_min"),
                fixture.fixture.setting("dt_limit_max"),
            ),
        };
        let output = ssd(&inputs);
        fixture.assert("y", &output.y);
        fixture.assert("final_state", &output.final_state);

        let grad_final_state = fixture.optional("grad_final_state");
        let grad_y = fixture.required("grad_y");
        let grads = ssd_backward(&inputs, &grad_y, grad_final_state.as_deref());
        fixture.assert("grad.x", &grads.x);
        fixture.assert("grad.dt", &grads.dt);
        fixture.assert("grad.a", &grads.a);
        fixture.assert("grad.b", &grads.b);
        fixture.assert("grad.c", &grads.c);
        fixture.assert_optional("grad.d", grads.d);
        fixture.assert_optional("grad.dt_bias", grads.dt_bias);
        fixture.assert_optional("grad.initial_state", grads.initial_state);
    }
}

#[test]
fn causal_conv1d_equals_pytorch() {
    for name in fixtures::names("causal_conv1d_") {
        let fixture = Doubles::load(&name);
        let [batch, seq_len, channels] = fixture.shape("x");
        let [_, width] = fixture.shape("weight");
        let [bias, initial_state] = ["bias", "initial_state"].map(|key| fixture.optional(key));
        let inputs = CausalConv1dInputs {
            batch,
            seq_len,
            channels,
            width,
            x: &fixture.required("x"),
            weight: &fixture.required("weight"),
            bias: bias.as_deref(),
            initial_state: initial_state.as_deref(),
            seq_idx: fixture.seq_idx(),
            activation: fixture.fixture.setting("activation"),
        };
        let output = causal_conv1d(&inputs);
        fixture.assert("y", &output.y);
        fixture.assert("final_state", &output.final_state);

        let grad_final_state = fixture.optional("grad_final_state");
        let grad_y = fixture.required("grad_y");
        let grads = causal_conv1d_backward(&inputs, &grad_y, grad_final_state.as_deref());
        fixture.assert("grad.x", &grads.x);
        fixture.assert("grad.weight", &grads.weight);
        fixture.assert_optional("grad.bias", grads.bias);
        fixture.assert_optional("grad.initial_state", grads.initial_state);
    }
}

#[test]
fn linear_cross_entropy_equals_pytorch() {
    for name in fixtures::names("linear_cross_entropy_") {
        let fixture = Doubles::load(&name);
        let [tokens, d_model] = fixture.shape("hidden");
        let [rows, _] = fixture.shape("weight");
        let inputs = LinearCrossEntropyInputs {
            tokens,
            d_model,
            rows,
            vocab_size: fixture.fixture.setting("vocab_size"),
            hidden: &fixture.required("hidden"),
            weight: &fixture.required("weight"),
            targets: &fixture.fixture.ints("targets").values,
            ignore_index: Some(fixture.fixture.setting("ignore_index")),
        };
        fixture.assert("loss", &[linear_cross_entropy(&inputs)]);

        let [grad_loss] = fixture.required("grad_loss")[..] else {
            panic!("{name}: grad_loss should be a scalar");
        };
        let grads = linear_cross_entropy_backward(&inputs, grad_loss);
        fixture.assert("grad.hidden", &grads.hidden);
        fixture.assert("grad.weight", &grads.weight);
    }
}
