//! What the kernels' tests and examples share: a module a kernel, which runs it on a device and its
//! oracle on the host, over the same numbers.
#![allow(dead_code)] // the tests and the examples take their shares

mod blocks;
pub mod conv;
pub mod decode;
pub mod pool;
pub mod repeat;
pub mod scan;
pub mod ssd;
pub mod ssd_gradients;

use std::fmt::Debug;

use cubecl::client::Client;
use cubecl::features::TypeUsage;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::zspace::Shape;

/// A named result: all of them, in the same order on the device and in the oracle.
pub type Named = (&'static str, Vec<f64>);

/// The default device of the runtime built in; of several, the one that `MAMBA_TEST_DEVICE` names `wgpu` or `vulkan`, or else the
/// most capable one.
pub fn client() -> Client {
    let device = match std::env::var("MAMBA_TEST_DEVICE").as_deref() {
        Ok("wgpu" | "vulkan") => {
            let kind = cubecl::device::WgpuDeviceKind::DefaultDevice;
            cubecl::Device::wgpu(kind).expect("a build with wgpu")
        }
        _ => cubecl::Device::default(),
    };
    device.client()
}

/// Whether sequences of `elem` can be kept and converted on the device.
pub fn has_type(client: &Client, elem: ElemType) -> bool {
    let usage = client.properties().type_usage(elem);
    usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion)
}

/// f32 and bf16, as far as the device has them; `MAMBA_TEST_TYPE` names one of them.
pub fn kinds(client: &Client) -> Vec<FloatKind> {
    let mut kinds = match std::env::var("MAMBA_TEST_TYPE").as_deref() {
        Ok("f32") => vec![FloatKind::F32],
        Ok("bf16") => vec![FloatKind::BF16],
        Ok(other) => panic!("MAMBA_TEST_TYPE: f32 or bf16, not {other}"),
        Err(_) => vec![FloatKind::F32, FloatKind::BF16],
    };
    kinds.retain(|&kind| has_type(client, ElemType::Float(kind)));
    println!("{kinds:?} on {}", client.properties().identity.name);
    kinds
}

/// An entry passes within `relative` of its magnitude and `absolute` of the largest entry's, all of
/// them finite; NaN and the infinities have to be where they belong.
#[track_caller]
pub fn assert_close(
    case: &impl Debug,
    got: &[Named],
    want: &[Named],
    relative: f64,
    absolute: f64,
) {
    assert_eq!(got.len(), want.len(), "{case:?}: as many results");
    for ((name, got), (want_name, want)) in got.iter().zip(want) {
        assert_eq!(name, want_name);
        assert_eq!(got.len(), want.len(), "{name} of {case:?}");
        let largest = largest(want);
        for (index, (got, want)) in got.iter().zip(want).enumerate() {
            let allowed = relative * want.abs() + absolute * largest;
            let error = (got - want).abs();
            let same = got == want || got.is_nan() && want.is_nan();
            assert!(
                same || error <= allowed && want.is_finite(),
                "{name}[{index}] of {case:?} is {got:e} instead of {want:e}: off by {error:e}, \
                 allowed {allowed:e}"
            );
        }
    }
}

/// The magnitude of the largest finite entry, at least 1.
fn largest(values: &[f64]) -> f64 {
    let finite = values.iter().filter(|it| it.is_finite());
    finite.fold(1.0, |most, it| most.max(it.abs()))
}

/// The largest error of any entry, in units of the largest one; without end where one is NaN.
///
/// # Panics
/// If there are more entries of one than of the other.
pub fn largest_error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "as many entries");
    let largest = largest(want);
    let errors = got.iter().zip(want).map(|(got, want)| {
        let error = (got - want).abs() / largest;
        match error.is_nan() {
            true => f64::INFINITY,
            false => error,
        }
    });
    errors.fold(0.0, f64::max)
}

/// The largest error of any entry, in units of its tensor's largest entry.
///
/// # Panics
/// If it is not below `allowed`.
pub fn worst_error(got: &[Named], want: &[Named], allowed: f64) -> f64 {
    assert_eq!(got.len(), want.len(), "as many results");
    let mut worst: f64 = 0.0;
    for ((name, got), (want_name, want)) in got.iter().zip(want) {
        assert_eq!(name, want_name);
        assert_eq!(got.len(), want.len(), "{name}");
        let largest = largest(want);
        for (index, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (got - want).abs() / largest;
            assert!(
                error < allowed,
                "{name}[{index}] is {got:e} instead of {want:e}: off by {error:e} of {largest:e}, \
                 allowed {allowed:e}"
            );
            worst = worst.max(error);
        }
    }
    worst
}

/// Asserts that a handful of entries of `gradient` are derivatives of the `loss` of what `input` picks
/// from `numbers`.
///
/// # Panics
/// If one is not.
pub fn central_differences<N>(
    name: &str,
    numbers: &mut N,
    input: impl Fn(&mut N) -> &mut Vec<f32>,
    gradient: &[f64],
    loss: impl Fn(&N) -> f64,
) {
    /// The values err by some 1e-6, the differences by the square of the step.
    const STEP: f32 = 1e-2;
    const TOLERANCE: f64 = 2e-3;

    let len = input(numbers).len();
    assert_eq!(gradient.len(), len, "{name}: one derivative for each entry");
    for index in [0, len / 3, len / 2, len - 1] {
        let value = input(numbers)[index];
        let [above, below] = [value + STEP, value - STEP].map(|moved| {
            input(numbers)[index] = moved;
            (loss(numbers), f64::from(moved))
        });
        input(numbers)[index] = value;
        let slope = (above.0 - below.0) / (above.1 - below.1);
        let error = (gradient[index] - slope).abs();
        assert!(
            error <= TOLERANCE * (1.0 + slope.abs()),
            "{name}[{index}] is {}, the central difference {slope}",
            gradient[index]
        );
    }
}

/// What the kernels wrote, of the outputs that there are.
pub fn read_all(client: &Client, outputs: Vec<(&'static str, Option<Output>)>) -> Vec<Named> {
    let there = outputs
        .into_iter()
        .filter_map(|(name, it)| Some((name, it?)));
    there.map(|(name, it)| (name, it.read(client))).collect()
}

/// Puts numbers on the device.
pub struct Uploader<'a> {
    pub client: &'a Client,
    /// Of the sequences.
    pub dtype: FloatKind,
    /// Columns behind those of a sequence in its rows.
    pub padding: usize,
    /// How often the device holds the batch that the host holds, one after the other.
    pub copies: usize,
}

impl<'a> Uploader<'a> {
    /// Without padding.
    pub fn new(client: &'a Client, dtype: FloatKind) -> Self {
        Self {
            client,
            dtype,
            padding: 0,
            copies: 1,
        }
    }

    pub fn whole(&self, values: &[f32], shape: &[usize], kind: FloatKind) -> TensorBinding {
        let handle = self.client.create_from_slice(&encode(values, kind));
        binding(&handle, shape)
    }

    /// A tensor whose first axis is the batch.
    pub fn batched(&self, values: &[u8], shape: &[usize]) -> TensorBinding {
        binding(&self.repeated(values), &self.batched_shape(shape))
    }

    /// A sequence or projection as the first columns of wider rows.
    pub fn rows(&self, values: &[f32], shape: [usize; 3]) -> TensorBinding {
        let [batch, seq_len, width] = shape;
        let wide = width + self.padding;
        let mut padded = vec![f32::NAN; batch * seq_len * wide];
        for (row, values) in padded
            .chunks_mut(wide.max(1))
            .zip(values.chunks(width.max(1)))
        {
            row[..width].copy_from_slice(values);
        }
        let handle = self.repeated(&encode(&padded, self.dtype));
        let strides = vec![seq_len * wide, wide, 1].into();
        let shape = Shape::from(self.batched_shape(&shape));
        // SAFETY: the handle holds `wide` values a row.
        unsafe { TensorBinding::from_raw_parts(handle, strides, shape) }
    }

    /// A buffer to be written, full of NaN.
    pub fn poisoned(&self, shape: &[usize], kind: FloatKind) -> Output {
        let nan = vec![f32::NAN; shape.iter().product()];
        Output {
            handle: self.client.create_from_slice(&encode(&nan, kind)),
            shape: shape.to_vec(),
            kind,
            copies: 1,
        }
    }

    /// The same, for a tensor whose first axis is the batch.
    pub fn poisoned_batch(&self, shape: &[usize], kind: FloatKind) -> Output {
        let nan = vec![f32::NAN; shape.iter().product()];
        Output {
            handle: self.repeated(&encode(&nan, kind)),
            shape: self.batched_shape(shape),
            kind,
            copies: self.copies,
        }
    }

    fn batched_shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut shape = shape.to_vec();
        shape[0] *= self.copies;
        shape
    }

    fn repeated(&self, bytes: &[u8]) -> Handle {
        match self.copies {
            1 => self.client.create_from_slice(bytes),
            copies => repeat::repeat(self.client, bytes, copies),
        }
    }
}

/// A buffer that the kernels write.
pub struct Output {
    handle: Handle,
    shape: Vec<usize>,
    kind: FloatKind,
    copies: usize,
}

impl Output {
    pub fn binding(&self) -> TensorBinding {
        binding(&self.handle, &self.shape)
    }

    /// What one copy of the batch holds.
    ///
    /// # Panics
    /// If another one holds something else.
    pub fn read(self, client: &Client) -> Vec<f64> {
        let bytes = match self.copies {
            1 => client.read_one(self.handle).expect("the kernels ran"),
            copies => repeat::read_copies(client, self.handle, copies),
        };
        match self.kind {
            FloatKind::F32 => f32::from_bytes(&bytes).iter().map(|&v| v.into()).collect(),
            FloatKind::F16 => half::f16::from_bytes(&bytes)
                .iter()
                .map(|v| v.to_f64())
                .collect(),
            FloatKind::BF16 => half::bf16::from_bytes(&bytes)
                .iter()
                .map(|v| v.to_f64())
                .collect(),
            kind => unreachable!("no case in {kind:?}"),
        }
    }
}

pub fn binding(handle: &Handle, shape: &[usize]) -> TensorBinding {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    // SAFETY: the handle holds as many values as the shape.
    unsafe {
        TensorBinding::from_raw_parts(handle.clone(), strides.into(), Shape::from(shape.to_vec()))
    }
}

pub fn encode(values: &[f32], kind: FloatKind) -> Vec<u8> {
    match kind {
        FloatKind::F32 => f32::as_bytes(values).to_vec(),
        FloatKind::F16 => {
            let values: Vec<_> = values.iter().map(|&v| half::f16::from_f32(v)).collect();
            half::f16::as_bytes(&values).to_vec()
        }
        FloatKind::BF16 => {
            let values: Vec<_> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
            half::bf16::as_bytes(&values).to_vec()
        }
        kind => unreachable!("no case in {kind:?}"),
    }
}

pub fn round(values: Vec<f32>, kind: FloatKind) -> Vec<f32> {
    let round = |value: f32| match kind {
        FloatKind::F16 => half::f16::from_f32(value).to_f32(),
        FloatKind::BF16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    };
    values.into_iter().map(round).collect()
}

/// Numbers that look random and are the same everywhere.
pub fn uniform(seed: u64, len: usize, low: f32, high: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            low + (high - low) * ((state >> 40) as f32 / (1 << 24) as f32)
        })
        .collect()
}
