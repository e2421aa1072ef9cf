//! The node of the head and its loss, whose gradients are ready with its value.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, TensorMetadata};
use burn::tensor::FloatDType;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::ops::extension::MambaOps;
use crate::ops::portable::cast;

#[derive(Debug)]
struct LinearCrossEntropy;

impl<B: MambaOps> Backward<B, 2> for LinearCrossEntropy {
    /// The gradients for a unit gradient of the loss, and the types of what they belong to.
    type State = [(FloatTensor<B>, FloatDType); 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let scale = B::float_reshape(grads.consume::<B>(&ops.node), [1, 1].into());
        for (parent, (grad, dtype)) in ops.parents.into_iter().zip(ops.state) {
            if let Some(parent) = parent {
                let grad = cast::<B>(B::float_mul(grad, scale.clone()), dtype);
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

pub(super) fn linear_cross_entropy<B: MambaOps, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    targets: IntTensor<Autodiff<B, C>>,
    vocab_size: usize,
) -> FloatTensor<Autodiff<B, C>> {
    let guards = [hidden.node(), weight.node()];
    let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
    match LinearCrossEntropy
        .prepare::<C>(guards)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => {
            let dtypes = [hidden.dtype().into(), weight.dtype().into()];
            let result = B::linear_cross_entropy_with_grads(hidden, weight, targets, vocab_size);
            let [hidden, weight] = dtypes;
            let grads = [(result.hidden, hidden), (result.weight, weight)];
            prep.finish(grads, result.loss)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::linear_cross_entropy(hidden, weight, targets, vocab_size))
        }
    }
}
