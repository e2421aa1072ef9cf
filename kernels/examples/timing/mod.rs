//! What the timing examples share: the command line, samples, buffers of one shape.
#![allow(dead_code)] // each takes its share

use std::time::Instant;

use cubecl::MemoryScope;
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use crate::support::{binding, encode, uniform};

/// The sizes of a kernel's problem.
pub type Shape = [usize; 4];

/// What the official CUDA kernels take on an H100, in milliseconds: in f32 and in bf16, one number a
/// measurement.
pub type Peer = [[Option<f64>; 2]; 2];

const WARM_UP: usize = 5;
const SAMPLES: usize = 15;
/// What a sample lasts at least. Its calls follow one another without a wait: launching the next hides
/// behind running the last, and waiting for the device once, which wgpu does in steps of milliseconds,
/// hardly counts.
const SAMPLE_MS: f64 = 150.0;

/// What the command line asks for, or what is wrong with it. `own` takes a flag of the example's own
/// and its value, and says whether there is such a flag.
pub fn arguments<const N: usize, P: Clone + Default>(
    usage: &str,
    known: &[([usize; N], P)],
    mut own: impl FnMut(&str, &str) -> Result<bool, String>,
) -> (cubecl::Device, Vec<([usize; N], P)>) {
    let mut parse = || {
        let mut device = cubecl::Device::default();
        let mut shapes = known.to_vec();
        let mut arguments = std::env::args().skip(1);
        while let Some(flag) = arguments.next() {
            if ["--help", "-h"].contains(&flag.as_str()) {
                println!("{usage}");
                std::process::exit(0);
            }
            let value = arguments.next().ok_or(format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--runtime" => device = parse_runtime(&value)?,
                "--shape" => {
                    let shape = parse_shape(&value)?;
                    let peer = known.iter().find(|it| it.0 == shape).map(|it| it.1.clone());
                    shapes = vec![(shape, peer.unwrap_or_default())];
                }
                _ if own(&flag, &value)? => {}
                _ => return Err(format!("unknown option {flag}")),
            }
        }
        Ok((device, shapes))
    };
    parse().unwrap_or_else(|problem: String| {
        eprintln!("{problem}\n\n{usage}");
        std::process::exit(2);
    })
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

fn parse_shape<const N: usize>(value: &str) -> Result<[usize; N], String> {
    let sizes: Result<Vec<usize>, _> = value.split('x').map(str::parse).collect();
    let sizes = sizes
        .ok()
        .and_then(|sizes| <[usize; N]>::try_from(sizes).ok());
    sizes.filter(|sizes| !sizes.contains(&0)).ok_or(format!(
        "--shape: {N} sizes above 0, with an x between them"
    ))
}

/// Fastest, median and slowest of the samples, in milliseconds a call.
pub fn sampled_ms(client: &Client, mut call: impl FnMut()) -> [f64; 3] {
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

/// What the pools have to reserve beside some tensors.
pub struct Reserved {
    before: u64,
}

impl Reserved {
    /// Before anything of a problem is there; what is free by now is given back.
    pub fn new(client: &Client) -> Self {
        sync(client);
        client.memory_cleanup().expect("the device answers");
        Self {
            before: reserved(client),
        }
    }

    /// MiB reserved since then, whole pages, without those of `inputs`, each with the type of its values.
    pub fn beside<'a>(
        &self,
        client: &Client,
        inputs: impl IntoIterator<Item = (&'a TensorBinding, FloatKind)>,
    ) -> f64 {
        let sizes = inputs.into_iter();
        let sizes = sizes.map(|(tensor, kind)| tensor.size() * ElemType::Float(kind).size());
        let held = reserved(client) - self.before;
        (held as f64 - sizes.sum::<usize>() as f64) / f64::from(1 << 20)
    }
}

fn reserved(client: &Client) -> u64 {
    client
        .memory_report(MemoryScope::CurrentStream)
        .usage()
        .bytes_reserved
}

pub fn spread([fastest, median, slowest]: [f64; 3]) -> String {
    format!("{median:.3} [{fastest:.3}, {slowest:.3}]")
}

/// How the median compares with the peer.
pub fn against([_, ours, _]: [f64; 3], peer: Option<f64>) -> String {
    match peer {
        Some(theirs) => format!("official {theirs} = {:.2} x", theirs / ours),
        None => "no peer".into(),
    }
}

fn sync(client: &Client) {
    cubecl::future::block_on(client.sync()).expect("the device answers");
}

/// A tensor of numbers between `low` and `high`.
pub fn filled(
    client: &Client,
    shape: &[usize],
    kind: FloatKind,
    [low, high]: [f32; 2],
) -> TensorBinding {
    let len: usize = shape.iter().product();
    // The values' range matters, not their independence: one block over and over.
    let block = uniform(len as u64, len.min(1 << 20), low, high);
    let values: Vec<f32> = block.iter().copied().cycle().take(len).collect();
    let handle = client.create_from_slice(&encode(&values, kind));
    binding(&handle, shape)
}

/// A tensor to be written.
pub fn empty(client: &Client, shape: &[usize], kind: FloatKind) -> TensorBinding {
    let len: usize = shape.iter().product();
    let handle = client.empty(len * ElemType::Float(kind).size());
    binding(&handle, shape)
}
