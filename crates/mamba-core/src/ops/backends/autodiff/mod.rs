//! Gradients: one node an op, whose step calls the backward method of the inner backend.

mod attention;
mod causal_conv1d;
mod embed;
mod gated_rms_norm;
mod gelu;
mod linear;
mod linear_cross_entropy;
mod rms_norm;
mod selective_scan;
mod split;
mod ssd;

use std::sync::{Arc, Mutex};

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::ops::extension::{
    AttentionGrads, AttentionOutputs, ConvGrads, ConvInputs, ConvOutputs, GatedNormGrads,
    GatedNormInputs, LossGrads, MambaOps, NormGrads, OptionalFloat, OptionalInt, Parts, ScanGrads,
    ScanInputs, ScanOutputs, SsdGrads, SsdInputs, SsdOutputs,
};

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

/// Where the gradient of an op's second output waits for the step of its first.
///
/// A Burn node has one output. The final state is therefore a node of its own, a child of the
/// node of `y`: its step runs first, leaves its gradient here and hands zeros to `y`, in case
/// nothing else uses `y`. A final state that no loss depends on costs nothing.
type Slot<B> = Arc<Mutex<Option<FloatTensor<B>>>>;

fn take<B: Backend>(slot: &Slot<B>) -> OptionalFloat<B> {
    slot.lock()
        .expect("no step panics while it holds the slot")
        .take()
        .into()
}

#[derive(Debug)]
struct SecondOutput;

impl<B: Backend> Backward<B, 1> for SecondOutput {
    /// The first output's shape and type come with the slot.
    type State = (Slot<B>, Shape, FloatDType);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (slot, first_shape, first_dtype) = ops.state;
        if let [Some(first)] = ops.parents {
            let zeros = B::float_zeros(first_shape, &grad.device(), first_dtype);
            grads.register::<B>(first.id, zeros);
        }
        *slot.lock().expect("no step panics while it holds the slot") = Some(grad);
    }
}

/// Makes `second` a child of `first` whose gradient goes to `slot`.
fn second_output<B: Backend, C: CheckpointStrategy>(
    first: &Tracked<B, C>,
    second: FloatTensor<B>,
    slot: Slot<B>,
) -> Tracked<B, C> {
    let state = (slot, first.shape(), first.dtype().into());
    match SecondOutput
        .prepare::<C>([first.node()])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish(state, second),
        OpsKind::UnTracked(prep) => prep.finish(second),
    }
}

/// An optional input as a node: an untracked constant, whose value nobody reads, stands in for an absent
/// one. It shares the memory of `like`, so that no device is asked for any.
fn or_constant<B: Backend, C: CheckpointStrategy>(
    tensor: &OptionalFloat<Autodiff<B, C>>,
    like: &Tracked<B, C>,
) -> Tracked<B, C> {
    match tensor {
        OptionalFloat::Present(tensor) => tensor.clone(),
        OptionalFloat::Absent => Autodiff::<B, C>::from_inner(like.clone().into_primitive()),
    }
}

fn inner_float<B: Backend, C: CheckpointStrategy>(
    tensor: OptionalFloat<Autodiff<B, C>>,
) -> OptionalFloat<B> {
    match tensor {
        OptionalFloat::Present(tensor) => OptionalFloat::Present(tensor.into_primitive()),
        OptionalFloat::Absent => OptionalFloat::Absent,
    }
}

fn inner_int<B: Backend, C: CheckpointStrategy>(
    tensor: OptionalInt<Autodiff<B, C>>,
) -> OptionalInt<B> {
    match tensor {
        OptionalInt::Present(tensor) => OptionalInt::Present(tensor),
        OptionalInt::Absent => OptionalInt::Absent,
    }
}

/// How a saved input comes back in the backward pass; `None` was absent.
type Saved = Option<NodeId>;

fn retrieve<B: Backend>(checkpointer: &mut Checkpointer, id: Saved) -> OptionalFloat<B> {
    id.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id))
        .into()
}

impl<B: MambaOps, C: CheckpointStrategy> MambaOps for Autodiff<B, C> {
    fn selective_scan(inputs: ScanInputs<Self>, save_checkpoints: bool) -> ScanOutputs<Self> {
        selective_scan::selective_scan::<B, C>(inputs, save_checkpoints)
    }

    fn selective_scan_backward(
        _inputs: ScanInputs<Self>,
        _checkpoints: FloatTensor<Self>,
        _grad_y: FloatTensor<Self>,
        _grad_final_state: OptionalFloat<Self>,
    ) -> ScanGrads<Self> {
        no_second_order("selective_scan")
    }

    fn causal_conv1d(inputs: ConvInputs<Self>) -> ConvOutputs<Self> {
        causal_conv1d::causal_conv1d::<B, C>(inputs)
    }

    fn causal_conv1d_backward(
        _inputs: ConvInputs<Self>,
        _grad_y: FloatTensor<Self>,
        _grad_final_state: OptionalFloat<Self>,
    ) -> ConvGrads<Self> {
        no_second_order("causal_conv1d")
    }

    fn ssd(inputs: SsdInputs<Self>, save_checkpoints: bool) -> SsdOutputs<Self> {
        ssd::ssd::<B, C>(inputs, save_checkpoints)
    }

    fn ssd_backward(
        _inputs: SsdInputs<Self>,
        _checkpoints: FloatTensor<Self>,
        _grad_y: FloatTensor<Self>,
        _grad_final_state: OptionalFloat<Self>,
    ) -> SsdGrads<Self> {
        no_second_order("ssd")
    }

    fn gated_rms_norm(inputs: GatedNormInputs<Self>) -> FloatTensor<Self> {
        gated_rms_norm::gated_rms_norm::<B, C>(inputs)
    }

    fn gated_rms_norm_backward(
        _inputs: GatedNormInputs<Self>,
        _grad_y: FloatTensor<Self>,
    ) -> GatedNormGrads<Self> {
        no_second_order("gated_rms_norm")
    }

    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        heads: usize,
    ) -> AttentionOutputs<Self> {
        attention::attention::<B, C>(query, key, value, heads)
    }

    fn causal_attention_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        _heads: usize,
        _y: FloatTensor<Self>,
        _log_sums: FloatTensor<Self>,
        _grad_y: FloatTensor<Self>,
    ) -> AttentionGrads<Self> {
        no_second_order("causal_attention")
    }

    fn tanh_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::gelu::<B, C>(x)
    }

    fn tanh_gelu_backward(_x: FloatTensor<Self>, _grad_y: FloatTensor<Self>) -> FloatTensor<Self> {
        no_second_order("gelu")
    }

    fn token_losses(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        // A score, not a loss: nothing is recorded.
        Self::from_inner(B::token_losses(
            hidden.into_primitive(),
            weight.into_primitive(),
            targets,
            vocab_size,
        ))
    }

    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        linear_cross_entropy::linear_cross_entropy::<B, C>(hidden, weight, targets, vocab_size)
    }

    fn linear_cross_entropy_with_grads(
        _hidden: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _targets: IntTensor<Self>,
        _vocab_size: usize,
    ) -> LossGrads<Self> {
        no_second_order("linear_cross_entropy")
    }

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalFloat<Self>,
        residual: OptionalFloat<Self>,
        out: FloatDType,
    ) -> FloatTensor<Self> {
        linear::linear::<B, C>(x, weight, bias, residual, out)
    }

    fn fused_linear_weight_backward(
        _x: FloatTensor<Self>,
        _grad_y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        no_second_order("linear")
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        out: FloatDType,
    ) -> FloatTensor<Self> {
        rms_norm::rms_norm::<B, C>(x, gamma, epsilon, out)
    }

    fn rms_norm_backward(
        _x: FloatTensor<Self>,
        _gamma: FloatTensor<Self>,
        _epsilon: f64,
        _grad_y: FloatTensor<Self>,
    ) -> NormGrads<Self> {
        no_second_order("rms_norm")
    }

    fn split(x: FloatTensor<Self>, first: usize, second: usize) -> Parts<Self> {
        split::split::<B, C>(x, first, second)
    }

    fn join(_parts: Parts<Self>) -> FloatTensor<Self> {
        no_second_order("split")
    }

    fn embed(weight: FloatTensor<Self>, tokens: IntTensor<Self>) -> FloatTensor<Self> {
        embed::embed::<B, C>(weight, tokens)
    }

    fn embed_backward(
        _weight: FloatTensor<Self>,
        _tokens: IntTensor<Self>,
        _grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        no_second_order("embed")
    }
}

fn no_second_order(op: &str) -> ! {
    panic!("{op}: gradients of gradients are not supported; use ops::reference::{op}")
}
