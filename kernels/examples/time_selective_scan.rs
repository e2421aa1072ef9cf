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

use std::time::Instant;

use cubecl::client::Client;
use cubecl::features::TypeUsage;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use mamba_kernels::selective_scan::{
    CHECKPOINT_INTERVAL, ScanGradients, ScanInputs, ScanOutputs, ScanUpstream, Strategy,
    selective_scan, selective_scan_backward,
};
use support::{Case, Numbers, Options};

/// Batch, channels, positions and states, and what the official CUDA kernels take on an H100:
/// milliseconds forward and forward with backward, in f32 and in bf16.
const SHAPES: [([usize; 4], [[f64; 2]; 2]); 4] = [
    ([8, 1536, 2048, 16], [[0.879, 2.94], [0.448, 2.27]]),
    ([8, 2048, 512, 16], [[0.311, 1.05], [0.149, 0.709]]),
    ([1, 5120, 8192, 16], [[1.65, 5.18], [0.947, 4.17]]),
    ([1, 1536, 65536, 16], [[3.96, 12.6], [2.23, 10.0]]),
];

const WARM_UP: usize = 5;
const SAMPLES: usize = 15;
/// What a sample lasts at least. Its calls follow one another without a wait: launching the next hides
/// behind running the last, and waiting for the device once, which wgpu does in steps of milliseconds,
/// hardly counts.
const SAMPLE_MS: f64 = 150.0;

const USAGE: &str = "\
Times the selective scan, forward and with backward, after a proof against the f64 oracle.

  --runtime default|cuda|wgpu          one of those built in
  --strategy auto|sequential|CHUNKS    how time is cut, CHUNKS is a number
  --shape BxDxLxN                      batch, channels, positions, states; four shapes without it";

type Shape = [usize; 4];
type Peer = Option<[[f64; 2]; 2]>;

struct Arguments {
    device: cubecl::Device,
    strategy: Strategy,
    shapes: Vec<(Shape, Peer)>,
}

/// What the command line asks for, or what is wrong with it.
fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        device: cubecl::Device::default(),
        strategy: Strategy::Auto,
        shapes: SHAPES.map(|(dims, peer)| (dims, Some(peer))).to_vec(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{flag} needs a value"));
        match flag.as_str() {
            "--runtime" => parsed.device = parse_runtime(&value()?)?,
            "--strategy" => parsed.strategy = parse_strategy(&value()?)?,
            "--shape" => parsed.shapes = vec![(parse_shape(&value()?)?, None)],
            "--help" | "-h" => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    Ok(parsed)
}

fn parse_runtime(name: &str) -> Result<cubecl::Device, String> {
    let device = match name {
        "default" => return Ok(cubecl::Device::default()),
        "cuda" => cubecl::Device::cuda(0),
        "wgpu" => cubecl::Device::wgpu(cubecl::device::WgpuDeviceKind::DefaultDevice),
        _ => return Err(format!("unknown runtime {name}: default, cuda or wgpu")),
    };
    device.map_err(|error| error.to_string())
}

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

fn parse_shape(value: &str) -> Result<Shape, String> {
    let sizes: Result<Vec<usize>, _> = value.split('x').map(str::parse).collect();
    let sizes = sizes.ok().and_then(|sizes| Shape::try_from(sizes).ok());
    sizes
        .filter(|sizes| !sizes.contains(&0))
        .ok_or("--shape: four sizes above 0, as 8x1536x2048x16".into())
}

fn main() {
    let Arguments {
        device,
        strategy,
        shapes,
    } = arguments().unwrap_or_else(|problem| {
        eprintln!("{problem}\n\n{USAGE}");
        std::process::exit(2);
    });
    let client = device.client();
    println!(
        "{} on {}, {strategy:?}",
        client.name(),
        client.properties().identity.name
    );
    prove(&client, strategy);

    println!("B x D x L x N, dtype: forward ms (peer, GB/s); with backward ms (peer)");
    for (dims, peer) in shapes {
        for (index, kind) in [FloatKind::F32, FloatKind::BF16].into_iter().enumerate() {
            let usage = client.properties().type_usage(ElemType::Float(kind));
            if !usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion) {
                println!("{dims:?} {kind:?}: not on this device");
                continue;
            }
            let problem = Problem::new(&client, dims, kind);
            let forward = median_ms(&client, || problem.forward(&client, strategy, false));
            let both = median_ms(&client, || {
                problem.forward(&client, strategy, true);
                problem.backward(&client, strategy);
            });
            let [batch, d_inner, seq_len, d_state] = dims;
            let values = 4 * batch * seq_len * d_inner + 2 * batch * seq_len * d_state;
            let bytes = values * ElemType::Float(kind).size();
            let gb_per_s = bytes as f64 / forward[1] / 1e6;
            let against = |ours: f64, which: usize| match peer {
                Some(peer) => {
                    let theirs = peer[index][which];
                    format!("official {theirs} = {:.2} x", theirs / ours)
                }
                None => "no peer".into(),
            };
            println!(
                "{dims:?} {kind:?}: {} ({}, {gb_per_s:.0} GB/s); {} ({})",
                spread(forward),
                against(forward[1], 0),
                spread(both),
                against(both[1], 1)
            );
        }
    }
}

/// The strategy that is timed against the oracle, at a shape of several tiles, chunks and blocks.
fn prove(client: &Client, strategy: Strategy) {
    let case = Case::new([2, 300, 72, 16], Options::ALL);
    let numbers = Numbers::new(case);
    let want = numbers.oracle();
    let mut worst: f64 = 0.0;
    for ((name, got), (_, want)) in numbers.kernels(client, strategy).iter().zip(&want) {
        let largest = want.iter().fold(1.0, |most: f64, it| most.max(it.abs()));
        for (got, want) in got.iter().zip(want) {
            let error = (got - want).abs() / largest;
            assert!(error < 2e-5, "{name}: {got} instead of {want}");
            worst = worst.max(error);
        }
    }
    println!("values and gradients of {case:?} are within {worst:.1e} of the oracle");
}

/// Fastest, median and slowest of the samples, in milliseconds a call.
fn median_ms(client: &Client, mut call: impl FnMut()) -> [f64; 3] {
    let mut sample = |calls: usize| {
        sync(client);
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        sync(client);
        start.elapsed().as_secs_f64() * 1e3 / calls as f64
    };
    sample(WARM_UP);
    let calls = (SAMPLE_MS / sample(WARM_UP)).ceil() as usize;
    let mut samples: Vec<f64> = (0..SAMPLES).map(|_| sample(calls)).collect();
    samples.sort_by(f64::total_cmp);
    [samples[0], samples[SAMPLES / 2], samples[SAMPLES - 1]]
}

fn spread([fastest, median, slowest]: [f64; 3]) -> String {
    format!("{median:.3} [{fastest:.3}, {slowest:.3}]")
}

fn sync(client: &Client) {
    cubecl::future::block_on(client.sync()).expect("the device answers");
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
            let len: usize = shape.iter().product();
            // The values' range matters, not their independence: one block over and over.
            let block = support::uniform(len as u64, len.min(1 << 20), low, high);
            let values: Vec<f32> = block.iter().copied().cycle().take(len).collect();
            let handle = client.create_from_slice(&support::encode(&values, kind));
            support::binding(&handle, shape)
        };
        let empty = |shape: &[usize], kind: FloatKind| {
            let len: usize = shape.iter().product();
            let handle = client.empty(len * ElemType::Float(kind).size());
            support::binding(&handle, shape)
        };
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
