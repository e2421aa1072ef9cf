//! The head and its loss: products and the cross-entropy of `mamba_kernels`, a chunk of tokens at a time.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::tensor::{FloatDType, Slice};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use mamba_kernels::cross_entropy::{LogitsGradient, LossInputs, cross_entropy};

use super::{empty, empty_of, linear, whole};
use crate::ops::extension::LossGrads;
use crate::ops::portable::cast;
use crate::ops::portable::linear_cross_entropy::{chunk_len, mean_scale};

/// Hidden states and targets of one chunk.
struct Chunk {
    hidden: CubeTensor,
    targets: CubeTensor,
}

impl Chunk {
    /// The chunk's logits, which are f32, as the kernel takes them.
    fn loss_inputs(&self, head: &Head) -> LossInputs {
        let transpose = CubeBackend::float_transpose(head.weight.clone());
        let logits = linear::forward(self.hidden.clone(), transpose, None, FloatDType::F32);
        LossInputs {
            logits: whole(logits),
            targets: whole(self.targets.clone()),
            vocab_size: head.vocab_size,
            index_dtype: dtype_to_storage_type(self.targets.dtype),
        }
    }
}

/// The head in the type of the hidden states.
struct Head {
    weight: CubeTensor,
    vocab_size: usize,
}

/// Chunks of equal length, but for the last one.
fn chunks(hidden: CubeTensor, targets: CubeTensor, rows: usize) -> impl Iterator<Item = Chunk> {
    let [tokens] = targets.shape().dims();
    let len = chunk_len(tokens, rows);
    (0..tokens).step_by(len).map(move |start| {
        let part = [Slice::from(start..tokens.min(start + len))];
        Chunk {
            hidden: CubeBackend::float_slice(hidden.clone(), &part),
            targets: CubeBackend::int_slice(targets.clone(), &part),
        }
    })
}

pub(super) fn token_losses(
    hidden: CubeTensor,
    weight: CubeTensor,
    targets: CubeTensor,
    vocab_size: usize,
) -> CubeTensor {
    let head = Head {
        weight: cast::<CubeBackend>(weight, hidden.dtype.into()),
        vocab_size,
    };
    let [rows, _] = head.weight.shape().dims();
    let losses = chunks(hidden, targets, rows).map(|chunk| {
        let losses = empty(&chunk.hidden, chunk.targets.shape());
        let inputs = chunk.loss_inputs(&head);
        cross_entropy(&chunk.hidden.client, inputs, losses.clone().binding(), None)
            .unwrap_or_else(|error| panic!("token_losses: {error}"));
        losses
    });
    CubeBackend::float_cat(losses.collect(), 0)
}

/// The mean of the losses, `[1]`. Burn's sum of a whole tensor adds in whatever order its cubes end; that of an axis does not.
fn mean(losses: CubeTensor, scale: CubeTensor) -> CubeTensor {
    CubeBackend::float_mul(CubeBackend::float_sum_dim(losses, 0), scale)
}

pub(super) fn loss(
    hidden: CubeTensor,
    weight: CubeTensor,
    targets: CubeTensor,
    vocab_size: usize,
) -> CubeTensor {
    let scale = mean_scale::<CubeBackend>(&targets);
    mean(token_losses(hidden, weight, targets, vocab_size), scale)
}

pub(super) fn loss_with_grads(
    hidden: CubeTensor,
    weight: CubeTensor,
    targets: CubeTensor,
    vocab_size: usize,
) -> LossGrads<CubeBackend> {
    let dtype: FloatDType = hidden.dtype.into();
    let scale = mean_scale::<CubeBackend>(&targets);
    let head = Head {
        weight: cast::<CubeBackend>(weight, dtype),
        vocab_size,
    };
    let [rows, _] = head.weight.shape().dims();
    let (mut losses, mut grad_hidden) = (Vec::new(), Vec::new());
    let mut grad_weight: Option<CubeTensor> = None;
    for chunk in chunks(hidden, targets, rows) {
        let [len] = chunk.targets.shape().dims();
        let part = empty(&chunk.hidden, [len].into());
        let grad_logits = empty_of(&chunk.hidden, [len, rows].into(), dtype.into());
        let gradient = LogitsGradient {
            logits: grad_logits.clone().binding(),
            scale: whole(scale.clone()),
            dtype: dtype_to_storage_type(dtype.into()),
        };
        let inputs = chunk.loss_inputs(&head);
        let client = &chunk.hidden.client;
        cross_entropy(client, inputs, part.clone().binding(), Some(gradient))
            .unwrap_or_else(|error| panic!("linear_cross_entropy: {error}"));
        losses.push(part);
        let weight = head.weight.clone();
        let grad = linear::forward(grad_logits.clone(), weight, None, FloatDType::F32);
        grad_hidden.push(grad);
        grad_weight = Some(match grad_weight {
            Some(sum) => linear::weight_backward_onto(sum, grad_logits, chunk.hidden),
            None => linear::weight_backward(grad_logits, chunk.hidden),
        });
    }
    LossGrads {
        loss: mean(CubeBackend::float_cat(losses, 0), scale),
        hidden: CubeBackend::float_cat(grad_hidden, 0),
        weight: grad_weight.expect("there is a token"),
    }
}
