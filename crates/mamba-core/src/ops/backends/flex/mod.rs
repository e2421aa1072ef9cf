//! Flex: the fused loops of [`crate::ops::cpu`] on the tensors' own memory.

mod attention;
mod inputs;
mod ssd;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{Bytes, DType, FloatDType, Shape, TensorData};
use burn_flex::FlexTensor;

use crate::ops::cpu::{
    Added, causal_conv1d, gelu, linear, linear_cross_entropy, rms_norm, selective_scan,
};
use crate::ops::extension::{
    AttentionGrads, AttentionOutputs, ConvGrads, ConvInputs, ConvOutputs, GatedNormGrads,
    GatedNormInputs, LossGrads, MambaOps, NormGrads, OptionalFloat, ScanGrads, ScanInputs,
    ScanOutputs, SsdGrads, SsdInputs, SsdOutputs,
};
use inputs::{Conv, Loss, Norm, RowTensor, Scan, WeightTensor, Whole, whole};

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FloatTensor<Flex> {
    let shape = shape.into();
    FlexTensor::from_data(TensorData::from_bytes(
        Bytes::from_elems(values),
        shape,
        DType::F32,
    ))
}

/// The loops read and write f32 alone.
fn assert_single(op: &str, out: FloatDType) {
    assert!(
        out == FloatDType::F32,
        "{op}: Flex writes f32 only, not {out:?}"
    );
}

impl MambaOps for Flex {
    fn selective_scan(inputs: ScanInputs<Self>, save_checkpoints: bool) -> ScanOutputs<Self> {
        let mut scan = Scan::new(inputs);
        let selective_scan::ScanDims {
            batch,
            seq_len,
            d_inner,
            d_state,
        } = scan.dims;
        if seq_len == 1
            && !save_checkpoints
            && let Some(mut state) = scan.initial_state.take()
        {
            let y = selective_scan::step(&scan.view(), state.slice_mut());
            return ScanOutputs {
                y: tensor(y, [batch, seq_len, d_inner]),
                final_state: state.into_tensor(),
                checkpoints: None.into(),
            };
        }
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

    fn ssd(inputs: SsdInputs<Self>, save_checkpoints: bool) -> SsdOutputs<Self> {
        ssd::forward(inputs, save_checkpoints)
    }

    fn ssd_backward(
        inputs: SsdInputs<Self>,
        checkpoints: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        grad_final_state: OptionalFloat<Self>,
    ) -> SsdGrads<Self> {
        ssd::backward(inputs, checkpoints, grad_y, grad_final_state)
    }

    fn gated_rms_norm(inputs: GatedNormInputs<Self>) -> FloatTensor<Self> {
        ssd::gated_norm(inputs)
    }

    fn gated_rms_norm_backward(
        inputs: GatedNormInputs<Self>,
        grad_y: FloatTensor<Self>,
    ) -> GatedNormGrads<Self> {
        ssd::gated_norm_backward(inputs, grad_y)
    }

    fn causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        heads: usize,
    ) -> AttentionOutputs<Self> {
        attention::forward(query, key, value, heads)
    }

    fn causal_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        heads: usize,
        y: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
    ) -> AttentionGrads<Self> {
        attention::backward([query, key, value], heads, [y, log_sums], grad_y)
    }

    fn tanh_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = x.shape();
        tensor(gelu::forward(Whole::new(x).slice()), shape)
    }

    fn tanh_gelu_backward(x: FloatTensor<Self>, grad_y: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = x.shape();
        let (x, grad_y) = (Whole::new(x), Whole::new(grad_y));
        tensor(gelu::backward(x.slice(), grad_y.slice()), shape)
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

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalFloat<Self>,
        residual: OptionalFloat<Self>,
        out: FloatDType,
    ) -> FloatTensor<Self> {
        assert_single("linear", out);
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        shape[last] = weight.shape()[1];
        let (x, weight, bias) = (RowTensor::new(x), WeightTensor::new(weight), whole(bias));
        let residual = residual.into_option().map(RowTensor::new);
        let added = Added {
            bias: bias.as_ref().map(Whole::slice),
            residual: residual.as_ref().map(RowTensor::rows),
        };
        tensor(linear(x.matrix(), weight.matrix(), added), shape)
    }

    fn fused_linear_weight_backward(
        x: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (x, grad_y) = (RowTensor::new(x), RowTensor::new(grad_y));
        let (x, grad_y) = (x.matrix().transposed(), grad_y.matrix());
        tensor(
            linear(x, grad_y, Added::default()),
            [x.rows(), grad_y.columns()],
        )
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        out: FloatDType,
    ) -> FloatTensor<Self> {
        assert_single("rms_norm", out);
        let norm = Norm::new(x, gamma, epsilon);
        tensor(rms_norm::forward(&norm.view()), norm.shape.clone())
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        grad_y: FloatTensor<Self>,
    ) -> NormGrads<Self> {
        let norm = Norm::new(x, gamma, epsilon);
        let grad_y = RowTensor::new(grad_y);
        let grads = rms_norm::backward(&norm.view(), grad_y.rows());
        let d_model = grads.gamma.len();
        NormGrads {
            x: tensor(grads.x, norm.shape.clone()),
            gamma: tensor(grads.gamma, [d_model]),
        }
    }
}
