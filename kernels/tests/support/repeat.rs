//! One batch over and over on the device, for tensors larger than the host would hold or check value
//! by value.

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Named, Uploader, assert_close, binding, has_type};

/// Of results in bf16 that are computed in f32, and of sums over thousands of sequences.
pub const ROUNDED_ONCE: [f64; 2] = [4e-3, 2e-4];

/// What is read at once.
const PIECE: usize = 256 << 20;

const UNITS: u32 = 256;

/// `copies` of `bytes`, one after the other.
pub fn repeat(client: &Client, bytes: &[u8], copies: usize) -> Handle {
    let words = bytes.len() / size_of::<u32>();
    assert_eq!(words * size_of::<u32>(), bytes.len(), "whole words");
    let block = binding(&client.create_from_slice(bytes), &[words]);
    let handle = client.empty(bytes.len() * copies);
    let out = binding(&handle, &[words * copies]);
    let units = CubeDim::new_1d(UNITS);
    // SAFETY: units beyond the output end at once.
    unsafe {
        repeat_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, words * copies, units),
            units,
            out.required_address_type(1),
            block.into_tensor_arg(),
            out.into_tensor_arg(),
        );
    }
    handle
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn repeat_kernel(block: &Tensor<u32>, out: &mut Tensor<u32>) {
    if ABSOLUTE_POS < out.len() {
        out[ABSOLUTE_POS] = block[ABSOLUTE_POS % block.len()];
    }
}

/// The first copy.
///
/// # Panics
/// If another one differs from it in a bit.
pub fn read_copies(client: &Client, handle: Handle, copies: usize) -> Bytes {
    let len = handle.size() as usize / copies;
    let read = |first: usize, count: usize| {
        let behind = (copies - first - count) * len;
        let piece = handle.clone().offset_start((first * len) as u64);
        let piece = piece.offset_end(behind as u64);
        client.read_one(piece).expect("the kernels ran")
    };
    let one = read(0, 1);
    let at_once = (PIECE / len).max(1);
    for first in (0..copies).step_by(at_once) {
        let piece = read(first, at_once.min(copies - first));
        for (index, copy) in piece.chunks(len).enumerate() {
            assert!(
                copy == &one[..],
                "copy {} of {copies} differs",
                first + index
            );
        }
    }
    one
}

/// Whether the device has tensors of `values` numbers of the uploader's type. If not, it says so.
fn fits(device: &Uploader, values: usize) -> bool {
    let elem = ElemType::Float(device.dtype);
    let most = device.client.properties().memory.max_page_size;
    let fits = has_type(device.client, elem) && (values * elem.size()) as u64 <= most;
    if !fits {
        println!("no tensor of {values} {:?} on this device", device.dtype);
    }
    fits
}

/// Runs kernels over `copies` of a batch, of which a sequence tensor has `values` numbers. No wrapped
/// index leaves every copy with the same results, if the batch has three sequences: no power of two is a
/// multiple of it. The results that `sums` names are sums over the batch. `tolerance` is relative to an entry and to the largest.
#[track_caller]
pub fn check_copies(
    device: Uploader,
    copies: usize,
    values: usize,
    tolerance: [f64; 2],
    kernels: impl FnOnce(&Uploader) -> Vec<Named> + Send,
    oracle: impl FnOnce() -> Vec<Named>,
    sums: &[&str],
) {
    if !fits(&device, values * copies) {
        return;
    }
    let device = Uploader { copies, ..device };
    let client = device.client;
    // Every buffer at its own size, and given back when it is done.
    let got = client.memory_dedicated_allocation((), |()| kernels(&device));
    let mut want = oracle();
    for (_, values) in want.iter_mut().filter(|(name, _)| sums.contains(name)) {
        values.iter_mut().for_each(|it| *it *= copies as f64);
    }
    let [relative, absolute] = tolerance;
    assert_close(&copies, &got, &want, relative, absolute);
    println!("{copies} copies of {values} numbers are right");
}
