//! Flex: the fused loops of [`crate::ops::cpu`] on the tensors' own memory.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{Bytes, DType, Shape, TensorData};
use burn_flex::FlexTensor;

use crate::ops::cpu::{Rows, causal_conv1d, linear_cross_entropy, selective_scan};
use crate::ops::extension::{
    ConvGrads, ConvInputs, ConvOutputs, LossGrads, MambaOps, OptionalFloat, OptionalInt,
    SCAN_CHECKPOINT_INTERVAL, ScanGrads, ScanInputs, ScanOutputs,
};

const _: () = assert!(SCAN_CHECKPOINT_INTERVAL == selective_scan::CHECKPOINT_INTERVAL);

/// A tensor whose rows (all axes but the last) are evenly spaced in memory, which slices along the
/// last axis are: they are read in place. Anything else is copied once.
struct RowTensor(FlexTensor);

impl RowTensor {
    fn new(tensor: FlexTensor) -> Self {
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

    fn rows(&self) -> Rows<'_> {
        let layout = self.0.layout();
        let row_stride = layout.strides()[layout.num_dims() - 2] as usize;
        let data = &self.0.storage::<f32>()[layout.start_offset()..];
        Rows { data, row_stride }
    }
}

/// A tensor in one piece.
struct Whole(FlexTensor);

impl Whole {
    fn new(tensor: FlexTensor) -> Self {
        Self(tensor.to_contiguous())
    }

    fn slice(&self) -> &[f32] {
        self.0
            .as_slice()
            .expect("seam tensors are f32 and this one was made contiguous")
    }
}

fn whole(tensor: OptionalFloat<Flex>) -> Option<Whole> {
    tensor.into_option().map(Whole::new)
}

fn integers(tensor: IntTensor<Flex>) -> TensorData {
    tensor.into_data()
}

fn sequence_numbers(tensor: OptionalInt<Flex>) -> Option<Vec<i32>> {
    // Only equality of neighbours matters, so narrowing is harmless for ids below 2^32.
    let narrow = |data: TensorData| data.iter::<i64>().map(|id| id as i32).collect();
    tensor.into_option().map(|tensor| narrow(integers(tensor)))
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FloatTensor<Flex> {
    let shape: Shape = shape.into();
    FlexTensor::from_data(TensorData::from_bytes(
        Bytes::from_elems(values),
        shape,
        DType::F32,
    ))
}

/// The scan's inputs, held where the loops can read them.
struct Scan {
    dims: selective_scan::ScanDims,
    u: RowTensor,
    delta: RowTensor,
    a: Whole,
    b: RowTensor,
    c: RowTensor,
    d: Option<Whole>,
    z: Option<RowTensor>,
    delta_bias: Option<Whole>,
    initial_state: Option<Whole>,
    seq_idx: Option<Vec<i32>>,
    delta_softplus: bool,
}

impl Scan {
    fn new(inputs: ScanInputs<Flex>) -> Self {
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

    fn view(&self) -> selective_scan::ScanInputs<'_> {
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
struct Conv {
    dims: [usize; 4], // batch, seq_len, channels, width
    x: RowTensor,
    weight: Whole,
    bias: Option<Whole>,
    initial_window: Option<Whole>,
    seq_idx: Option<Vec<i32>>,
    silu: bool,
}

impl Conv {
    fn new(inputs: ConvInputs<Flex>) -> Self {
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

    fn view(&self) -> causal_conv1d::ConvInputs<'_> {
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
struct Loss {
    hidden: Whole,
    weight: Whole,
    targets: Vec<i64>,
    dims: [usize; 3], // tokens, rows, d_model
    vocab_size: usize,
}

impl Loss {
    fn new(
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

    fn view(&self) -> linear_cross_entropy::LossInputs<'_, i64> {
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

impl MambaOps for Flex {
    fn selective_scan(inputs: ScanInputs<Self>, save_checkpoints: bool) -> ScanOutputs<Self> {
        let scan = Scan::new(inputs);
        let selective_scan::ScanDims {
            batch,
            seq_len,
            d_inner,
            d_state,
        } = scan.dims;
        let outputs = selective_scan::forward(&scan.view(), save_checkpoints);
        let shape = [batch, scan.dims.checkpoints(), d_state, d_inner];
        ScanOutputs {
            y: tensor(outputs.y, [batch, seq_len, d_inner]),
            final_state: tensor(outputs.final_state, [batch, d_inner, d_state]),
            checkpoints: outputs
                .checkpoints
                .map(|states| tensor(states, shape))
                .into(),
        }
    }

    fn selective_scan_backward(
        inputs: ScanInputs<Self>,
        checkpoints: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        grad_final_state: OptionalFloat<Self>,
    ) -> ScanGrads<Self> {
        let scan = Scan::new(inputs);
        let selective_scan::ScanDims {
            batch,
            seq_len,
            d_inner,
            d_state,
        } = scan.dims;
        let (checkpoints, grad_y) = (Whole::new(checkpoints), Whole::new(grad_y));
        let grad_final_state = whole(grad_final_state);
        let grads = selective_scan::backward(
            &scan.view(),
            checkpoints.slice(),
            grad_y.slice(),
            grad_final_state.as_ref().map(Whole::slice),
        );
        let initial_state = scan.initial_state.is_some().then_some(grads.initial_state);
        let state = [batch, d_inner, d_state];
        ScanGrads {
            u: tensor(grads.u, [batch, seq_len, d_inner]),
            delta: tensor(grads.delta, [batch, seq_len, d_inner]),
            a: tensor(grads.a, [d_inner, d_state]),
            b: tensor(grads.b, [batch, seq_len, d_state]),
            c: tensor(grads.c, [batch, seq_len, d_state]),
            d: grads.d.map(|grad| tensor(grad, [d_inner])).into(),
            z: grads
                .z
                .map(|grad| tensor(grad, [batch, seq_len, d_inner]))
                .into(),
            delta_bias: grads.delta_bias.map(|grad| tensor(grad, [d_inner])).into(),
            initial_state: initial_state.map(|grad| tensor(grad, state)).into(),
        }
    }

    fn causal_conv1d(inputs: ConvInputs<Self>) -> ConvOutputs<Self> {
        let conv = Conv::new(inputs);
        let [batch, seq_len, channels, width] = conv.dims;
        let outputs = causal_conv1d::forward(&conv.view());
        ConvOutputs {
            y: tensor(outputs.y, [batch, seq_len, channels]),
            final_state: tensor(outputs.final_window, [batch, width - 1, channels]),
        }
    }

    fn causal_conv1d_backward(
        inputs: ConvInputs<Self>,
        grad_y: FloatTensor<Self>,
        grad_final_state: OptionalFloat<Self>,
    ) -> ConvGrads<Self> {
        let conv = Conv::new(inputs);
        let [batch, seq_len, channels, width] = conv.dims;
        let grad_y = Whole::new(grad_y);
        let grad_window = whole(grad_final_state);
        let grads = causal_conv1d::backward(
            &conv.view(),
            grad_y.slice(),
            grad_window.as_ref().map(Whole::slice),
        );
        let window = conv
            .initial_window
            .is_some()
            .then_some(grads.initial_window);
        ConvGrads {
            x: tensor(grads.x, [batch, seq_len, channels]),
            weight: tensor(grads.weight, [channels, width]),
            bias: grads.bias.map(|grad| tensor(grad, [channels])).into(),
            initial_state: window
                .map(|grad| tensor(grad, [batch, width - 1, channels]))
                .into(),
        }
    }

    fn token_losses(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        let loss = Loss::new(hidden, weight, targets, vocab_size);
        tensor(
            linear_cross_entropy::token_losses(&loss.view()),
            [loss.dims[0]],
        )
    }

    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        let loss = Loss::new(hidden, weight, targets, vocab_size);
        tensor(vec![linear_cross_entropy::loss(&loss.view())], [1])
    }

    fn linear_cross_entropy_with_grads(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        vocab_size: usize,
    ) -> LossGrads<Self> {
        let loss = Loss::new(hidden, weight, targets, vocab_size);
        let [tokens, rows, d_model] = loss.dims;
        let grads = linear_cross_entropy::loss_and_grads(&loss.view());
        LossGrads {
            loss: tensor(vec![grads.loss], [1]),
            hidden: tensor(grads.hidden, [tokens, d_model]),
            weight: tensor(grads.weight, [rows, d_model]),
        }
    }
}
