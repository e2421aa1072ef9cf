//! The nodes of a cut along the last axis.
//!
//! Burn's slices each make a gradient as wide as the whole, zero but for their own columns, and add them all up. Here
//! each part is a node of its own that leaves its gradient for the node of the whole, their parent, which puts them side
//! by side.

use std::sync::{Arc, Mutex};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::Tracked;
use crate::ops::extension::{MambaOps, OptionalFloat, Parts};

/// The parts' gradients, once their steps ran.
type Slots<B> = Arc<Mutex<[Option<FloatTensor<B>>; 3]>>;

const NO_PANIC: &str = "no step panics while it holds the slots";

/// The whole, which nothing uses but the parts.
#[derive(Debug)]
struct Whole;

impl<B: MambaOps> Backward<B, 1> for Whole {
    /// The shapes of the parts, and their type.
    type State = (Slots<B>, [Option<Shape>; 3], FloatDType);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let device = grads.consume::<B>(&ops.node).device();
        let (slots, shapes, dtype) = ops.state;
        let parts = std::mem::take(&mut *slots.lock().expect(NO_PANIC));
        if let [Some(node)] = ops.parents {
            // A part that no loss depends on.
            let zeros = |shape| B::float_zeros(shape, &device, dtype);
            let [first, second, third] = std::array::from_fn(|i| {
                let shape = shapes[i].clone();
                shape.map(|shape| parts[i].clone().unwrap_or_else(|| zeros(shape)))
            });
            let (Some(first), Some(second)) = (first, second) else {
                unreachable!("two parts at least");
            };
            let third = third.into();
            let parts = Parts {
                first,
                second,
                third,
            };
            grads.register::<B>(node.id, B::join(parts));
        }
    }
}

#[derive(Debug)]
struct Part;

impl<B: Backend> Backward<B, 1> for Part {
    /// Which part it is.
    type State = (Slots<B>, usize);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (slots, part) = ops.state;
        let mut slots = slots.lock().expect(NO_PANIC);
        // A step asks for its own gradient: a value that says no more than that there is one.
        if let [Some(whole)] = ops.parents
            && slots.iter().all(Option::is_none)
        {
            let mark = B::float_zeros([1].into(), &grad.device(), grad.dtype().into());
            grads.register::<B>(whole.id, mark);
        }
        slots[part] = Some(grad);
    }
}

pub(super) fn split<B: MambaOps, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    first: usize,
    second: usize,
) -> Parts<Autodiff<B, C>> {
    let Parts {
        first,
        second,
        third,
    } = B::split(x.primitive().clone(), first, second);
    let third = third.into_option();
    let slots = Slots::<B>::default();
    let shapes = [Some(&first), Some(&second), third.as_ref()];
    let shapes = shapes.map(|it| it.map(TensorMetadata::shape));
    let dtype = first.dtype().into();
    let whole: Tracked<B, C> = match Whole.prepare::<C>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((slots.clone(), shapes, dtype), x.into_primitive()),
        OpsKind::UnTracked(prep) => prep.finish(x.into_primitive()),
    };
    let part = |index, tensor| match Part.prepare::<C>([whole.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((slots.clone(), index), tensor),
        OpsKind::UnTracked(prep) => prep.finish(tensor),
    };
    Parts {
        first: part(0, first),
        second: part(1, second),
        third: match third {
            Some(third) => OptionalFloat::Present(part(2, third)),
            None => OptionalFloat::Absent,
        },
    }
}
