//! Times the selective scan on the runtime built in, after a proof against the f64 oracle.
//!
//! ```text
//! cargo run --release -p mamba-kernels --features oracle,cuda --example time_selective_scan
//! cargo run --release -p mamba-kernels --features oracle,vulkan --example time_selective_scan
//! ```
//!
//! `-- --help` tells the options.

#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::TensorBinding;
use mamba_kernels::selective_scan::{
    CHECKPOINT_INTERVAL, ScanGradients, ScanInputs, ScanOutputs, ScanUpstream, Strategy,
    selective_scan, selective_scan_backward,
};
use support::scan::{Case, Numbers, Options, SHAPES};
use timing::{Peer, Reserved, against, empty, filled, sampled_ms, spread};

const KINDS: [FloatKind; 2] = [FloatKind::F32, FloatKind::BF16];

/// What the official kernels take, forward and forward with backward, at each of [`SHAPES`].
const PEERS: [Peer; 4] = [
    official([[0.879, 2.94], [0.448, 2.27]]),
    official([[0.311, 1.05], [0.149, 0.709]]),
    official([[1.65, 5.18], [0.947, 4.17]]),
    official([[3.96, 12.6], [2.23, 10.0]]),
];

const fn official([[a, b], [c, d]]: [[f64; 2]; 2]) -> Peer {
    [[Some(a), Some(b)], [Some(c), Some(d)]]
}

const USAGE: &str = "\
Times the selective scan, forward and with backward, after a proof against the f64 oracle.

  --runtime default|cuda|wgpu          one of those built in
  --strategy auto|sequential|CHUNKS    how time is cut, CHUNKS is a number
  --shape BxDxLxN                      batch, channels, positions, states; four shapes without it";

fn parse_strategy(value: &str) -> Result<Strategy, String> {
    Ok(match value {
        "auto" => Strategy::Auto,
        "sequential" => Strategy::Sequential,
        chunks => Strategy::Chunked {
            chunks: chunks
                .parse()
                .map_err(|_| "--strategy: auto, sequential or a number of chunks")?,
        },
    })
}

fn main() {
    let mut strategy = Strategy::Auto;
    let known: Vec<_> = SHAPES.into_iter().zip(PEERS).collect();
    let (device, shapes) = timing::arguments(USAGE, &known, |flag, value| match flag {
        "--strategy" => {
            strategy = parse_strategy(value)?;
            Ok(true)
        }
        _ => Ok(false),
    });
    let client = device.client();
    println!(
        "{} on {}, {strategy:?}",
        client.name(),
        client.properties().identity.name
    );
    for kind in KINDS {
        if has(&client, kind) {
            prove(&client, strategy, kind);
        }
    }

    println!(
        "B x D x L x N, dtype: forward ms (peer, GB/s); with backward ms (peer); memory beside inputs"
    );
    for (dims, peer) in shapes {
        for (kind, peer) in KINDS.into_iter().zip(peer) {
            if !has(&client, kind) {
                println!("{dims:?} {kind:?}: not on this device");
                continue;
            }
            let reserved = Reserved::new(&client);
            let problem = Problem::new(&client, dims, kind);
            let forward = sampled_ms(&client, || problem.forward(&client, strategy, false));
            let both = sampled_ms(&client, || {
                problem.forward(&client, strategy, true);
                problem.backward(&client, strategy);
            });
            let [batch, d_inner, seq_len, d_state] = dims;
            let values = 4 * batch * seq_len * d_inner + 2 * batch * seq_len * d_state;
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

fn has(client: &Client, kind: FloatKind) -> bool {
    support::has_type(client, ElemType::Float(kind))
}

/// The strategy that is timed against the oracle, at a shape of several tiles, chunks and blocks.
fn prove(client: &Client, strategy: Strategy, dtype: FloatKind) {
    let case = Case {
        dtype,
        ..Case::new([2, 300, 72, 16], Options::ALL)
    };
    let numbers = Numbers::new(case);
    let got = numbers.kernels(client, strategy);
    // bf16 keeps eight bits of a result.
    let allowed = if dtype == FloatKind::BF16 { 4e-3 } else { 2e-5 };
    let worst = support::worst_error(&got, &numbers.oracle(), allowed);
    println!("values and gradients of {case:?} are within {worst:.1e} of the oracle");
}

/// The buffers of one shape, with z, D, delta bias and softplus.
struct Problem {
    inputs: ScanInputs,
    outputs: ScanOutputs,
    upstream: ScanUpstream,
    gradients: ScanGradients,
}

impl Problem {
    fn new(
        client: &Client,
        [batch, d_inner, seq_len, d_state]: [usize; 4],
        kind: FloatKind,
    ) -> Self {
        let wide = [batch, seq_len, d_inner];
        let narrow = [batch, seq_len, d_state];
        let state = [batch, d_inner, d_state];
        let buffer = |shape: &[usize], kind: FloatKind, low: f32, high: f32| {
            filled(client, shape, kind, [low, high])
        };
        let empty = |shape: &[usize], kind: FloatKind| empty(client, shape, kind);
        let f32_kind = FloatKind::F32;
        let checkpoints = empty(
            &[
                batch,
                seq_len.div_ceil(CHECKPOINT_INTERVAL),
                d_state,
                d_inner,
            ],
            f32_kind,
        );
        Self {
            inputs: ScanInputs {
                u: buffer(&wide, kind, -1.0, 1.0),
                delta: buffer(&wide, kind, -4.0, 1.0),
                a: buffer(&[d_inner, d_state], f32_kind, -2.0, -0.1),
                b: buffer(&narrow, kind, -1.0, 1.0),
                c: buffer(&narrow, kind, -1.0, 1.0),
                d: Some(buffer(&[d_inner], f32_kind, -1.0, 1.0)),
                z: Some(buffer(&wide, kind, -2.0, 2.0)),
                delta_bias: Some(buffer(&[d_inner], f32_kind, -0.5, 0.5)),
                initial_state: None,
                seq_idx: None,
                delta_softplus: true,
                dtype: ElemType::Float(kind),
                index_dtype: ElemType::Int(IntKind::I32),
            },
            outputs: ScanOutputs {
                y: empty(&wide, kind),
                final_state: empty(&state, f32_kind),
                checkpoints: Some(checkpoints.clone()),
            },
            upstream: ScanUpstream {
                checkpoints,
                y: buffer(&wide, kind, -1.0, 1.0),
                final_state: None,
            },
            gradients: ScanGradients {
                u: empty(&wide, kind),
                delta: empty(&wide, kind),
                a: empty(&[d_inner, d_state], f32_kind),
                b: empty(&narrow, kind),
                c: empty(&narrow, kind),
                d: Some(empty(&[d_inner], f32_kind)),
                z: Some(empty(&wide, kind)),
                delta_bias: Some(empty(&[d_inner], f32_kind)),
                initial_state: None,
            },
        }
    }

    /// What is there before, the gradient of y included.
    fn inputs(&self, kind: FloatKind) -> Vec<(&TensorBinding, FloatKind)> {
        let ScanInputs { u, delta, b, c, .. } = &self.inputs;
        let z = self.inputs.z.as_ref().expect("there is a gate");
        let sequences = [u, delta, b, c, z, &self.upstream.y];
        let sequences = sequences.map(|tensor| (tensor, kind));
        sequences
            .into_iter()
            .chain([(&self.inputs.a, FloatKind::F32)])
            .collect()
    }

    fn forward(&self, client: &Client, strategy: Strategy, save: bool) {
        let outputs = ScanOutputs {
            checkpoints: self.outputs.checkpoints.clone().filter(|_| save),
            ..self.outputs.clone()
        };
        selective_scan(client, self.inputs.clone(), outputs, strategy).expect("the scan launches");
    }

    fn backward(&self, client: &Client, strategy: Strategy) {
        selective_scan_backward(
            client,
            self.inputs.clone(),
            self.upstream.clone(),
            self.gradients.clone(),
            strategy,
        )
        .expect("the gradients launch");
    }
}
