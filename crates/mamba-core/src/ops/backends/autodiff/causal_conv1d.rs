//! The node of the causal convolution.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::{Saved, Slot, inner_float, inner_int, or_constant, retrieve, second_output, take};
use crate::ops::extension::{ConvInputs, ConvOutputs, MambaOps, OptionalFloat, OptionalInt};

#[derive(Debug)]
struct CausalConv1d;

#[derive(Clone, Debug)]
struct ConvState<B: Backend> {
    required: [NodeId; 2],
    optional: [Saved; 2],
    seq_idx: OptionalInt<B>,
    silu: bool,
    grad_final_state: Slot<B>,
}

impl<B: MambaOps> Backward<B, 4> for CausalConv1d {
    type State = ConvState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let [x, weight] = state
            .required
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let [bias, initial_state] = state.optional.map(|id| retrieve::<B>(checkpointer, id));
        let inputs = ConvInputs {
            x,
            weight,
            bias,
            initial_state,
            seq_idx: state.seq_idx,
            silu: state.silu,
        };
        let grad_final_state = take::<B>(&state.grad_final_state);
        let result = B::causal_conv1d_backward(inputs, grad_y, grad_final_state);
        let optional = [result.bias, result.initial_state].map(OptionalFloat::into_option);
        let results = [Some(result.x), Some(result.weight)]
            .into_iter()
            .chain(optional);
        for (parent, grad) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

pub(super) fn causal_conv1d<B: MambaOps, C: CheckpointStrategy>(
    inputs: ConvInputs<Autodiff<B, C>>,
) -> ConvOutputs<Autodiff<B, C>> {
    let optional = [&inputs.bias, &inputs.initial_state];
    let present = optional.map(|tensor| matches!(tensor, OptionalFloat::Present(_)));
    let [bias, initial_state] = optional.map(|tensor| or_constant::<B, C>(tensor, &inputs.x));
    let nodes = [&inputs.x, &inputs.weight, &bias, &initial_state];
    let guards = nodes.map(|tensor| tensor.node());
    let run = |inputs: ConvInputs<Autodiff<B, C>>| {
        B::causal_conv1d(ConvInputs {
            x: inputs.x.into_primitive(),
            weight: inputs.weight.into_primitive(),
            bias: inner_float(inputs.bias),
            initial_state: inner_float(inputs.initial_state),
            seq_idx: inner_int(inputs.seq_idx),
            silu: inputs.silu,
        })
    };
    let slot = Slot::<B>::default();
    let (y, final_state) = match CausalConv1d.prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let state = ConvState {
                required: [0, 1].map(|i| prep.checkpoint(nodes[i])),
                optional: [0, 1].map(|i| present[i].then(|| prep.checkpoint(nodes[2 + i]))),
                seq_idx: inner_int(inputs.seq_idx.clone()),
                silu: inputs.silu,
                grad_final_state: slot.clone(),
            };
            let outputs = run(inputs.clone());
            (prep.finish(state, outputs.y), outputs.final_state)
        }
        OpsKind::UnTracked(prep) => {
            let outputs = run(inputs.clone());
            (prep.finish(outputs.y), outputs.final_state)
        }
    };
    ConvOutputs {
        final_state: second_output::<B, C>(&y, final_state, slot),
        y,
    }
}
