//! Gradients: one node an op, whose step calls the backward method of the inner backend.

use std::sync::{Arc, Mutex};

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::ops::extension::{
    ConvInputs, ConvOutputs, LossGrads, MambaOps, OptionalFloat, OptionalInt, ScanInputs,
    ScanOutputs,
};

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

/// Where the gradient of an op's second output waits for the step of its first.
///
/// A Burn node has one output. The final state is therefore a node of its own, a child of the
/// node of `y`: its step runs first, leaves its gradient here and hands zeros to `y`, in case
/// nothing else uses `y`. A final state that no loss depends on costs nothing.
type Slot<B> = Arc<Mutex<Option<FloatTensor<B>>>>;

fn take<B: Backend>(slot: &Slot<B>) -> OptionalFloat<B> {
    slot.lock()
        .expect("no step panics while it holds the slot")
        .take()
        .into()
}

#[derive(Debug)]
struct SecondOutput;

impl<B: Backend> Backward<B, 1> for SecondOutput {
    type State = (Slot<B>, Shape);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (slot, first_shape) = ops.state;
        if let [Some(first)] = ops.parents {
            let zeros = B::float_zeros(first_shape, &grad.device(), FloatDType::F32);
            grads.register::<B>(first.id, zeros);
        }
        *slot.lock().expect("no step panics while it holds the slot") = Some(grad);
    }
}

/// Makes `second` a child of `first` whose gradient goes to `slot`.
fn second_output<B: Backend, C: CheckpointStrategy>(
    first: &Tracked<B, C>,
    second: FloatTensor<B>,
    slot: Slot<B>,
) -> Tracked<B, C> {
    let state = (slot, first.shape());
    match SecondOutput
        .prepare::<C>([first.node()])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish(state, second),
        OpsKind::UnTracked(prep) => prep.finish(second),
    }
}

/// An optional input as a node: an untracked constant stands in for an absent one.
fn or_constant<B: Backend, C: CheckpointStrategy>(
    tensor: &OptionalFloat<Autodiff<B, C>>,
    like: &Tracked<B, C>,
) -> Tracked<B, C> {
    match tensor {
        OptionalFloat::Present(tensor) => tensor.clone(),
        OptionalFloat::Absent => Autodiff::<B, C>::from_inner(B::float_zeros(
            [1].into(),
            &like.device(),
            FloatDType::F32,
        )),
    }
}

fn inner_float<B: Backend, C: CheckpointStrategy>(
    tensor: OptionalFloat<Autodiff<B, C>>,
) -> OptionalFloat<B> {
    match tensor {
        OptionalFloat::Present(tensor) => OptionalFloat::Present(tensor.into_primitive()),
        OptionalFloat::Absent => OptionalFloat::Absent,
    }
}

fn inner_int<B: Backend, C: CheckpointStrategy>(
    tensor: OptionalInt<Autodiff<B, C>>,
) -> OptionalInt<B> {
    match tensor {
        OptionalInt::Present(tensor) => OptionalInt::Present(tensor),
        OptionalInt::Absent => OptionalInt::Absent,
    }
}

/// How a saved input comes back in the backward pass; `None` was absent.
type Saved = Option<NodeId>;

fn retrieve<B: Backend>(checkpointer: &mut Checkpointer, id: Saved) -> OptionalFloat<B> {
    id.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id))
        .into()
}

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

impl<B: MambaOps, C: CheckpointStrategy> MambaOps for Autodiff<B, C> {
    fn selective_scan(inputs: ScanInputs<Self>, save_checkpoints: bool) -> ScanOutputs<Self> {
        let u = inputs.u.clone();
        let optional = [
            &inputs.d,
            &inputs.z,
            &inputs.delta_bias,
            &inputs.initial_state,
        ];
        let present = optional.map(|tensor| matches!(tensor, OptionalFloat::Present(_)));
        let [d, z, delta_bias, initial_state] =
            optional.map(|tensor| or_constant::<B, C>(tensor, &u));
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
        let run = |inputs: &ScanInputs<Self>, save: bool| {
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
                let optional =
                    [0, 1, 2, 3].map(|i| present[i].then(|| prep.checkpoint(nodes[5 + i])));
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
                .map(Self::from_inner)
                .into(),
        }
    }

    fn selective_scan_backward(
        _inputs: ScanInputs<Self>,
        _checkpoints: FloatTensor<Self>,
        _grad_y: FloatTensor<Self>,
        _grad_final_state: OptionalFloat<Self>,
    ) -> crate::ops::extension::ScanGrads<Self> {
        no_second_order("selective_scan")
    }

    fn causal_conv1d(inputs: ConvInputs<Self>) -> ConvOutputs<Self> {
        let optional = [&inputs.bias, &inputs.initial_state];
        let present = optional.map(|tensor| matches!(tensor, OptionalFloat::Present(_)));
        let [bias, initial_state] = optional.map(|tensor| or_constant::<B, C>(tensor, &inputs.x));
        let nodes = [&inputs.x, &inputs.weight, &bias, &initial_state];
        let guards = nodes.map(|tensor| tensor.node());
        let run = |inputs: ConvInputs<Self>| {
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

    fn causal_conv1d_backward(
        _inputs: ConvInputs<Self>,
        _grad_y: FloatTensor<Self>,
        _grad_final_state: OptionalFloat<Self>,
    ) -> crate::ops::extension::ConvGrads<Self> {
        no_second_order("causal_conv1d")
    }

    fn token_losses(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        // A score, not a loss: nothing is recorded.
        Self::from_inner(B::token_losses(
            hidden.into_primitive(),
            weight.into_primitive(),
            targets,
            vocab_size,
        ))
    }

    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        let guards = [hidden.node(), weight.node()];
        let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
        match LinearCrossEntropy
            .prepare::<C>(guards)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let result =
                    B::linear_cross_entropy_with_grads(hidden, weight, targets, vocab_size);
                prep.finish((result.hidden, result.weight), result.loss)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::linear_cross_entropy(hidden, weight, targets, vocab_size))
            }
        }
    }

    fn linear_cross_entropy_with_grads(
        _hidden: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _targets: IntTensor<Self>,
        _vocab_size: usize,
    ) -> LossGrads<Self> {
        no_second_order("linear_cross_entropy")
    }
}

fn no_second_order(op: &str) -> ! {
    panic!("{op}: gradients of gradients are not supported; use ops::reference::{op}")
}
