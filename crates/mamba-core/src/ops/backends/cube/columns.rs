//! Neighbouring columns of a tensor, where they lie.

use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use crate::ops::extension::Parts;
use crate::ops::portable;

/// Bytes that CUDA's widest loads are aligned to. Burn copies what does not begin at a multiple of 512.
const CUDA_ALIGNMENT: usize = 16;

/// See [`MambaOps::split`](crate::ops::extension::MambaOps::split).
pub(super) fn split(x: CubeTensor, first: usize, second: usize) -> Parts<CubeBackend> {
    let width = x.shape()[x.rank() - 1];
    let middle = first + second;
    Parts {
        first: columns(&x, 0, first),
        second: columns(&x, first, middle),
        third: (middle < width).then(|| columns(&x, middle, width)).into(),
    }
}

fn columns(x: &CubeTensor, begin: usize, end: usize) -> CubeTensor {
    let offset = begin * x.dtype.size();
    let alignment = match x.client.name() {
        "cuda" => CUDA_ALIGNMENT,
        _ => x.client.properties().memory.alignment as usize,
    };
    let x = burn_cubecl::kernel::untile(x.clone());
    let last = x.rank() - 1;
    let in_place = offset.is_multiple_of(alignment)
        && x.meta.strides()[last] == 1
        && rows_fit_vectors(&x, end - begin);
    if !in_place {
        return portable::columns::<CubeBackend>(x, begin, end);
    }
    let mut view = x;
    view.meta.shape[last] = end - begin;
    view.handle = view.handle.offset_start(offset as u64);
    view
}

/// Whether rows of so many columns lie apart by whole vectors of as many values as divide the columns. Burn's fused operations (0.22.1)
/// read the wrong values where they do not: their outputs, which have no gaps, take wider vectors than the input can.
fn rows_fit_vectors(x: &CubeTensor, columns: usize) -> bool {
    let widest = x.client.properties().hardware.load_width as usize / 8 / x.dtype.size();
    let vector = (1 << columns.trailing_zeros()).min(widest.max(1));
    let (_, rows) = x.meta.strides().split_last().expect("there are columns");
    rows.iter().all(|stride| stride.is_multiple_of(vector))
}
