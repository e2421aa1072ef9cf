//! Runs the gradients of Mamba-2's scan on a device and their oracle on the host, over the same numbers.

use cubecl::client::Client;
use cubecl::ir::FloatKind;
use cubecl::prelude::*;
use cubecl::zspace::Shape;
use mamba_kernels::oracle;
use mamba_kernels::ssd::{
    SsdGradients, SsdOutputs, SsdUpstream, Strategy, ssd_as, ssd_backward_as,
};

use super::ssd::{Case, Numbers, Skip};
use super::{Named, Output, Uploader, read_all, round, uniform};

/// What comes from above, exactly representable in the case's dtype.
pub struct Upstream {
    pub grad_y: Vec<f32>,
    pub grad_final_state: Option<Vec<f32>>,
}

impl Upstream {
    pub fn new(case: &Case, of_final_state: bool) -> Self {
        let states = case.batch * case.nheads * case.headdim * case.d_state;
        Self {
            grad_y: round(uniform(71, values(case), -1.0, 1.0), case.dtype),
            grad_final_state: of_final_state.then(|| uniform(72, states, -1.0, 1.0)),
        }
    }

    /// What kernels made of it, and what the oracle does. The gradient of `a` is in units of
    /// [its terms](mamba_kernels::oracle::SsdGradients::a_scale), which cancel.
    pub fn beside_oracle(&self, numbers: &Numbers, mut got: Vec<Named>) -> [Vec<Named>; 2] {
        let all = |values: &Vec<f32>| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
        let grad_final = self.grad_final_state.as_ref().map(all);
        let grads = numbers.with_oracle(|inputs| {
            oracle::ssd_backward(inputs, &all(&self.grad_y), grad_final.as_deref())
        });
        let mut named = vec![
            ("grad_x", grads.x),
            ("grad_dt", grads.dt),
            ("grad_a", grads.a),
            ("grad_b", grads.b),
            ("grad_c", grads.c),
        ];
        named.extend(grads.d.map(|it| ("grad_d", it)));
        named.extend(grads.dt_bias.map(|it| ("grad_dt_bias", it)));
        named.extend(grads.initial_state.map(|it| ("grad_initial_state", it)));
        for (_, values) in [&mut got, &mut named].map(|it| of_a(it)) {
            for (value, scale) in values.iter_mut().zip(&grads.a_scale) {
                // A head of no terms has nothing to be measured by.
                *value /= if *scale > 0.0 { *scale } else { 1.0 };
            }
        }
        [got, named]
    }

    /// What the kernels make of it, from checkpoints of the forward kernels.
    pub fn kernels(&self, numbers: &Numbers, client: &Client, strategy: Strategy) -> Vec<Named> {
        self.kernels_on(numbers, &numbers.uploader(client), strategy)
    }

    /// The same, with the buffers that `device` makes.
    pub fn kernels_on(
        &self,
        numbers: &Numbers,
        device: &Uploader,
        strategy: Strategy,
    ) -> Vec<Named> {
        let case = numbers.case;
        let sequence = [case.batch, case.seq_len, case.nheads, case.headdim];
        let state = [case.batch, case.nheads, case.headdim, case.d_state];
        let chunks = case.seq_len.div_ceil(case.chunk_size);
        let saved = [case.batch, chunks, case.nheads, case.headdim, case.d_state];
        let checkpoints = device.poisoned_batch(&saved, FloatKind::F32);
        let outputs = SsdOutputs {
            y: device.poisoned_batch(&sequence, case.dtype).binding(),
            final_state: device.poisoned_batch(&state, FloatKind::F32).binding(),
            checkpoints: Some(checkpoints.binding()),
        };
        let inputs = numbers.inputs(device);
        ssd_as(device.client, inputs, outputs, strategy).expect("the scan launches");
        self.kernels_from(numbers, device, checkpoints.binding(), strategy)
    }

    /// The same from the oracle's checkpoints: no scan is compiled. For a batch of one.
    pub fn kernels_alone(
        &self,
        numbers: &Numbers,
        client: &Client,
        strategy: Strategy,
    ) -> Vec<Named> {
        let case = numbers.case;
        let chunks = case.seq_len.div_ceil(case.chunk_size);
        let states = (0..chunks).flat_map(|chunk| match chunk {
            0 if case.options.initial_state => numbers.initial_state.clone(),
            0 => vec![0.0; numbers.initial_state.len()],
            _ => {
                let state = &numbers.beginning(chunk * case.chunk_size).oracle()[1].1;
                state.iter().map(|&it| it as f32).collect()
            }
        });
        let device = numbers.uploader(client);
        let saved = [case.batch, chunks, case.nheads, case.headdim, case.d_state];
        let checkpoints = device.whole(&states.collect::<Vec<_>>(), &saved, FloatKind::F32);
        self.kernels_from(numbers, &device, checkpoints, strategy)
    }

    fn kernels_from(
        &self,
        numbers: &Numbers,
        device: &Uploader,
        checkpoints: TensorBinding,
        strategy: Strategy,
    ) -> Vec<Named> {
        let case = numbers.case;
        let client = device.client;
        let inputs = numbers.inputs(device);
        let sequence = [case.batch, case.seq_len, case.nheads, case.headdim];
        let projection = [case.batch, case.seq_len, case.ngroups, case.d_state];
        let steps = [case.batch, case.seq_len, case.nheads];
        let state = [case.batch, case.nheads, case.headdim, case.d_state];
        let f32_kind = FloatKind::F32;
        let grad_x = device.poisoned_batch(&sequence, case.dtype);
        let grad_dt = device.poisoned_batch(&steps, case.dtype);
        let grad_a = device.poisoned(&[case.nheads], f32_kind);
        let grad_b = device.poisoned_batch(&projection, case.dtype);
        let grad_c = device.poisoned_batch(&projection, case.dtype);
        let grad_d = match case.options.skip {
            Skip::None => None,
            Skip::Heads => Some(device.poisoned(&[case.nheads], f32_kind)),
            Skip::Channels => Some(device.poisoned(&[case.nheads, case.headdim], f32_kind)),
        };
        let options = case.options;
        let grad_bias = (options.dt_bias).then(|| device.poisoned(&[case.nheads], f32_kind));
        let grad_initial = (options.initial_state).then(|| device.poisoned_batch(&state, f32_kind));
        let target = |output: &Option<Output>| output.as_ref().map(Output::binding);
        let [batch, seq_len, heads, width] = sequence;
        let rows = device.rows(&self.grad_y, [batch, seq_len, heads * width]);
        let strides = [rows.strides[0], rows.strides[1], width, 1];
        let upstream = SsdUpstream {
            checkpoints,
            y: TensorBinding {
                shape: Shape::from(vec![rows.shape[0], seq_len, heads, width]),
                strides: strides.to_vec().into(),
                ..rows
            },
            final_state: (self.grad_final_state.as_ref())
                .map(|it| device.batched(f32::as_bytes(it), &state)),
        };
        let gradients = SsdGradients {
            x: grad_x.binding(),
            dt: grad_dt.binding(),
            a: grad_a.binding(),
            b: grad_b.binding(),
            c: grad_c.binding(),
            d: target(&grad_d),
            dt_bias: target(&grad_bias),
            initial_state: target(&grad_initial),
        };
        ssd_backward_as(client, inputs, upstream, gradients, strategy)
            .expect("the gradients launch");
        let named = vec![
            ("grad_x", Some(grad_x)),
            ("grad_dt", Some(grad_dt)),
            ("grad_a", Some(grad_a)),
            ("grad_b", Some(grad_b)),
            ("grad_c", Some(grad_c)),
            ("grad_d", grad_d),
            ("grad_dt_bias", grad_bias),
            ("grad_initial_state", grad_initial),
        ];
        read_all(client, named)
    }
}

fn of_a(named: &mut [Named]) -> &mut Named {
    let mut all = named.iter_mut();
    all.find(|it| it.0 == "grad_a")
        .expect("the gradient of `a`")
}

fn values(case: &Case) -> usize {
    case.batch * case.seq_len * case.nheads * case.headdim
}

/// What a gradient may be off, as [`assert_close`](super::assert_close) takes it. In f32 there is room for another order of
/// sums, which are sums over positions here; halves are rounded as factors of products, twice in a row.
pub fn gradient_tolerance(case: &Case) -> [f64; 2] {
    match case.dtype {
        FloatKind::F16 => [2e-3, 2e-3],
        FloatKind::BF16 => [1.2e-2, 1.2e-2],
        _ => [2e-5, 1e-5],
    }
}
