//! Times the causal convolution on the runtime built in, after a proof against the f64 oracle.
//!
//! ```text
//! cargo run --release -p mamba-kernels --features oracle,cuda-cpp --example time_causal_conv1d
//! cargo run --release -p mamba-kernels --features oracle,vulkan --example time_causal_conv1d
//! ```
//!
//! `-- --help` tells the options.

#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use mamba_kernels::causal_conv1d::{
    ConvGradients, ConvInputs, ConvOutputs, ConvUpstream, causal_conv1d, causal_conv1d_backward,
};
use support::conv::{Case, Numbers, Options, SHAPES};
use timing::{Peer, Shape, against, empty, filled, sampled_ms, spread};

const KINDS: [FloatKind; 2] = [FloatKind::F32, FloatKind::BF16];

const NONE: Peer = [[None; 2]; 2];

/// What the official kernels take, forward and backward, at each of [`SHAPES`].
const PEERS: [Peer; 4] = [[[None; 2], [Some(0.044), Some(0.064)]], NONE, NONE, NONE];

const USAGE: &str = "\
Times the causal convolution, forward and backward, after a proof against the f64 oracle.

  --runtime default|cuda|wgpu    one of those built in
  --shape BxDxLxW                batch, channels, positions, taps; four shapes without it";

fn main() {
    let known: Vec<_> = SHAPES.into_iter().zip(PEERS).collect();
    let (device, shapes) = timing::arguments(USAGE, &known, |_, _| Ok(false));
    let client = device.client();
    println!("{} on {}", client.name(), client.properties().identity.name);
    for kind in KINDS {
        if has(&client, kind) {
            prove(&client, kind);
        }
    }

    println!("B x D x L x W, dtype: forward ms (peer, GB/s); backward ms (peer, GB/s)");
    for (dims, peer) in shapes {
        for (kind, peer) in KINDS.into_iter().zip(peer) {
            if !has(&client, kind) {
                println!("{dims:?} {kind:?}: not on this device");
                continue;
            }
            let problem = Problem::new(&client, dims, kind);
            let forward = sampled_ms(&client, || problem.forward(&client));
            let backward = sampled_ms(&client, || problem.backward(&client));
            let [batch, channels, seq_len, _] = dims;
            let bytes = (batch * channels * seq_len * ElemType::Float(kind).size()) as f64;
            println!(
                "{dims:?} {kind:?}: {} ({}, {:.0} GB/s); {} ({}, {:.0} GB/s)",
                spread(forward),
                against(forward, peer[0]),
                2.0 * bytes / forward[1] / 1e6,
                spread(backward),
                against(backward, peer[1]),
                3.0 * bytes / backward[1] / 1e6,
            );
        }
    }
}

fn has(client: &Client, kind: FloatKind) -> bool {
    support::has_type(client, ElemType::Float(kind))
}

/// What is timed against the oracle, at a shape of several blocks and runs.
fn prove(client: &Client, dtype: FloatKind) {
    let case = Case {
        dtype,
        ..Case::new([2, 300, 72, 4], Options::ALL)
    };
    let numbers = Numbers::new(case);
    // bf16 keeps eight bits of a result.
    let allowed = if dtype == FloatKind::BF16 { 4e-3 } else { 2e-5 };
    let worst = support::worst_error(&numbers.kernels(client), &numbers.oracle(), allowed);
    println!("values and gradients of {case:?} are within {worst:.1e} of the oracle");
}

/// The buffers of one shape, with bias and SiLU.
struct Problem {
    inputs: ConvInputs,
    outputs: ConvOutputs,
    upstream: ConvUpstream,
    gradients: ConvGradients,
}

impl Problem {
    fn new(client: &Client, [batch, channels, seq_len, width]: Shape, kind: FloatKind) -> Self {
        let sequence = [batch, seq_len, channels];
        let f32_kind = FloatKind::F32;
        Self {
            inputs: ConvInputs {
                x: filled(client, &sequence, kind, [-1.0, 1.0]),
                weight: filled(client, &[channels, width], f32_kind, [-0.5, 0.5]),
                bias: Some(filled(client, &[channels], f32_kind, [-0.5, 0.5])),
                initial_state: None,
                seq_idx: None,
                silu: true,
                dtype: ElemType::Float(kind),
                index_dtype: ElemType::Int(IntKind::I32),
            },
            outputs: ConvOutputs {
                y: empty(client, &sequence, kind),
                final_state: Some(empty(client, &[batch, width - 1, channels], f32_kind)),
            },
            upstream: ConvUpstream {
                y: filled(client, &sequence, kind, [-1.0, 1.0]),
                final_state: None,
            },
            gradients: ConvGradients {
                x: empty(client, &sequence, kind),
                weight: empty(client, &[channels, width], f32_kind),
                bias: Some(empty(client, &[channels], f32_kind)),
                initial_state: None,
            },
        }
    }

    fn forward(&self, client: &Client) {
        causal_conv1d(client, self.inputs.clone(), self.outputs.clone())
            .expect("the convolution launches");
    }

    fn backward(&self, client: &Client) {
        causal_conv1d_backward(
            client,
            self.inputs.clone(),
            self.upstream.clone(),
            self.gradients.clone(),
        )
        .expect("the gradients launch");
    }
}
