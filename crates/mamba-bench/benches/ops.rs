//! Times the operations, each proved first, for whoever works on one. Numbers to be kept come from `mamba-lab bench kernels`.
//!
//! ```text
//! cargo bench -p mamba-bench -- scan
//! ```
//!
//! `MAMBA_BENCH_DEVICE` names the device; by default it is the first of the build.

use std::fmt;

use burn::tensor::Device;
use divan::Bencher;
use divan::counter::ItemsCount;
use mamba_bench::engines::op::OpEngine;
use mamba_bench::problems::Op;
use mamba_bench::proofs;
use mamba_core::{Precision, device, memory};

/// Sequences, and their length, at the widths of a layer of the 130M models.
const SIZES: [[usize; 2]; 3] = [[1, 128], [1, 1024], [8, 1024]];

fn main() {
    memory::keep_freed();
    divan::main();
}

/// An operation, shown by its name and size.
struct Named(Op);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [batch, seq_len] = self.0.size();
        write!(f, "{} {batch} x {seq_len}", self.0.name())
    }
}

fn operations() -> impl Iterator<Item = Named> {
    // Steps are the same at any length.
    let steps = |index: usize, op: &Op| index == 0 || !op.is_step();
    let sizes = SIZES.into_iter().enumerate();
    sizes.flat_map(move |(index, [batch, seq_len])| {
        let ops = Op::all(batch, seq_len).into_iter();
        ops.filter(move |op| steps(index, op)).map(Named)
    })
}

fn chosen() -> (String, Device) {
    let name = std::env::var("MAMBA_BENCH_DEVICE").ok();
    let name = name.or_else(|| device::device_names().first().map(|it| it.to_string()));
    let name = name.expect("a build with a backend");
    let device = device::start(&name).unwrap_or_else(|error| panic!("{error}"));
    (name, device)
}

#[divan::bench(args = operations(), sample_count = 20)]
fn forward(bencher: Bencher, Named(op): &Named) {
    let (name, device) = chosen();
    proofs::op(op, Precision::F32, &name, &device).unwrap_or_else(|error| panic!("{error:#}"));
    let engine = OpEngine::new(op, Precision::F32, &device);
    let [batch, seq_len] = op.size();
    bencher
        .counter(ItemsCount::new(batch * seq_len))
        .bench(|| engine.run().unwrap_or_else(|error| panic!("{error:#}")));
}
