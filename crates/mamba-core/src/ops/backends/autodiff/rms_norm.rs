//! The node of the normalisation.

use burn::backend::Autodiff;
use burn::backend::tensor::FloatTensor;
use burn::tensor::FloatDType;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::ops::extension::MambaOps;

#[derive(Debug)]
struct RmsNorm;

impl<B: MambaOps> Backward<B, 2> for RmsNorm {
    type State = ([NodeId; 2], f64);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let (inputs, epsilon) = ops.state;
        let [x, gamma] = inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let result = B::rms_norm_backward(x, gamma, epsilon, grad_y);
        for (parent, grad) in ops.parents.into_iter().zip([result.x, result.gamma]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

pub(super) fn rms_norm<B: MambaOps, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    epsilon: f64,
    out: FloatDType,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [x.node(), gamma.node()];
    match RmsNorm.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let inputs = [prep.checkpoint(&x), prep.checkpoint(&gamma)];
            let y = B::rms_norm(x.into_primitive(), gamma.into_primitive(), epsilon, out);
            prep.finish((inputs, epsilon), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::rms_norm(
            x.into_primitive(),
            gamma.into_primitive(),
            epsilon,
            out,
        )),
    }
}
