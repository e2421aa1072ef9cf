//! The operations of Mamba-2 on the tensors' own memory.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;

use super::inputs::{RowTensor, Whole, sequence_numbers, whole};
use super::tensor;
use crate::ops::cpu::{gated_rms_norm, ssd};
use crate::ops::extension::{
    GatedNormGrads, GatedNormInputs, GatedNormOptions, OptionalFloat, SsdGrads, SsdInputs,
    SsdOptions, SsdOutputs,
};

/// The inputs, held where the loops can read them.
struct Ssd {
    dims: ssd::SsdDims,
    x: RowTensor,
    dt: RowTensor,
    a: Whole,
    b: RowTensor,
    c: RowTensor,
    d: Option<(Whole, Shape)>,
    dt_bias: Option<Whole>,
    initial_state: Option<Whole>,
    seq_idx: Option<Vec<i32>>,
    options: SsdOptions,
}

impl Ssd {
    fn new(inputs: SsdInputs<Flex>) -> Self {
        let [batch, seq_len, d_ssm] = inputs.x.shape().dims();
        let [nheads] = inputs.a.shape().dims();
        let [_, _, columns] = inputs.b.shape().dims();
        let ngroups = inputs.options.ngroups;
        Self {
            dims: ssd::SsdDims {
                batch,
                seq_len,
                nheads,
                headdim: d_ssm / nheads,
                ngroups,
                d_state: columns / ngroups,
            },
            x: RowTensor::new(inputs.x),
            dt: RowTensor::new(inputs.dt),
            a: Whole::new(inputs.a),
            b: RowTensor::new(inputs.b),
            c: RowTensor::new(inputs.c),
            d: inputs.d.into_option().map(|d| {
                let shape = d.shape();
                (Whole::new(d), shape)
            }),
            dt_bias: whole(inputs.dt_bias),
            initial_state: whole(inputs.initial_state),
            seq_idx: sequence_numbers(inputs.seq_idx),
            options: inputs.options,
        }
    }

    fn view(&self) -> ssd::SsdInputs<'_> {
        let (least, most) = self.options.dt_limit;
        ssd::SsdInputs {
            dims: self.dims,
            x: self.x.rows(),
            dt: self.dt.rows(),
            a: self.a.slice(),
            b: self.b.rows(),
            c: self.c.rows(),
            d: self.d.as_ref().map(|(d, _)| d.slice()),
            dt_bias: self.dt_bias.as_ref().map(Whole::slice),
            dt_softplus: self.options.dt_softplus,
            dt_limit: (least as f32, most as f32),
            initial_state: self.initial_state.as_ref().map(Whole::slice),
            seq_idx: self.seq_idx.as_deref(),
        }
    }

    fn state(&self) -> [usize; 4] {
        let ssd::SsdDims {
            batch,
            nheads,
            headdim,
            d_state,
            ..
        } = self.dims;
        [batch, nheads, headdim, d_state]
    }

    /// `width` columns a position.
    fn sequence(&self, width: usize) -> [usize; 3] {
        [self.dims.batch, self.dims.seq_len, width]
    }
}

pub(super) fn forward(inputs: SsdInputs<Flex>, save_checkpoints: bool) -> SsdOutputs<Flex> {
    let mut held = Ssd::new(inputs);
    if held.dims.seq_len == 1
        && !save_checkpoints
        && let Some(mut state) = held.initial_state.take()
    {
        let y = ssd::step(&held.view(), state.slice_mut());
        return SsdOutputs {
            y: tensor(y, held.sequence(held.dims.nheads * held.dims.headdim)),
            final_state: state.into_tensor(),
            checkpoints: None.into(),
        };
    }
    let outputs = ssd::forward(&held.view(), save_checkpoints);
    let [batch, nheads, headdim, d_state] = held.state();
    let saved = [batch, held.dims.checkpoints(), nheads, d_state, headdim];
    SsdOutputs {
        y: tensor(outputs.y, held.sequence(nheads * headdim)),
        final_state: tensor(outputs.final_state, held.state()),
        checkpoints: outputs
            .checkpoints
            .map(|states| tensor(states, saved))
            .into(),
    }
}

pub(super) fn backward(
    inputs: SsdInputs<Flex>,
    checkpoints: FloatTensor<Flex>,
    grad_y: FloatTensor<Flex>,
    grad_final_state: OptionalFloat<Flex>,
) -> SsdGrads<Flex> {
    let held = Ssd::new(inputs);
    let (checkpoints, grad_y) = (Whole::new(checkpoints), RowTensor::new(grad_y));
    let grad_final_state = whole(grad_final_state);
    let grads = ssd::backward(
        &held.view(),
        checkpoints.slice(),
        grad_y.rows(),
        grad_final_state.as_ref().map(Whole::slice),
    );
    let [_, nheads, headdim, d_state] = held.state();
    let columns = held.dims.ngroups * d_state;
    let d_shape = held.d.as_ref().map(|(_, shape)| shape.clone());
    SsdGrads {
        x: tensor(grads.x, held.sequence(nheads * headdim)),
        dt: tensor(grads.dt, held.sequence(nheads)),
        a: tensor(grads.a, [nheads]),
        b: tensor(grads.b, held.sequence(columns)),
        c: tensor(grads.c, held.sequence(columns)),
        d: grads
            .d
            .zip(d_shape)
            .map(|(grad, shape)| tensor(grad, shape))
            .into(),
        dt_bias: grads.dt_bias.map(|grad| tensor(grad, [nheads])).into(),
        initial_state: grads
            .initial_state
            .map(|grad| tensor(grad, held.state()))
            .into(),
    }
}

/// The gated normalisation's inputs, held where the loops can read them.
struct GatedNorm {
    shape: Shape,
    x: RowTensor,
    z: RowTensor,
    gamma: Whole,
    options: GatedNormOptions,
}

impl GatedNorm {
    fn new(inputs: GatedNormInputs<Flex>) -> Self {
        Self {
            shape: inputs.x.shape(),
            x: RowTensor::new(inputs.x),
            z: RowTensor::new(inputs.z),
            gamma: Whole::new(inputs.gamma),
            options: inputs.options,
        }
    }

    fn view(&self) -> gated_rms_norm::GatedNormInputs<'_> {
        let gamma = self.gamma.slice();
        gated_rms_norm::GatedNormInputs {
            x: self.x.rows(),
            z: self.z.rows(),
            rows: self.shape.num_elements() / gamma.len(),
            gamma,
            group_size: self.options.group_size,
            norm_before_gate: self.options.norm_before_gate,
            epsilon: self.options.epsilon as f32,
        }
    }
}

pub(super) fn gated_norm(inputs: GatedNormInputs<Flex>) -> FloatTensor<Flex> {
    let held = GatedNorm::new(inputs);
    tensor(gated_rms_norm::forward(&held.view()), held.shape.clone())
}

pub(super) fn gated_norm_backward(
    inputs: GatedNormInputs<Flex>,
    grad_y: FloatTensor<Flex>,
) -> GatedNormGrads<Flex> {
    let held = GatedNorm::new(inputs);
    let grad_y = RowTensor::new(grad_y);
    let grads = gated_rms_norm::backward(&held.view(), grad_y.rows());
    let channels = grads.gamma.len();
    GatedNormGrads {
        x: tensor(grads.x, held.shape.clone()),
        z: tensor(grads.z, held.shape.clone()),
        gamma: tensor(grads.gamma, [channels]),
    }
}
