//! Times Mamba-2's scan on the runtime built in, after a proof against the f64 oracle.
//!
//! ```text
//! cargo run --release -p mamba-kernels --features oracle,cuda-cpp --example time_ssd
//! cargo run --release -p mamba-kernels --features oracle,vulkan --example time_ssd
//! ```
//!
//! `-- --help` tells the options.

#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::TensorBinding;
use mamba_kernels::ssd::{
    SsdGradients, SsdInputs, SsdOutputs, SsdUpstream, Strategy, ssd_as, ssd_backward_as,
};
use support::ssd::{Case, Numbers, Options, SHAPES, Skip};
use support::ssd_gradients::{Upstream, gradient_tolerance};
use timing::{Peer, Reserved, against, empty, filled, sampled_ms, spread};

/// The official chunk.
const CHUNK_SIZE: usize = 256;

/// What Triton's `mamba_chunk_scan_combined` takes forward and forward with backward, at each of [`SHAPES`], in bf16.
const PEERS: [Peer; 3] = [
    official([0.256, 1.18]),
    official([0.394, 1.74]),
    official([1.20, 5.01]),
];

const fn official([forward, both]: [f64; 2]) -> Peer {
    [[None, None], [Some(forward), Some(both)]]
}

const USAGE: &str = "\
Times Mamba-2's scan after a proof against the f64 oracle.

  --runtime default|cuda|wgpu    one of those built in
  --dtype f32|bf16|f16           of the sequences; f32 and bf16 without it
  --segments COUNT               of time, at once; as many as fill the device without it
  --products units|auto          whether tensor cores stay idle
  --shape BxLxHxPxN              batch, positions, heads, their channels, states; three shapes without it";

fn main() {
    let mut strategy = Strategy::default();
    let mut kinds = vec![FloatKind::F32, FloatKind::BF16];
    let known: Vec<_> = SHAPES.into_iter().zip(PEERS).collect();
    let (device, shapes) = timing::arguments(USAGE, &known, |flag, value| {
        match (flag, value) {
            ("--dtype", "f32") => kinds = vec![FloatKind::F32],
            ("--dtype", "bf16") => kinds = vec![FloatKind::BF16],
            ("--dtype", "f16") => kinds = vec![FloatKind::F16],
            ("--segments", count) => {
                let count = count.parse().map_err(|_| "--segments: a number")?;
                strategy.segments = Some(count);
            }
            ("--products", "units") => strategy.tensor_cores = false,
            ("--products", "auto") => strategy.tensor_cores = true,
            ("--dtype" | "--products", _) => return Err(format!("{flag}: not {value}")),
            _ => return Ok(false),
        }
        Ok(true)
    });
    let client = device.client();
    println!(
        "{} on {}, {strategy:?}",
        client.name(),
        client.properties().identity.name
    );
    kinds.retain(|&kind| {
        let has = support::has_type(&client, ElemType::Float(kind));
        if !has {
            println!("{kind:?}: not on this device");
        }
        has
    });
    let mut proved = Vec::new();
    for &([_, _, _, headdim, d_state], _) in &shapes {
        if proved.contains(&[headdim, d_state]) {
            continue;
        }
        proved.push([headdim, d_state]);
        for &kind in &kinds {
            prove(&client, strategy, kind, headdim, d_state);
        }
    }

    println!(
        "B x L x H x P x N, dtype: forward ms (peer, GB/s); with backward ms (peer); memory beside inputs"
    );
    for (dims, peer) in shapes {
        for &kind in &kinds {
            let peer = match kind {
                FloatKind::F32 => peer[0],
                FloatKind::BF16 => peer[1],
                _ => [None, None],
            };
            let reserved = Reserved::new(&client);
            let problem = Problem::new(&client, dims, kind);
            let forward = sampled_ms(&client, || problem.forward(&client, strategy, false));
            let both = sampled_ms(&client, || {
                problem.forward(&client, strategy, true);
                problem.backward(&client, strategy);
            });
            let [batch, seq_len, nheads, headdim, d_state] = dims;
            let values = batch * seq_len * (2 * nheads * headdim + 2 * d_state + nheads);
            let bytes = values * ElemType::Float(kind).size();
            let gb_per_s = bytes as f64 / forward[1] / 1e6;
            println!(
                "{dims:?} {kind:?}: {} ({}, {gb_per_s:.0} GB/s); {} ({}); {:.0} MiB",
                spread(forward),
                against(forward, peer[0]),
                spread(both),
                against(both, peer[1]),
                reserved.beside(&client, problem.inputs(kind)),
            );
        }
    }
}

/// The kernels that are timed, with the options of [`Problem`], against the oracle at a shape of several chunks.
fn prove(client: &Client, strategy: Strategy, dtype: FloatKind, headdim: usize, d_state: usize) {
    let options = Options {
        skip: Skip::Heads,
        dt_bias: true,
        dt_softplus: true,
        ..Options::NONE
    };
    let case = Case {
        dtype,
        ngroups: 1,
        chunk_size: CHUNK_SIZE,
        ..Case::new([2, 600, 6, headdim, d_state], options)
    };
    let numbers = Numbers::new(case);
    let got = numbers.values(client, strategy);
    let allowed = match dtype {
        FloatKind::F32 => 2e-5,
        // Factors of tensor-core products keep as many bits as the sequences.
        FloatKind::F16 => 1e-3,
        _ => 8e-3,
    };
    let worst = support::worst_error(&got, &numbers.oracle(), allowed);
    println!("values of {case:?} are within {worst:.1e} of the oracle");
    let upstream = Upstream::new(&case, false);
    let got = upstream.kernels(&numbers, client, strategy);
    let allowed = gradient_tolerance(&case)[1];
    let [got, want] = upstream.beside_oracle(&numbers, got);
    let worst = support::worst_error(&got, &want, allowed);
    println!("its gradients are within {worst:.1e}");
}

/// The buffers of one shape, in one group, with D, bias and softplus.
struct Problem {
    inputs: SsdInputs,
    outputs: SsdOutputs,
    upstream: SsdUpstream,
    gradients: SsdGradients,
}

impl Problem {
    fn new(
        client: &Client,
        [batch, seq_len, nheads, headdim, d_state]: [usize; 5],
        kind: FloatKind,
    ) -> Self {
        let wide = [batch, seq_len, nheads, headdim];
        let narrow = [batch, seq_len, 1, d_state];
        let buffer = |shape: &[usize], kind: FloatKind, low: f32, high: f32| {
            filled(client, shape, kind, [low, high])
        };
        let f32_kind = FloatKind::F32;
        let chunks = seq_len.div_ceil(CHUNK_SIZE);
        let checkpoints = empty(client, &[batch, chunks, nheads, headdim, d_state], f32_kind);
        let empty = |shape: &[usize], kind: FloatKind| empty(client, shape, kind);
        Self {
            inputs: SsdInputs {
                x: buffer(&wide, kind, -1.0, 1.0),
                dt: buffer(&[batch, seq_len, nheads], kind, -4.0, 1.0),
                a: buffer(&[nheads], f32_kind, -2.0, -0.1),
                b: buffer(&narrow, kind, -1.0, 1.0),
                c: buffer(&narrow, kind, -1.0, 1.0),
                d: Some(buffer(&[nheads], f32_kind, -1.0, 1.0)),
                dt_bias: Some(buffer(&[nheads], f32_kind, -0.5, 0.5)),
                initial_state: None,
                seq_idx: None,
                dt_softplus: true,
                dt_limit: (0.0, f32::INFINITY),
                chunk_size: CHUNK_SIZE,
                dtype: ElemType::Float(kind),
                index_dtype: ElemType::Int(IntKind::I32),
            },
            outputs: SsdOutputs {
                y: empty(&wide, kind),
                final_state: empty(&[batch, nheads, headdim, d_state], f32_kind),
                checkpoints: Some(checkpoints.clone()),
            },
            upstream: SsdUpstream {
                checkpoints,
                y: buffer(&wide, kind, -1.0, 1.0),
                final_state: None,
            },
            gradients: SsdGradients {
                x: empty(&wide, kind),
                dt: empty(&[batch, seq_len, nheads], kind),
                a: empty(&[nheads], f32_kind),
                b: empty(&narrow, kind),
                c: empty(&narrow, kind),
                d: Some(empty(&[nheads], f32_kind)),
                dt_bias: Some(empty(&[nheads], f32_kind)),
                initial_state: None,
            },
        }
    }

    /// What is there before, the gradient of y included.
    fn inputs(&self, kind: FloatKind) -> Vec<(&TensorBinding, FloatKind)> {
        let SsdInputs { x, dt, b, c, .. } = &self.inputs;
        let sequences = [x, dt, b, c, &self.upstream.y];
        sequences.map(|tensor| (tensor, kind)).to_vec()
    }

    fn forward(&self, client: &Client, strategy: Strategy, save: bool) {
        let outputs = SsdOutputs {
            checkpoints: self.outputs.checkpoints.clone().filter(|_| save),
            ..self.outputs.clone()
        };
        ssd_as(client, self.inputs.clone(), outputs, strategy).expect("the scan launches");
    }

    fn backward(&self, client: &Client, strategy: Strategy) {
        ssd_backward_as(
            client,
            self.inputs.clone(),
            self.upstream.clone(),
            self.gradients.clone(),
            strategy,
        )
        .expect("the gradients launch");
    }
}
