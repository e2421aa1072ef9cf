//! The node of the head and its loss, whose gradients are ready with its value.

use burn::backend::Autodiff;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::ops::extension::MambaOps;

#[derive(Debug)]
struct LinearCrossEntropy;

impl<B: MambaOps> Backward<B, 2> for LinearCrossEntropy {
    /// The gradients for a unit gradient of the loss.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let scale = B::float_reshape(grads.consume::<B>(&ops.node), [1, 1].into());
        let (hidden, weight) = ops.state;
        for (parent, grad) in ops.parents.into_iter().zip([hidden, weight]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, B::float_mul(grad, scale.clone()));
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
            let result = B::linear_cross_entropy_with_grads(hidden, weight, targets, vocab_size);
            prep.finish((result.hidden, result.weight), result.loss)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::linear_cross_entropy(hidden, weight, targets, vocab_size))
        }
    }
}
