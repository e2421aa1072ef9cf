//! The node of the gated normalisation.

use burn::backend::Autodiff;
use burn::backend::tensor::FloatTensor;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::ops::extension::{GatedNormInputs, GatedNormOptions, MambaOps};

#[derive(Debug)]
struct GatedRmsNorm;

impl<B: MambaOps> Backward<B, 3> for GatedRmsNorm {
    type State = ([NodeId; 3], GatedNormOptions);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let (inputs, options) = ops.state;
        let [x, z, gamma] =
            inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let inputs = GatedNormInputs {
            x,
            z,
            gamma,
            options,
        };
        let result = B::gated_rms_norm_backward(inputs, grad_y);
        let results = [result.x, result.z, result.gamma];
        for (parent, grad) in ops.parents.into_iter().zip(results) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

pub(super) fn gated_rms_norm<B: MambaOps, C: CheckpointStrategy>(
    inputs: GatedNormInputs<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [&inputs.x, &inputs.z, &inputs.gamma];
    let guards = nodes.map(|tensor| tensor.node());
    let options = inputs.options;
    match GatedRmsNorm.prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved = nodes.map(|tensor| prep.checkpoint(tensor));
            let y = B::gated_rms_norm(inner(inputs));
            prep.finish((saved, options), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::gated_rms_norm(inner(inputs))),
    }
}

fn inner<B: MambaOps, C: CheckpointStrategy>(
    inputs: GatedNormInputs<Autodiff<B, C>>,
) -> GatedNormInputs<B> {
    GatedNormInputs {
        x: inputs.x.into_primitive(),
        z: inputs.z.into_primitive(),
        gamma: inputs.gamma.into_primitive(),
        options: inputs.options,
    }
}
