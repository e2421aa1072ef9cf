//! Tensors held where the loops can read them.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{Shape, TensorData};
use burn_flex::FlexTensor;

use crate::ops::cpu::{
    Matrix, Rows, causal_conv1d, linear_cross_entropy, rms_norm, selective_scan,
};
use crate::ops::extension::{ConvInputs, OptionalFloat, OptionalInt, ScanInputs};

/// A tensor whose rows (all axes but the last) are evenly spaced in memory, which slices along the
/// last axis are: they are read in place. Anything else is copied once.
pub(super) struct RowTensor(FlexTensor);

impl RowTensor {
    pub(super) fn new(tensor: FlexTensor) -> Self {
        let layout = tensor.layout();
        let (shape, strides) = (layout.shape(), layout.strides());
        let last = strides.len() - 1;
        let even = strides[last] == 1
            && strides[last - 1] >= shape[last] as isize
            && (1..last).all(|axis| {
                shape[axis - 1] == 1 || strides[axis - 1] == strides[axis] * shape[axis] as isize
            });
        Self(if even { tensor } else { tensor.to_contiguous() })
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        let layout = self.0.layout();
        let row_stride = layout.strides()[layout.num_dims() - 2] as usize;
        let data = &self.0.storage::<f32>()[layout.start_offset()..];
        Rows { data, row_stride }
    }

    /// All axes but the last as one.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        let shape = self.0.layout().shape();
        let columns = shape[shape.num_dims() - 1];
        let rows = shape.num_elements() / columns.max(1);
        let Rows { data, row_stride } = self.rows();
        Matrix::new(data, rows, columns, row_stride)
    }
}

/// A matrix read in place in either order, since products take weights as they are and transposed.
pub(super) struct WeightTensor(FlexTensor);

impl WeightTensor {
    pub(super) fn new(tensor: FlexTensor) -> Self {
        let forward = tensor.layout().strides().iter().all(|stride| *stride >= 0);
        Self(if forward {
            tensor
        } else {
            tensor.to_contiguous()
        })
    }

    pub(super) fn matrix(&self) -> Matrix<'_> {
        let layout = self.0.layout();
        let strides = [0, 1].map(|axis| layout.strides()[axis] as usize);
        let data = &self.0.storage::<f32>()[layout.start_offset()..];
        Matrix::strided(data, layout.shape().dims(), strides)
    }
}

/// A tensor in one piece.
pub(super) struct Whole(FlexTensor);

impl Whole {
    pub(super) fn new(tensor: FlexTensor) -> Self {
        Self(tensor.to_contiguous())
    }

    pub(super) fn slice(&self) -> &[f32] {
        self.0
            .as_slice()
            .expect("seam tensors are f32 and this one was made contiguous")
    }

    /// To be changed; copied first where another tensor has the same memory.
    pub(super) fn slice_mut(&mut self) -> &mut [f32] {
        let (start, len) = (
            self.0.layout().start_offset(),
            self.0.layout().num_elements(),
        );
        &mut self.0.storage_mut::<f32>()[start..start + len]
    }

    pub(super) fn into_tensor(self) -> FloatTensor<Flex> {
        self.0
    }
}

pub(super) fn whole(tensor: OptionalFloat<Flex>) -> Option<Whole> {
    tensor.into_option().map(Whole::new)
}

pub(super) fn integers(tensor: IntTensor<Flex>) -> TensorData {
    tensor.into_data()
}

pub(super) fn sequence_numbers(tensor: OptionalInt<Flex>) -> Option<Vec<i32>> {
    // Only equality of neighbours matters, so narrowing is harmless for ids below 2^32.
    let narrow = |data: TensorData| data.iter::<i64>().map(|id| id as i32).collect();
    tensor.into_option().map(|tensor| narrow(integers(tensor)))
}

/// The scan's inputs, held where the loops can read them.
pub(super) struct Scan {
    pub(super) dims: selective_scan::ScanDims,
    pub(super) u: RowTensor,
    pub(super) delta: RowTensor,
    pub(super) a: Whole,
    pub(super) b: RowTensor,
    pub(super) c: RowTensor,
    pub(super) d: Option<Whole>,
    pub(super) z: Option<RowTensor>,
    pub(super) delta_bias: Option<Whole>,
    pub(super) initial_state: Option<Whole>,
    pub(super) seq_idx: Option<Vec<i32>>,
    pub(super) delta_softplus: bool,
}

impl Scan {
    pub(super) fn new(inputs: ScanInputs<Flex>) -> Self {
        let [batch, seq_len, d_inner] = inputs.u.shape().dims();
        let [_, d_state] = inputs.a.shape().dims();
        Self {
            dims: selective_scan::ScanDims {
                batch,
                seq_len,
                d_inner,
                d_state,
            },
            u: RowTensor::new(inputs.u),
            delta: RowTensor::new(inputs.delta),
            a: Whole::new(inputs.a),
            b: RowTensor::new(inputs.b),
            c: RowTensor::new(inputs.c),
            d: whole(inputs.d),
            z: inputs.z.into_option().map(RowTensor::new),
            delta_bias: whole(inputs.delta_bias),
            initial_state: whole(inputs.initial_state),
            seq_idx: sequence_numbers(inputs.seq_idx),
            delta_softplus: inputs.delta_softplus,
        }
    }

    pub(super) fn view(&self) -> selective_scan::ScanInputs<'_> {
        selective_scan::ScanInputs {
            dims: self.dims,
            u: self.u.rows(),
            delta: self.delta.rows(),
            a: self.a.slice(),
            b: self.b.rows(),
            c: self.c.rows(),
            d: self.d.as_ref().map(Whole::slice),
            z: self.z.as_ref().map(RowTensor::rows),
            delta_bias: self.delta_bias.as_ref().map(Whole::slice),
            delta_softplus: self.delta_softplus,
            initial_state: self.initial_state.as_ref().map(Whole::slice),
            seq_idx: self.seq_idx.as_deref(),
        }
    }
}

/// The convolution's inputs, held where the loops can read them.
pub(super) struct Conv {
    pub(super) dims: [usize; 4], // batch, seq_len, channels, width
    pub(super) x: RowTensor,
    pub(super) weight: Whole,
    pub(super) bias: Option<Whole>,
    pub(super) initial_window: Option<Whole>,
    pub(super) seq_idx: Option<Vec<i32>>,
    pub(super) silu: bool,
}

impl Conv {
    pub(super) fn new(inputs: ConvInputs<Flex>) -> Self {
        let [batch, seq_len, channels] = inputs.x.shape().dims();
        let [_, width] = inputs.weight.shape().dims();
        Self {
            dims: [batch, seq_len, channels, width],
            x: RowTensor::new(inputs.x),
            weight: Whole::new(inputs.weight),
            bias: whole(inputs.bias),
            initial_window: whole(inputs.initial_state),
            seq_idx: sequence_numbers(inputs.seq_idx),
            silu: inputs.silu,
        }
    }

    pub(super) fn view(&self) -> causal_conv1d::ConvInputs<'_> {
        let [batch, seq_len, channels, width] = self.dims;
        causal_conv1d::ConvInputs {
            batch,
            seq_len,
            channels,
            width,
            x: self.x.rows(),
            weight: self.weight.slice(),
            bias: self.bias.as_ref().map(Whole::slice),
            initial_window: self.initial_window.as_ref().map(Whole::slice),
            seq_idx: self.seq_idx.as_deref(),
            silu: self.silu,
        }
    }
}

/// The loss's inputs, held where the loops can read them.
pub(super) struct Loss {
    pub(super) hidden: Whole,
    pub(super) weight: Whole,
    pub(super) targets: Vec<i64>,
    pub(super) dims: [usize; 3], // tokens, rows, d_model
    pub(super) vocab_size: usize,
}

impl Loss {
    pub(super) fn new(
        hidden: FloatTensor<Flex>,
        weight: FloatTensor<Flex>,
        targets: IntTensor<Flex>,
        vocab_size: usize,
    ) -> Self {
        let [tokens, d_model] = hidden.shape().dims();
        let [rows, _] = weight.shape().dims();
        Self {
            hidden: Whole::new(hidden),
            weight: Whole::new(weight),
            targets: integers(targets)
                .iter::<i64>()
                .map(|target| target.max(-1))
                .collect(),
            dims: [tokens, rows, d_model],
            vocab_size,
        }
    }

    pub(super) fn view(&self) -> linear_cross_entropy::LossInputs<'_, i64> {
        linear_cross_entropy::LossInputs {
            hidden: self.hidden.slice(),
            weight: self.weight.slice(),
            targets: &self.targets,
            d_model: self.dims[2],
            vocab_size: self.vocab_size,
            ignore_index: Some(-1),
        }
    }
}

/// The norm's inputs, held where the loops can read them.
pub(super) struct Norm {
    pub(super) shape: Shape,
    pub(super) x: RowTensor,
    pub(super) gamma: Whole,
    pub(super) epsilon: f32,
}

impl Norm {
    pub(super) fn new(x: FloatTensor<Flex>, gamma: FloatTensor<Flex>, epsilon: f64) -> Self {
        Self {
            shape: x.shape(),
            x: RowTensor::new(x),
            gamma: Whole::new(gamma),
            epsilon: epsilon as f32,
        }
    }

    pub(super) fn view(&self) -> rms_norm::NormInputs<'_> {
        let gamma = self.gamma.slice();
        rms_norm::NormInputs {
            x: self.x.rows(),
            rows: self.shape.num_elements() / gamma.len(),
            gamma,
            epsilon: self.epsilon,
        }
    }
}
