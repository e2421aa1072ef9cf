//! The ops in plain tensor operations, written once for every backend.
//!
//! Instantiated with `Dispatch` they are the differentiable reference; instantiated with one
//! concrete backend they are its default when it has no kernel. The gradients are written by hand.

pub(crate) mod attention;
pub(crate) mod causal_conv1d;
pub(crate) mod gated_rms_norm;
pub(crate) mod gelu;
pub(crate) mod linear_cross_entropy;
mod prim;
pub(crate) mod rms_norm;
pub(crate) mod selective_scan;
pub(crate) mod ssd;

use prim::Prim;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{FloatDType, Slice};

use super::extension::{OptionalFloat, Parts};

/// `tensor` in another type, and as it is where it has that one.
pub(crate) fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    match tensor.dtype() == dtype.into() {
        true => tensor,
        false => B::float_cast(tensor, dtype),
    }
}

/// `y` and the residual, where there is one.
pub(crate) fn add_residual<B: Backend>(
    y: FloatTensor<B>,
    residual: OptionalFloat<B>,
) -> FloatTensor<B> {
    match residual {
        OptionalFloat::Present(residual) => B::float_add(residual, y),
        OptionalFloat::Absent => y,
    }
}

/// Columns `begin..end` of the last axis.
pub(crate) fn columns<B: Backend>(x: FloatTensor<B>, begin: usize, end: usize) -> FloatTensor<B> {
    let shape = x.shape();
    let mut ranges: Vec<Slice> = shape.iter().map(|&size| Slice::from(0..size)).collect();
    if let Some(last) = ranges.last_mut() {
        *last = Slice::from(begin..end);
    }
    B::float_slice(x, &ranges)
}

/// The last axis cut in two or three.
pub(crate) fn split<B: Backend>(x: FloatTensor<B>, first: usize, second: usize) -> Parts<B> {
    let width = x.shape()[x.rank() - 1];
    let middle = first + second;
    Parts {
        first: columns::<B>(x.clone(), 0, first),
        second: columns::<B>(x.clone(), first, middle),
        third: (middle < width)
            .then(|| columns::<B>(x, middle, width))
            .into(),
    }
}

/// What [`split`] cut, side by side.
pub(crate) fn join<B: Backend>(parts: Parts<B>) -> FloatTensor<B> {
    let axis = parts.first.rank() - 1;
    let parts = [
        Some(parts.first),
        Some(parts.second),
        parts.third.into_option(),
    ];
    B::float_cat(parts.into_iter().flatten().collect(), axis)
}

/// 1 where a position continues the run of its predecessor and 0 where a run begins, as
/// `[batch, seq_len]`. The first position continues: what came before it is the initial state.
fn continues<B: Backend>(seq_idx: IntTensor<B>) -> Prim<B> {
    let [batch, seq_len] = seq_idx.shape().dims();
    let device = seq_idx.device();
    if seq_len == 1 {
        let first = B::float_ones([batch, 1].into(), &device, FloatDType::F32);
        return Prim(first);
    }
    let part = |from, to| {
        let columns = [Slice::from(0..batch), Slice::from(from..to)];
        B::int_slice(seq_idx.clone(), &columns)
    };
    // As integers: f32 does not tell those from 2^24 on apart.
    let settings = get_device_settings::<B>(&device);
    let same = B::int_equal(part(0, seq_len - 1), part(1, seq_len), settings.bool_dtype);
    let same = Prim::<B>(B::bool_into_float(same, FloatDType::F32));
    Prim::cat(vec![same.like([batch, 1], 1.0), same], 1)
}
