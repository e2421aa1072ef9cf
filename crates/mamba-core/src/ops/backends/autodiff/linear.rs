//! The node of the linear layer.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, TensorMetadata};
use burn::tensor::FloatDType;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::{inner_float, or_constant};
use crate::ops::extension::{MambaOps, OptionalFloat};
use crate::ops::portable::cast;

#[derive(Debug)]
struct Linear;

impl<B: MambaOps> Backward<B, 4> for Linear {
    /// `x` where the weight has a gradient, and the weight where `x` has one.
    type State = [Option<NodeId>; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let [x, weight] = ops
            .state
            .map(|id| id.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id)));
        let [x_node, weight_node, bias_node, residual_node] = ops.parents;
        // The products are of the type of forward's factors, onto an f32 residual stream or not.
        let factors = x.as_ref().or(weight.as_ref());
        let dtype = factors.map_or(grad_y.dtype(), |it| it.dtype()).into();
        let factor = cast::<B>(grad_y.clone(), dtype);
        if let (Some(node), Some(weight)) = (x_node, weight) {
            let weight = B::float_transpose(weight);
            let (bias, residual) = (OptionalFloat::Absent, OptionalFloat::Absent);
            let grad = B::fused_linear(factor.clone(), weight, bias, residual, dtype);
            grads.register::<B>(node.id, grad);
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let grad = B::fused_linear_weight_backward(x, factor);
            grads.register::<B>(node.id, grad);
        }
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::linear_bias_backward(grad_y.clone()));
        }
        if let Some(node) = residual_node {
            grads.register::<B>(node.id, grad_y);
        }
    }
}

pub(super) fn linear<B: MambaOps, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    bias: OptionalFloat<Autodiff<B, C>>,
    residual: OptionalFloat<Autodiff<B, C>>,
    out: FloatDType,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [
        x.node(),
        weight.node(),
        or_constant::<B, C>(&bias, &x).node(),
        or_constant::<B, C>(&residual, &x).node(),
    ];
    let (x_tracked, weight_tracked) = (x.is_tracked(), weight.is_tracked());
    match Linear.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let state = [
                weight_tracked.then(|| prep.checkpoint(&x)),
                x_tracked.then(|| prep.checkpoint(&weight)),
            ];
            let y = B::fused_linear(
                x.into_primitive(),
                weight.into_primitive(),
                inner_float(bias),
                inner_float(residual),
                out,
            );
            prep.finish(state, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::fused_linear(
            x.into_primitive(),
            weight.into_primitive(),
            inner_float(bias),
            inner_float(residual),
            out,
        )),
    }
}
