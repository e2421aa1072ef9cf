//! The selective scan: the sequential recurrence, the associative parallel scan, the gradients.
//!
//! ```text
//! dt_t = softplus(delta_t + delta_bias)
//! h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t
//! y_t  = (C_t . h_t + D u_t) silu(z_t)
//! ```

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

use super::{Prim, continues};
use crate::ops::extension::{
    OptionalFloat, SCAN_CHECKPOINT_INTERVAL, ScanGrads, ScanInputs, ScanOutputs,
};

/// The inputs with the sizes read, the discretisation done and the absent parts resolved.
struct Scan<B: Backend> {
    dims: [usize; 4], // batch, seq_len, d_inner, d_state
    u: Prim<B>,
    /// `delta + delta_bias`, before softplus.
    delta: Prim<B>,
    dt: Prim<B>,
    a: Prim<B>, // [1, d_inner, d_state]
    b: Prim<B>,
    c: Prim<B>,
    d: Option<Prim<B>>, // [1, 1, d_inner]
    z: Option<Prim<B>>,
    initial_state: Prim<B>,
    continues: Option<Prim<B>>, // [batch, seq_len]
    delta_softplus: bool,
}

impl<B: Backend> Scan<B> {
    fn new(inputs: ScanInputs<B>) -> Self {
        let u = Prim::<B>(inputs.u);
        let a = Prim::<B>(inputs.a);
        let [batch, seq_len, d_inner] = u.dims();
        let [_, d_state] = a.dims();
        let channels = |vector: FloatTensor<B>| Prim::<B>(vector).reshape([1, 1, d_inner]);
        let mut delta = Prim::<B>(inputs.delta);
        if let Some(bias) = inputs.delta_bias.into_option() {
            delta = &delta + &channels(bias);
        }
        Self {
            dims: [batch, seq_len, d_inner, d_state],
            dt: if inputs.delta_softplus {
                delta.softplus()
            } else {
                delta.clone()
            },
            delta,
            a: a.reshape([1, d_inner, d_state]),
            b: Prim(inputs.b),
            c: Prim(inputs.c),
            d: inputs.d.into_option().map(channels),
            z: inputs.z.into_option().map(Prim),
            initial_state: match inputs.initial_state.into_option() {
                Some(state) => Prim(state),
                None => u.like([batch, d_inner, d_state], 0.0),
            },
            continues: inputs.seq_idx.into_option().map(continues),
            delta_softplus: inputs.delta_softplus,
            u,
        }
    }

    /// Position `t` of `[batch, seq_len, d_inner]` as `[batch, d_inner, 1]`.
    fn channel_at(&self, x: &Prim<B>, t: usize) -> Prim<B> {
        let [batch, _, d_inner, _] = self.dims;
        x.narrow(1, t, 1).reshape([batch, d_inner, 1])
    }

    /// Position `t` of `[batch, seq_len, d_state]` as `[batch, 1, d_state]`.
    fn state_at(&self, x: &Prim<B>, t: usize) -> Prim<B> {
        x.narrow(1, t, 1)
    }

    /// `exp(dt_t A)`, zero where a run begins: `[batch, d_inner, d_state]`.
    fn decay_at(&self, t: usize) -> Prim<B> {
        let decay = (&self.channel_at(&self.dt, t) * &self.a).exp();
        match &self.continues {
            Some(keep) => &decay * &keep.narrow(1, t, 1).reshape([self.dims[0], 1, 1]),
            None => decay,
        }
    }

    /// `dt_t u_t`: `[batch, d_inner, 1]`.
    fn input_at(&self, t: usize) -> Prim<B> {
        &self.channel_at(&self.dt, t) * &self.channel_at(&self.u, t)
    }

    fn advance(&self, state: &Prim<B>, decay: &Prim<B>, t: usize) -> Prim<B> {
        (decay * state) + (&self.input_at(t) * &self.state_at(&self.b, t))
    }

    /// `C_t . h_t` as `[batch, 1, d_inner]`.
    fn read(&self, state: &Prim<B>, t: usize) -> Prim<B> {
        let [batch, _, d_inner, _] = self.dims;
        (state * &self.state_at(&self.c, t))
            .sum_dim(2)
            .reshape([batch, 1, d_inner])
    }

    /// The skip connection and the gate, over all positions.
    fn finish(&self, y: Prim<B>) -> Prim<B> {
        let y = match &self.d {
            Some(d) => &y + &(&self.u * d),
            None => y,
        };
        match &self.z {
            Some(z) => &y * &z.silu(),
            None => y,
        }
    }
}

/// One position after the other.
pub(crate) fn forward<B: Backend>(inputs: ScanInputs<B>, save_checkpoints: bool) -> ScanOutputs<B> {
    let scan = Scan::new(inputs);
    let [batch, seq_len, d_inner, d_state] = scan.dims;
    let mut state = scan.initial_state.clone();
    let mut rows = Vec::with_capacity(seq_len);
    let mut checkpoints = Vec::new();
    for t in 0..seq_len {
        if save_checkpoints && t % SCAN_CHECKPOINT_INTERVAL == 0 {
            checkpoints.push(state.transpose().reshape([batch, 1, d_state, d_inner]));
        }
        state = scan.advance(&state, &scan.decay_at(t), t);
        rows.push(scan.read(&state, t));
    }
    ScanOutputs {
        y: scan.finish(Prim::cat(rows, 1)).0,
        final_state: state.0,
        checkpoints: match save_checkpoints {
            true => OptionalFloat::Present(Prim::cat(checkpoints, 1).0),
            false => OptionalFloat::Absent,
        },
    }
}

/// All positions at once: `log2(seq_len)` passes of the associative operator
/// `(a1, x1) . (a2, x2) = (a1 a2, a2 x1 + x2)` over `[batch, seq_len, d_inner, d_state]`.
///
/// A path of its own beside [`forward`], to check one against the other. It stores every state,
/// so it is no way to train.
pub(crate) fn forward_parallel<B: Backend>(inputs: ScanInputs<B>) -> ScanOutputs<B> {
    let scan = Scan::new(inputs);
    let [batch, seq_len, d_inner, d_state] = scan.dims;
    let per_channel = |x: &Prim<B>| x.reshape([batch, seq_len, d_inner, 1]);
    let per_state = |x: &Prim<B>| x.reshape([batch, seq_len, 1, d_state]);

    let mut decay = (&per_channel(&scan.dt) * &scan.a.reshape([1, 1, d_inner, d_state])).exp();
    if let Some(keep) = &scan.continues {
        decay = &decay * &keep.reshape([batch, seq_len, 1, 1]);
    }
    let mut state = &per_channel(&(&scan.dt * &scan.u)) * &per_state(&scan.b);
    let mut stride = 1;
    while stride < seq_len {
        let rest = seq_len - stride;
        let tail = decay.narrow(1, stride, rest);
        let moved = &tail * &state.narrow(1, 0, rest);
        state = Prim::cat(
            vec![
                state.narrow(1, 0, stride),
                moved + state.narrow(1, stride, rest),
            ],
            1,
        );
        decay = Prim::cat(
            vec![decay.narrow(1, 0, stride), tail * decay.narrow(1, 0, rest)],
            1,
        );
        stride *= 2;
    }
    let initial = scan.initial_state.reshape([batch, 1, d_inner, d_state]);
    let state = state + (&decay * &initial);
    let y = (&state * &per_state(&scan.c))
        .sum_dim(3)
        .reshape([batch, seq_len, d_inner]);
    ScanOutputs {
        y: scan.finish(y).0,
        final_state: state
            .narrow(1, seq_len - 1, 1)
            .reshape([batch, d_inner, d_state])
            .0,
        checkpoints: OptionalFloat::Absent,
    }
}

/// Walks the chunks backwards; each is recomputed from its checkpoint.
pub(crate) fn backward<B: Backend>(
    inputs: ScanInputs<B>,
    checkpoints: FloatTensor<B>,
    grad_y: FloatTensor<B>,
    grad_final_state: OptionalFloat<B>,
) -> ScanGrads<B> {
    let has_initial_state = matches!(inputs.initial_state, OptionalFloat::Present(_));
    let has_bias = matches!(inputs.delta_bias, OptionalFloat::Present(_));
    let scan = Scan::new(inputs);
    let [batch, seq_len, d_inner, d_state] = scan.dims;
    let checkpoints = Prim::<B>(checkpoints);
    let grad_y = Prim::<B>(grad_y);
    // The gradient of y before the gate.
    let grad_read = match &scan.z {
        Some(z) => &grad_y * &z.silu(),
        None => grad_y.clone(),
    };

    let mut grad_state = match grad_final_state.into_option() {
        Some(grad) => Prim(grad),
        None => grad_y.like([batch, d_inner, d_state], 0.0),
    };
    let mut grad_a = grad_y.like([1, d_inner, d_state], 0.0);
    // One entry a position, last position first; turned and joined at the end.
    let mut reads = Vec::with_capacity(seq_len);
    let mut grad_b = Vec::with_capacity(seq_len);
    let mut grad_c = Vec::with_capacity(seq_len);
    let mut grad_dt = Vec::with_capacity(seq_len);
    let mut grad_input = Vec::with_capacity(seq_len);

    for chunk in (0..seq_len.div_ceil(SCAN_CHECKPOINT_INTERVAL)).rev() {
        let start = chunk * SCAN_CHECKPOINT_INTERVAL;
        let end = (start + SCAN_CHECKPOINT_INTERVAL).min(seq_len);
        let mut states = vec![
            checkpoints
                .narrow(1, chunk, 1)
                .reshape([batch, d_state, d_inner])
                .transpose(),
        ];
        let decays: Vec<_> = (start..end).map(|t| scan.decay_at(t)).collect();
        for t in start..end {
            states.push(scan.advance(&states[t - start], &decays[t - start], t));
        }
        for t in (start..end).rev() {
            let (before, after) = (&states[t - start], &states[t - start + 1]);
            let decay = &decays[t - start];
            let grad = scan.channel_at(&grad_read, t);
            grad_state = grad_state + (&grad * &scan.state_at(&scan.c, t));
            reads.push(scan.read(after, t));
            grad_c.push((&grad * after).sum_dim(1));
            grad_b.push((&grad_state * &scan.input_at(t)).sum_dim(1));
            let to_row = |x: Prim<B>| x.sum_dim(2).reshape([batch, 1, d_inner]);
            grad_input.push(to_row(&grad_state * &scan.state_at(&scan.b, t)));
            // d loss / d (dt A), through the exponential.
            let exponent = &(&grad_state * before) * decay;
            grad_dt.push(to_row(&exponent * &scan.a));
            let dt = scan.channel_at(&scan.dt, t);
            grad_a = grad_a + (&exponent * &dt).sum_dim(0);
            grad_state = &grad_state * decay;
        }
    }

    let join = |mut rows: Vec<Prim<B>>| {
        rows.reverse();
        Prim::cat(rows, 1)
    };
    let grad_input = join(grad_input);
    let mut grad_delta = join(grad_dt) + (&grad_input * &scan.u);
    if scan.delta_softplus {
        grad_delta = &grad_delta * &scan.delta.sigmoid();
    }
    let mut grad_u = &grad_input * &scan.dt;
    if let Some(d) = &scan.d {
        grad_u = &grad_u + &(&grad_read * d);
    }
    let over_time = |x: &Prim<B>| x.sum_dim(1).sum_dim(0).reshape([d_inner]).0;
    let grad_z = scan.z.as_ref().map(|z| {
        let skip = scan.d.as_ref().map(|d| &scan.u * d);
        let reads = join(reads);
        let ungated = match skip {
            Some(skip) => reads + skip,
            None => reads,
        };
        (&(&grad_y * &ungated) * &z.silu_grad()).0
    });
    ScanGrads {
        delta_bias: has_bias.then(|| over_time(&grad_delta)).into(),
        d: scan
            .d
            .as_ref()
            .map(|_| over_time(&(&grad_read * &scan.u)))
            .into(),
        u: grad_u.0,
        delta: grad_delta.0,
        a: grad_a.reshape([d_inner, d_state]).0,
        b: join(grad_b).0,
        c: join(grad_c).0,
        z: grad_z.into(),
        initial_state: has_initial_state.then_some(grad_state.0).into(),
    }
}
