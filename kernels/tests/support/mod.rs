//! What the kernels' tests and examples share: a module a kernel, which runs it on a device and its
//! oracle on the host, over the same numbers.
#![allow(dead_code)] // the tests and the examples take their shares

pub mod conv;
pub mod decode;
pub mod scan;

use std::fmt::Debug;

use cubecl::client::Client;
use cubecl::features::TypeUsage;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::zspace::Shape;

/// A named result: all of them, in the same order on the device and in the oracle.
pub type Named = (&'static str, Vec<f64>);

/// The default device of the runtime built in.
pub fn client() -> Client {
    cubecl::Device::default().client()
}

/// Whether sequences of `elem` can be kept and converted on the device.
pub fn has_type(client: &Client, elem: ElemType) -> bool {
    let usage = client.properties().type_usage(elem);
    usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion)
}

/// An entry passes within `relative` of its magnitude and `absolute` of the largest entry's.
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
        let largest = want.iter().fold(1.0, |most: f64, it| most.max(it.abs()));
        for (index, (got, want)) in got.iter().zip(want).enumerate() {
            let allowed = relative * want.abs() + absolute * largest;
            let error = (got - want).abs();
            assert!(
                error <= allowed,
                "{name}[{index}] of {case:?} is {got:e} instead of {want:e}: off by {error:e}, \
                 allowed {allowed:e}"
            );
        }
    }
}

/// The largest error of any entry, in units of its tensor's largest entry.
///
/// # Panics
/// If it is not below `allowed`.
pub fn worst_error(got: &[Named], want: &[Named], allowed: f64) -> f64 {
    assert_eq!(got.len(), want.len(), "as many results");
    let mut worst: f64 = 0.0;
    for ((name, got), (_, want)) in got.iter().zip(want) {
        let largest = want.iter().fold(1.0, |most: f64, it| most.max(it.abs()));
        for (got, want) in got.iter().zip(want) {
            let error = (got - want).abs() / largest;
            assert!(error < allowed, "{name}: {got} instead of {want}");
            worst = worst.max(error);
        }
    }
    worst
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
}

impl<'a> Uploader<'a> {
    /// Without padding.
    pub fn new(client: &'a Client, dtype: FloatKind) -> Self {
        Self {
            client,
            dtype,
            padding: 0,
        }
    }

    pub fn whole(&self, values: &[f32], shape: &[usize], kind: FloatKind) -> TensorBinding {
        let handle = self.client.create_from_slice(&encode(values, kind));
        binding(&handle, shape)
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
        let handle = self.client.create_from_slice(&encode(&padded, self.dtype));
        let strides = vec![seq_len * wide, wide, 1].into();
        // SAFETY: the handle holds `wide` values a row.
        unsafe { TensorBinding::from_raw_parts(handle, strides, Shape::from(shape.to_vec())) }
    }

    pub fn poisoned(&self, shape: &[usize], kind: FloatKind) -> Output {
        let nan = vec![f32::NAN; shape.iter().product()];
        Output {
            handle: self.client.create_from_slice(&encode(&nan, kind)),
            shape: shape.to_vec(),
            kind,
        }
    }
}

/// A buffer that the kernels write.
pub struct Output {
    handle: Handle,
    shape: Vec<usize>,
    kind: FloatKind,
}

impl Output {
    pub fn binding(&self) -> TensorBinding {
        binding(&self.handle, &self.shape)
    }

    pub fn read(self, client: &Client) -> Vec<f64> {
        let bytes = client.read_one(self.handle).expect("the kernels ran");
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
