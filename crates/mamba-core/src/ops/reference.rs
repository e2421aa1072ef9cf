//! The same operations in plain tensor operations, under Burn's own autodiff.
//!
//! What every other path is compared with. They keep every intermediate result, so use them to
//! check, not to train.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::portable;
use super::{CausalConv1d, GatedRmsNorm, LinearCrossEntropy, SelectiveScan, Ssd, float_primitive};

/// [`selective_scan`](super::selective_scan), one position after the other.
pub fn selective_scan(scan: SelectiveScan) -> (Tensor<3>, Tensor<3>) {
    let outputs = portable::selective_scan::forward::<Dispatch>(scan.into_inputs(), false);
    (
        Tensor::from_dispatch(outputs.y),
        Tensor::from_dispatch(outputs.final_state),
    )
}

/// [`selective_scan`](super::selective_scan) as an associative scan, all positions at once in
/// `log2(seq_len)` passes: a second path that shares no loop with the first.
pub fn selective_scan_parallel(scan: SelectiveScan) -> (Tensor<3>, Tensor<3>) {
    let outputs = portable::selective_scan::forward_parallel::<Dispatch>(scan.into_inputs());
    (
        Tensor::from_dispatch(outputs.y),
        Tensor::from_dispatch(outputs.final_state),
    )
}

/// [`ssd`](super::ssd()) as products of matrices within chunks, and states passed on between them: listing 1 of Dao and
/// Gu 2024.
pub fn ssd(ssd: Ssd) -> (Tensor<3>, Tensor<4>) {
    let outputs = portable::ssd::forward::<Dispatch>(ssd.into_inputs(), false);
    (
        Tensor::from_dispatch(outputs.y),
        Tensor::from_dispatch(outputs.final_state),
    )
}

/// [`ssd`](super::ssd()) one position after the other: a second path that shares no product with the first.
pub fn ssd_sequential(ssd: Ssd) -> (Tensor<3>, Tensor<4>) {
    let outputs = portable::ssd::forward_sequential::<Dispatch>(ssd.into_inputs());
    (
        Tensor::from_dispatch(outputs.y),
        Tensor::from_dispatch(outputs.final_state),
    )
}

/// [`gated_rms_norm`](super::gated_rms_norm) step by step.
pub fn gated_rms_norm(norm: GatedRmsNorm) -> Tensor<3> {
    Tensor::from_dispatch(portable::gated_rms_norm::forward::<Dispatch>(
        norm.into_inputs(),
    ))
}

/// [`causal_attention`](super::causal_attention) through all scores.
pub fn causal_attention(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    heads: usize,
) -> Tensor<3> {
    let [query, key, value] = [query, key, value].map(float_primitive);
    Tensor::from_dispatch(portable::attention::forward::<Dispatch>(query, key, value, heads).y)
}

/// GELU in the form with tanh, operation by operation.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(portable::gelu::forward::<Dispatch>(float_primitive(x)))
}

/// [`causal_conv1d`](super::causal_conv1d) as a sum of shifted products.
pub fn causal_conv1d(conv: CausalConv1d) -> (Tensor<3>, Tensor<3>) {
    let outputs = portable::causal_conv1d::forward::<Dispatch>(conv.into_inputs());
    (
        Tensor::from_dispatch(outputs.y),
        Tensor::from_dispatch(outputs.final_state),
    )
}

/// [`linear_cross_entropy`](super::linear_cross_entropy) through chunks of logits that the tape
/// keeps.
pub fn linear_cross_entropy(arguments: LinearCrossEntropy) -> Tensor<1> {
    Tensor::from_dispatch(portable::linear_cross_entropy::loss::<Dispatch>(
        float_primitive(arguments.hidden),
        float_primitive(arguments.weight),
        arguments.targets.into_dispatch(),
        arguments.vocab_size,
    ))
}

/// [`token_losses`](super::token_losses) through chunks of logits.
pub fn token_losses(arguments: LinearCrossEntropy) -> Tensor<1> {
    Tensor::from_dispatch(portable::linear_cross_entropy::token_losses::<Dispatch>(
        float_primitive(arguments.hidden),
        float_primitive(arguments.weight),
        arguments.targets.into_dispatch(),
        arguments.vocab_size,
    ))
}
