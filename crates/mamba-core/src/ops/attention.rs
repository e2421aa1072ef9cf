//! Causal attention, on tensors.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor, assert_shape};

use super::extension::MambaOps;
use super::on_flex;

/// Whether [`causal_attention`] has loops of its own for tensors of this device and type, which are faster than Burn's attention.
pub(crate) fn has_attention<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && on_flex(&x.device())
}

/// `softmax(q k^T / sqrt(dim)) v` a head, each query over the keys up to its own; the queries are those of the last positions.
/// Of `heads` heads of queries, several may share one of keys and values. f32: fused loops on Flex, the plain
/// [`reference`](super::reference::causal_attention) with gradients of its own elsewhere.
///
/// # Shapes
///
/// - query: `[batch, len, heads * dim]`
/// - key, value: `[batch, seen, kv_heads * dim]`, `seen >= len`
/// - output: `[batch, len, heads * dim]`
///
/// # Panics
///
/// If the shapes do not fit each other.
pub fn causal_attention(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    heads: usize,
) -> Tensor<3> {
    let [batch, len, width] = query.dims();
    let [_, seen, kv_width] = key.dims();
    assert_shape!(key, [batch, _, _]);
    assert_shape!(value, [batch, seen, kv_width]);
    let dim = width / heads.max(1);
    assert!(
        dim > 0 && width == heads * dim && kv_width.is_multiple_of(dim) && seen >= len,
        "causal_attention: {heads} heads of queries {:?} and keys {:?} do not fit",
        query.dims(),
        key.dims()
    );
    let outputs = Dispatch::causal_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        heads,
    );
    Tensor::from_dispatch(outputs.y)
}
