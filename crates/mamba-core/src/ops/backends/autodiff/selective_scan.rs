//! The node of the scan, with its final state as a second output.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend};
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::{Saved, Slot, inner_float, inner_int, or_constant, retrieve, second_output, take};
use crate::ops::extension::{MambaOps, OptionalFloat, OptionalInt, ScanInputs, ScanOutputs};

#[derive(Debug)]
struct SelectiveScan;

#[derive(Clone, Debug)]
struct ScanState<B: Backend> {
    required: [NodeId; 5],
    optional: [Saved; 4],
    seq_idx: OptionalInt<B>,
    delta_softplus: bool,
    checkpoints: FloatTensor<B>,
    grad_final_state: Slot<B>,
}

impl<B: MambaOps> Backward<B, 9> for SelectiveScan {
    type State = ScanState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 9>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let [u, delta, a, b, c] = state
            .required
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let [d, z, delta_bias, initial_state] =
            state.optional.map(|id| retrieve::<B>(checkpointer, id));
        let inputs = ScanInputs {
            u,
            delta,
            a,
            b,
            c,
            d,
            z,
            delta_bias,
            initial_state,
            seq_idx: state.seq_idx,
            delta_softplus: state.delta_softplus,
        };
        let grad_final_state = take::<B>(&state.grad_final_state);
        let result =
            B::selective_scan_backward(inputs, state.checkpoints, grad_y, grad_final_state);
        let required = [result.u, result.delta, result.a, result.b, result.c].map(Some);
        let optional = [result.d, result.z, result.delta_bias, result.initial_state]
            .map(OptionalFloat::into_option);
        let results = required.into_iter().chain(optional);
        for (parent, grad) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

pub(super) fn selective_scan<B: MambaOps, C: CheckpointStrategy>(
    inputs: ScanInputs<Autodiff<B, C>>,
    save_checkpoints: bool,
) -> ScanOutputs<Autodiff<B, C>> {
    let u = inputs.u.clone();
    let optional = [
        &inputs.d,
        &inputs.z,
        &inputs.delta_bias,
        &inputs.initial_state,
    ];
    let present = optional.map(|tensor| matches!(tensor, OptionalFloat::Present(_)));
    let [d, z, delta_bias, initial_state] = optional.map(|tensor| or_constant::<B, C>(tensor, &u));
    let nodes = [
        &inputs.u,
        &inputs.delta,
        &inputs.a,
        &inputs.b,
        &inputs.c,
        &d,
        &z,
        &delta_bias,
        &initial_state,
    ];
    let guards = nodes.map(|tensor| tensor.node());
    let run = |inputs: &ScanInputs<Autodiff<B, C>>, save: bool| {
        let inputs = inputs.clone();
        B::selective_scan(
            ScanInputs {
                u: inputs.u.into_primitive(),
                delta: inputs.delta.into_primitive(),
                a: inputs.a.into_primitive(),
                b: inputs.b.into_primitive(),
                c: inputs.c.into_primitive(),
                d: inner_float(inputs.d),
                z: inner_float(inputs.z),
                delta_bias: inner_float(inputs.delta_bias),
                initial_state: inner_float(inputs.initial_state),
                seq_idx: inner_int(inputs.seq_idx),
                delta_softplus: inputs.delta_softplus,
            },
            save,
        )
    };
    let slot = Slot::<B>::default();
    let (y, final_state, checkpoints) = match SelectiveScan
        .prepare::<C>(guards)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(mut prep) => {
            let required = [0, 1, 2, 3, 4].map(|i| prep.checkpoint(nodes[i]));
            let optional = [0, 1, 2, 3].map(|i| present[i].then(|| prep.checkpoint(nodes[5 + i])));
            let outputs = run(&inputs, true);
            let saved = outputs
                .checkpoints
                .into_option()
                .expect("a backend saves the checkpoints it is asked for");
            let state = ScanState {
                required,
                optional,
                seq_idx: inner_int(inputs.seq_idx.clone()),
                delta_softplus: inputs.delta_softplus,
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
    ScanOutputs {
        final_state: second_output::<B, C>(&y, final_state, slot),
        y,
        checkpoints: checkpoints
            .filter(|_| save_checkpoints)
            .map(Autodiff::<B, C>::from_inner)
            .into(),
    }
}
