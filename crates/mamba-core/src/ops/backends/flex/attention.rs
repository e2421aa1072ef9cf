//! Attention on the tensors' own memory.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};

use super::inputs::{RowTensor, Whole};
use super::tensor;
use crate::ops::cpu::attention;
use crate::ops::extension::{AttentionGrads, AttentionOutputs};

/// The inputs, held where the loops can read them.
struct Held {
    dims: attention::AttentionDims,
    query: RowTensor,
    key: RowTensor,
    value: RowTensor,
}

impl Held {
    fn new([query, key, value]: [FloatTensor<Flex>; 3], heads: usize) -> Self {
        let [batch, len, width] = query.shape().dims();
        let [_, seen, kv_width] = key.shape().dims();
        let dim = width / heads;
        Self {
            dims: attention::AttentionDims {
                batch,
                len,
                seen,
                heads,
                kv_heads: kv_width / dim,
                dim,
            },
            query: RowTensor::new(query),
            key: RowTensor::new(key),
            value: RowTensor::new(value),
        }
    }

    fn view(&self) -> attention::AttentionInputs<'_> {
        attention::AttentionInputs {
            dims: self.dims,
            query: self.query.rows(),
            key: self.key.rows(),
            value: self.value.rows(),
        }
    }

    fn queries(&self) -> [usize; 3] {
        let dims = self.dims;
        [dims.batch, dims.len, dims.heads * dims.dim]
    }

    fn keys(&self) -> [usize; 3] {
        let dims = self.dims;
        [dims.batch, dims.seen, dims.kv_heads * dims.dim]
    }
}

pub(super) fn forward(
    query: FloatTensor<Flex>,
    key: FloatTensor<Flex>,
    value: FloatTensor<Flex>,
    heads: usize,
) -> AttentionOutputs<Flex> {
    let held = Held::new([query, key, value], heads);
    let outputs = attention::forward(&held.view());
    let [batch, len, _] = held.queries();
    AttentionOutputs {
        y: tensor(outputs.y, held.queries()),
        log_sums: tensor(outputs.log_sums, [batch, heads, len]),
    }
}

pub(super) fn backward(
    inputs: [FloatTensor<Flex>; 3],
    heads: usize,
    [y, log_sums]: [FloatTensor<Flex>; 2],
    grad_y: FloatTensor<Flex>,
) -> AttentionGrads<Flex> {
    let held = Held::new(inputs, heads);
    let (y, grad_y) = (RowTensor::new(y), RowTensor::new(grad_y));
    let log_sums = Whole::new(log_sums);
    let saved = attention::AttentionSaved {
        y: y.rows(),
        log_sums: log_sums.slice(),
    };
    let grads = attention::backward(&held.view(), saved, grad_y.rows());
    AttentionGrads {
        query: tensor(grads.query, held.queries()),
        key: tensor(grads.key, held.keys()),
        value: tensor(grads.value, held.keys()),
    }
}
