//! The node of SSD, with its final state as a second output.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend};
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::{Saved, Slot, inner_float, inner_int, or_constant, retrieve, second_output, take};
use crate::ops::extension::{
    MambaOps, OptionalFloat, OptionalInt, SsdInputs, SsdOptions, SsdOutputs,
};

#[derive(Debug)]
struct Ssd;

#[derive(Clone, Debug)]
struct SsdState<B: Backend> {
    required: [NodeId; 5],
    optional: [Saved; 3],
    seq_idx: OptionalInt<B>,
    options: SsdOptions,
    checkpoints: FloatTensor<B>,
    grad_final_state: Slot<B>,
}

impl<B: MambaOps> Backward<B, 8> for Ssd {
    type State = SsdState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 8>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let [x, dt, a, b, c] = state
            .required
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let [d, dt_bias, initial_state] = state.optional.map(|id| retrieve::<B>(checkpointer, id));
        let inputs = SsdInputs {
            x,
            dt,
            a,
            b,
            c,
            d,
            dt_bias,
            initial_state,
            seq_idx: state.seq_idx,
            options: state.options,
        };
        let grad_final_state = take::<B>(&state.grad_final_state);
        let result = B::ssd_backward(inputs, state.checkpoints, grad_y, grad_final_state);
        let required = [result.x, result.dt, result.a, result.b, result.c].map(Some);
        let optional =
            [result.d, result.dt_bias, result.initial_state].map(OptionalFloat::into_option);
        let results = required.into_iter().chain(optional);
        for (parent, grad) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

pub(super) fn ssd<B: MambaOps, C: CheckpointStrategy>(
    inputs: SsdInputs<Autodiff<B, C>>,
    save_checkpoints: bool,
) -> SsdOutputs<Autodiff<B, C>> {
    let x = inputs.x.clone();
    let optional = [&inputs.d, &inputs.dt_bias, &inputs.initial_state];
    let present = optional.map(|tensor| matches!(tensor, OptionalFloat::Present(_)));
    let [d, dt_bias, initial_state] = optional.map(|tensor| or_constant::<B, C>(tensor, &x));
    let nodes = [
        &inputs.x,
        &inputs.dt,
        &inputs.a,
        &inputs.b,
        &inputs.c,
        &d,
        &dt_bias,
        &initial_state,
    ];
    let guards = nodes.map(|tensor| tensor.node());
    let run = |inputs: &SsdInputs<Autodiff<B, C>>, save: bool| {
        let inputs = inputs.clone();
        B::ssd(
            SsdInputs {
                x: inputs.x.into_primitive(),
                dt: inputs.dt.into_primitive(),
                a: inputs.a.into_primitive(),
                b: inputs.b.into_primitive(),
                c: inputs.c.into_primitive(),
                d: inner_float(inputs.d),
                dt_bias: inner_float(inputs.dt_bias),
                initial_state: inner_float(inputs.initial_state),
                seq_idx: inner_int(inputs.seq_idx),
                options: inputs.options,
            },
            save,
        )
    };
    let slot = Slot::<B>::default();
    let (y, final_state, checkpoints) = match Ssd.prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let required = [0, 1, 2, 3, 4].map(|i| prep.checkpoint(nodes[i]));
            let optional = [0, 1, 2].map(|i| present[i].then(|| prep.checkpoint(nodes[5 + i])));
            let outputs = run(&inputs, true);
            let saved = outputs
                .checkpoints
                .into_option()
                .expect("a backend saves the checkpoints it is asked for");
            let state = SsdState {
                required,
                optional,
                seq_idx: inner_int(inputs.seq_idx.clone()),
                options: inputs.options,
                checkpoints: saved.clone(),
                grad_final_state: slot.clone(),
            };
            (
                prep.finish(state, outputs.y),
                outputs.final_state,
                Some(saved),
            )
        }
        OpsKind::UnTracked(prep) => {
            let outputs = run(&inputs, save_checkpoints);
            let saved = outputs.checkpoints.into_option();
            (prep.finish(outputs.y), outputs.final_state, saved)
        }
    };
    SsdOutputs {
        final_state: second_output::<B, C>(&y, final_state, slot),
        y,
        checkpoints: checkpoints
            .filter(|_| save_checkpoints)
            .map(Autodiff::<B, C>::from_inner)
            .into(),
    }
}
