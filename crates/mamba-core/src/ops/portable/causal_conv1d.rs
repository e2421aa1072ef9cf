//! Depthwise causal convolution as a sum of shifted products, one a tap.
//!
//! ```text
//! y_t = silu(bias + sum_k weight[k] x_{t - (width - 1) + k})
//! ```

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

use super::{Prim, continues};
use crate::ops::extension::{ConvGrads, ConvInputs, ConvOutputs, OptionalFloat};

struct Conv<B: Backend> {
    dims: [usize; 4], // batch, seq_len, channels, width
    /// The window and the sequence: `[batch, width - 1 + seq_len, channels]`.
    padded: Prim<B>,
    weight: Prim<B>,
    bias: Option<Prim<B>>,
    /// By lag: 1 where a position and the one `lag` before it are of one run, `[batch, seq_len, 1]`.
    same_run: Option<Vec<Prim<B>>>,
    silu: bool,
}

impl<B: Backend> Conv<B> {
    fn new(inputs: ConvInputs<B>) -> Self {
        let x = Prim::<B>(inputs.x);
        let weight = Prim::<B>(inputs.weight);
        let [batch, seq_len, channels] = x.dims();
        let [_, width] = weight.dims();
        let padded = match width {
            1 => x.clone(),
            _ => {
                let window = match inputs.initial_state.into_option() {
                    Some(window) => Prim(window),
                    None => x.like([batch, width - 1, channels], 0.0),
                };
                Prim::cat(vec![window, x.clone()], 1)
            }
        };
        let same_run = inputs.seq_idx.into_option().map(|seq_idx| {
            let continues = continues::<B>(seq_idx).reshape([batch, seq_len, 1]);
            let mut by_lag = vec![continues.like([batch, seq_len, 1], 1.0)];
            for lag in 1..width {
                // The step that leads to `t - (lag - 1)` must not begin a run either.
                let earlier = lag_by(&continues, lag - 1, 1.0);
                by_lag.push(&by_lag[lag - 1] * &earlier);
            }
            by_lag
        });
        Self {
            dims: [batch, seq_len, channels, width],
            padded,
            weight,
            bias: inputs
                .bias
                .into_option()
                .map(|b| Prim::<B>(b).reshape([1, 1, channels])),
            same_run,
            silu: inputs.silu,
        }
    }

    /// What tap `k` reads at every position.
    fn tap(&self, k: usize) -> Prim<B> {
        let [_, seq_len, _, width] = self.dims;
        let x = self.padded.narrow(1, k, seq_len);
        match &self.same_run {
            Some(by_lag) => &x * &by_lag[width - 1 - k],
            None => x,
        }
    }

    fn tap_weight(&self, k: usize) -> Prim<B> {
        self.weight.narrow(1, k, 1).reshape([1, 1, self.dims[2]])
    }

    fn pre_activation(&self) -> Prim<B> {
        let mut sum = &self.tap(0) * &self.tap_weight(0);
        for k in 1..self.dims[3] {
            sum = sum + (&self.tap(k) * &self.tap_weight(k));
        }
        match &self.bias {
            Some(bias) => &sum + bias,
            None => sum,
        }
    }

    /// 1 for the entries of the final window that belong to the last run: `[batch, width - 1, 1]`.
    fn window_mask(&self) -> Option<Prim<B>> {
        let [_, seq_len, _, width] = self.dims;
        let by_lag = self.same_run.as_ref()?;
        let entries = (0..width - 1).map(|i| by_lag[width - 2 - i].narrow(1, seq_len - 1, 1));
        Some(Prim::cat(entries.collect(), 1))
    }
}

/// `x` moved `lag` positions later, with `fill` before its start.
fn lag_by<B: Backend>(x: &Prim<B>, lag: usize, fill: f64) -> Prim<B> {
    let [batch, seq_len, one] = x.dims();
    match lag {
        0 => x.clone(),
        lag if lag >= seq_len => x.like([batch, seq_len, one], fill),
        lag => Prim::cat(
            vec![
                x.like([batch, lag, one], fill),
                x.narrow(1, 0, seq_len - lag),
            ],
            1,
        ),
    }
}

pub(crate) fn forward<B: Backend>(inputs: ConvInputs<B>) -> ConvOutputs<B> {
    let conv = Conv::new(inputs);
    let [batch, seq_len, channels, width] = conv.dims;
    let y = conv.pre_activation();
    let y = if conv.silu { y.silu() } else { y };
    let final_state = match width {
        1 => y.like([batch, 0, channels], 0.0),
        _ => {
            let window = conv.padded.narrow(1, seq_len, width - 1);
            match conv.window_mask() {
                Some(mask) => &window * &mask,
                None => window,
            }
        }
    };
    ConvOutputs {
        y: y.0,
        final_state: final_state.0,
    }
}

pub(crate) fn backward<B: Backend>(
    inputs: ConvInputs<B>,
    grad_y: FloatTensor<B>,
    grad_final_state: OptionalFloat<B>,
) -> ConvGrads<B> {
    let has_initial_state = matches!(inputs.initial_state, OptionalFloat::Present(_));
    let conv = Conv::new(inputs);
    let [batch, seq_len, channels, width] = conv.dims;
    let mut grad = Prim::<B>(grad_y);
    if conv.silu {
        grad = &grad * &conv.pre_activation().silu_grad();
    }

    let mut grad_padded = grad.like([batch, width - 1 + seq_len, channels], 0.0);
    let mut grad_weight = Vec::with_capacity(width);
    for k in 0..width {
        let over_time = (&grad * &conv.tap(k)).sum_dim(1).sum_dim(0);
        grad_weight.push(over_time.reshape([channels, 1]));
        let mut grad_tap = &grad * &conv.tap_weight(k);
        if let Some(by_lag) = &conv.same_run {
            grad_tap = &grad_tap * &by_lag[width - 1 - k];
        }
        grad_padded = grad_padded + pad_time(grad_tap, k, width - 1 - k);
    }
    if let (Some(window), true) = (grad_final_state.into_option(), width > 1) {
        let window = Prim::<B>(window);
        let window = match conv.window_mask() {
            Some(mask) => &window * &mask,
            None => window,
        };
        grad_padded = grad_padded + pad_time(window, seq_len, 0);
    }
    ConvGrads {
        x: grad_padded.narrow(1, width - 1, seq_len).0,
        weight: Prim::cat(grad_weight, 1).0,
        bias: conv
            .bias
            .is_some()
            .then(|| grad.sum_dim(1).sum_dim(0).reshape([channels]).0)
            .into(),
        initial_state: has_initial_state
            .then(|| grad_padded.narrow(1, 0, width - 1).0)
            .into(),
    }
}

/// Zeros before and after along time.
fn pad_time<B: Backend>(x: Prim<B>, before: usize, after: usize) -> Prim<B> {
    let [batch, _, channels] = x.dims();
    let zeros = |len: usize| x.like([batch, len, channels], 0.0);
    let mut parts = Vec::with_capacity(3);
    if before > 0 {
        parts.push(zeros(before));
    }
    parts.push(x.clone());
    if after > 0 {
        parts.push(zeros(after));
    }
    Prim::cat(parts, 1)
}
