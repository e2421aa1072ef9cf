//! The node of the embedding.

use burn::backend::Autodiff;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::ops::extension::MambaOps;

#[derive(Debug)]
struct Embed;

impl<B: MambaOps> Backward<B, 1> for Embed {
    type State = (NodeId, IntTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (weight, tokens) = ops.state;
        let weight = checkpointer.retrieve_node_output::<FloatTensor<B>>(weight);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::embed_backward(weight, tokens, grad));
        }
    }
}

pub(super) fn embed<B: MambaOps, C: CheckpointStrategy>(
    weight: FloatTensor<Autodiff<B, C>>,
    tokens: IntTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match Embed
        .prepare::<C>([weight.node()])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(mut prep) => {
            let state = (prep.checkpoint(&weight), tokens.clone());
            prep.finish(state, B::embed(weight.into_primitive(), tokens))
        }
        OpsKind::UnTracked(prep) => prep.finish(B::embed(weight.into_primitive(), tokens)),
    }
}
