//! The selective scan, on tensors.

use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor, assert_shape};

use super::extension::{MambaOps, ScanInputs};
use super::{
    Strategy, float_primitive, optional_float, optional_int, primitive_of, reference,
    sequence_dtype,
};

/// Arguments of [`selective_scan`].
///
/// ```text
/// dt_t = softplus(delta_t + delta_bias)
/// h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t
/// y_t  = (C_t . h_t + D u_t) silu(z_t)
/// ```
///
/// Source: Gu and Dao 2023, "Mamba", section 3.2 and algorithm 2.
#[derive(Clone, Debug)]
pub struct SelectiveScan {
    /// Input sequence, `[batch, seq_len, d_inner]`.
    pub u: Tensor<3>,
    /// Time step before bias and softplus, `[batch, seq_len, d_inner]`.
    pub delta: Tensor<3>,
    /// Continuous-time decay, negative, `[d_inner, d_state]`.
    pub a: Tensor<2>,
    /// Input projection, `[batch, seq_len, d_state]`.
    pub b: Tensor<3>,
    /// Output projection, `[batch, seq_len, d_state]`.
    pub c: Tensor<3>,
    /// Skip connection, `[d_inner]`.
    pub d: Option<Tensor<1>>,
    /// Gate, `[batch, seq_len, d_inner]`.
    pub z: Option<Tensor<3>>,
    /// Added to `delta`, `[d_inner]`.
    pub delta_bias: Option<Tensor<1>>,
    /// State before the first position, `[batch, d_inner, d_state]`; zero if left out.
    pub initial_state: Option<Tensor<3>>,
    /// Sequence number of each position in a packed batch, `[batch, seq_len]`: the state is reset
    /// wherever it changes. The initial state belongs to the run that starts at position 0.
    pub seq_idx: Option<Tensor<2, Int>>,
    /// Whether the time step goes through softplus.
    pub delta_softplus: bool,
    /// Which implementation runs.
    pub strategy: Strategy,
}

impl SelectiveScan {
    /// The recurrence without any of the optional parts, with softplus.
    pub fn new(u: Tensor<3>, delta: Tensor<3>, a: Tensor<2>, b: Tensor<3>, c: Tensor<3>) -> Self {
        Self {
            u,
            delta,
            a,
            b,
            c,
            d: None,
            z: None,
            delta_bias: None,
            initial_state: None,
            seq_idx: None,
            delta_softplus: true,
            strategy: Strategy::Auto,
        }
    }

    fn check(&self) {
        let [batch, seq_len, d_inner] = self.u.dims();
        let [_, d_state] = self.a.dims();
        assert!(
            batch > 0 && seq_len > 0 && d_inner > 0,
            "selective_scan: u must not be empty, got {:?}",
            self.u.dims()
        );
        assert!(
            (1..=256).contains(&d_state),
            "selective_scan: d_state must be between 1 and 256, got {d_state}"
        );
        assert_shape!(self.delta, [batch, seq_len, d_inner]);
        assert_shape!(self.a, [d_inner, d_state]);
        assert_shape!(self.b, [batch, seq_len, d_state]);
        assert_shape!(self.c, [batch, seq_len, d_state]);
        if let Some(d) = &self.d {
            assert_shape!(d, [d_inner]);
        }
        if let Some(z) = &self.z {
            assert_shape!(z, [batch, seq_len, d_inner]);
        }
        if let Some(bias) = &self.delta_bias {
            assert_shape!(bias, [d_inner]);
        }
        if let Some(state) = &self.initial_state {
            assert_shape!(state, [batch, d_inner, d_state]);
        }
        if let Some(seq_idx) = &self.seq_idx {
            assert_shape!(seq_idx, [batch, seq_len]);
        }
    }

    /// The arguments as the seam takes them.
    pub(super) fn into_inputs(self) -> ScanInputs<Dispatch> {
        let dtype = sequence_dtype(&self.u);
        ScanInputs {
            u: primitive_of(self.u, dtype),
            delta: primitive_of(self.delta, dtype),
            a: float_primitive(self.a),
            b: primitive_of(self.b, dtype),
            c: primitive_of(self.c, dtype),
            d: optional_float(self.d, DType::F32),
            z: optional_float(self.z, dtype),
            delta_bias: optional_float(self.delta_bias, DType::F32),
            initial_state: optional_float(self.initial_state, DType::F32),
            seq_idx: optional_int(self.seq_idx),
            delta_softplus: self.delta_softplus,
        }
    }
}

/// Runs the recurrence of [`SelectiveScan`] and returns `y` and the state after the last position.
///
/// Both outputs are differentiable with respect to every float input. The tape keeps the inputs
/// and every 32nd state; the rest is recomputed.
///
/// # Shapes
///
/// - y: `[batch, seq_len, d_inner]`, in the dtype of `u`
/// - final state: `[batch, d_inner, d_state]`, f32
///
/// # Panics
///
/// If a shape differs from the one documented on its field, `u` is empty, or `d_state` is past 256.
pub fn selective_scan(scan: SelectiveScan) -> (Tensor<3>, Tensor<3>) {
    scan.check();
    let dtype = scan.u.dtype();
    let (y, final_state) = match scan.strategy.resolve(&scan.u.device()) {
        Strategy::Reference => reference::selective_scan(scan),
        Strategy::Auto | Strategy::Fused => {
            let outputs = Dispatch::selective_scan(scan.into_inputs(), false);
            (
                Tensor::from_dispatch(outputs.y),
                Tensor::from_dispatch(outputs.final_state),
            )
        }
    };
    (y.cast(dtype), final_state)
}
