//! Cutting a projection into what it projects to, on tensors.

use burn::backend::Dispatch;
use burn::tensor::{Tensor, s};

use super::extension::MambaOps;
use super::has_ops;

/// The first `first` columns of the last axis, and the others.
pub(crate) fn halves(x: Tensor<3>, first: usize) -> [Tensor<3>; 2] {
    let [_, _, width] = x.dims();
    if !is_ours(&x) {
        return [
            x.clone().slice(s![.., .., ..first]),
            x.slice(s![.., .., first..]),
        ];
    }
    let parts = Dispatch::split(x.into_dispatch(), first, width - first);
    [parts.first, parts.second].map(Tensor::from_dispatch)
}

/// The first `first` columns of the last axis, the next `second`, and the others, at least one.
pub(crate) fn thirds(x: Tensor<3>, first: usize, second: usize) -> [Tensor<3>; 3] {
    let third = first + second;
    if is_ours(&x) {
        let parts = Dispatch::split(x.clone().into_dispatch(), first, second);
        if let (first, second, Some(third)) = (parts.first, parts.second, parts.third.into_option())
        {
            return [first, second, third].map(Tensor::from_dispatch);
        }
    }
    [
        x.clone().slice(s![.., .., ..first]),
        x.clone().slice(s![.., .., first..third]),
        x.slice(s![.., .., third..]),
    ]
}

fn is_ours(x: &Tensor<3>) -> bool {
    has_ops(x.device().without_autodiff().as_dispatch())
}
