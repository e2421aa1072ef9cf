//! The node of attention.

use burn::backend::Autodiff;
use burn::backend::tensor::FloatTensor;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::Tracked;
use crate::ops::extension::{AttentionOutputs, MambaOps};

#[derive(Debug)]
struct Attention;

impl<B: MambaOps> Backward<B, 3> for Attention {
    /// The inputs, the number of heads, and the outputs.
    type State = ([NodeId; 3], usize, AttentionOutputs<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let (inputs, heads, AttentionOutputs { y, log_sums }) = ops.state;
        let [query, key, value] =
            inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let result = B::causal_attention_backward(query, key, value, heads, y, log_sums, grad_y);
        let results = [result.query, result.key, result.value];
        for (parent, grad) in ops.parents.into_iter().zip(results) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

pub(super) fn attention<B: MambaOps, C: CheckpointStrategy>(
    query: Tracked<B, C>,
    key: Tracked<B, C>,
    value: Tracked<B, C>,
    heads: usize,
) -> AttentionOutputs<Autodiff<B, C>> {
    let nodes = [query.node(), key.node(), value.node()];
    let (y, log_sums) = match Attention.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let inputs = [&query, &key, &value].map(|tensor| prep.checkpoint(tensor));
            let outputs = run::<B, C>(query, key, value, heads);
            let log_sums = outputs.log_sums.clone();
            let y = outputs.y.clone();
            (prep.finish((inputs, heads, outputs), y), log_sums)
        }
        OpsKind::UnTracked(prep) => {
            let outputs = run::<B, C>(query, key, value, heads);
            (prep.finish(outputs.y), outputs.log_sums)
        }
    };
    AttentionOutputs {
        y,
        // For the gradients' use alone.
        log_sums: <Autodiff<B, C> as burn::backend::AutodiffBackend>::from_inner(log_sums),
    }
}

fn run<B: MambaOps, C: CheckpointStrategy>(
    query: Tracked<B, C>,
    key: Tracked<B, C>,
    value: Tracked<B, C>,
    heads: usize,
) -> AttentionOutputs<B> {
    let [query, key, value] = [query, key, value].map(|it| it.into_primitive());
    B::causal_attention(query, key, value, heads)
}
