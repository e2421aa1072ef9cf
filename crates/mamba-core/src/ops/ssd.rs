//! The recurrence of Mamba-2, on tensors.

use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor, assert_shape};

use super::extension::{MambaOps, SsdInputs, SsdOptions};
use super::{
    Strategy, float_primitive, on_cube, optional_float, optional_int, primitive_of, reference,
    sequence_dtype,
};

/// The skip connection of [`Ssd`].
#[derive(Clone, Debug)]
pub enum Skip {
    /// One factor a head, `[nheads]`.
    PerHead(Tensor<1>),
    /// One factor a channel, `[nheads, headdim]`.
    PerChannel(Tensor<2>),
}

/// Arguments of [`ssd`].
///
/// ```text
/// dt_t = clamp(softplus(dt_t + dt_bias))
/// h_t  = exp(dt_t A) h_{t-1} + dt_t x_t B_t'     h: [headdim, d_state]
/// y_t  = h_t C_t + D x_t
/// ```
///
/// Channels of `x` are `nheads` heads of `headdim` side by side; columns of `b` and `c` are `ngroups` groups of
/// `d_state` side by side. Head `h` reads group `h / (nheads / ngroups)`.
///
/// Source: Dao and Gu 2024, "Transformers are SSMs", sections 3 and 6.
#[derive(Clone, Debug)]
pub struct Ssd {
    /// Input sequence, `[batch, seq_len, nheads * headdim]`.
    pub x: Tensor<3>,
    /// Time step before bias and softplus, `[batch, seq_len, nheads]`.
    pub dt: Tensor<3>,
    /// Continuous-time decay, negative, `[nheads]`.
    pub a: Tensor<1>,
    /// Input projection, `[batch, seq_len, ngroups * d_state]`.
    pub b: Tensor<3>,
    /// Output projection, `[batch, seq_len, ngroups * d_state]`.
    pub c: Tensor<3>,
    /// Skip connection.
    pub d: Option<Skip>,
    /// Added to `dt`, `[nheads]`.
    pub dt_bias: Option<Tensor<1>>,
    /// State before the first position, `[batch, nheads, headdim, d_state]`; zero if left out.
    pub initial_state: Option<Tensor<4>>,
    /// Sequence number of each position in a packed batch, `[batch, seq_len]`: the state is reset
    /// wherever it changes. The initial state belongs to the run that starts at position 0.
    pub seq_idx: Option<Tensor<2, Int>>,
    /// Groups of heads that share `b` and `c`; a divisor of `nheads`.
    pub ngroups: usize,
    /// Positions that are computed as one product of matrices. What it is changes rounding only, and kernels may
    /// choose their own.
    pub chunk_size: usize,
    /// Whether the time step goes through softplus.
    pub dt_softplus: bool,
    /// The least and the largest time step, after softplus.
    pub dt_limit: (f64, f64),
    /// Which implementation runs.
    pub strategy: Strategy,
}

impl Ssd {
    /// The recurrence without any of the optional parts, with softplus, one group and chunks of 256.
    pub fn new(x: Tensor<3>, dt: Tensor<3>, a: Tensor<1>, b: Tensor<3>, c: Tensor<3>) -> Self {
        Self {
            x,
            dt,
            a,
            b,
            c,
            d: None,
            dt_bias: None,
            initial_state: None,
            seq_idx: None,
            ngroups: 1,
            chunk_size: 256,
            dt_softplus: true,
            dt_limit: (0.0, f64::INFINITY),
            strategy: Strategy::Auto,
        }
    }

    fn check(&self) {
        let [batch, seq_len, d_ssm] = self.x.dims();
        let [nheads] = self.a.dims();
        let [_, _, columns] = self.b.dims();
        let ngroups = self.ngroups;
        assert!(
            batch > 0 && seq_len > 0 && d_ssm > 0,
            "ssd: x must not be empty, got {:?}",
            self.x.dims()
        );
        assert!(
            nheads > 0 && d_ssm.is_multiple_of(nheads),
            "ssd: the {nheads} heads of a must divide the {d_ssm} channels of x"
        );
        assert!(
            ngroups > 0 && nheads.is_multiple_of(ngroups) && columns.is_multiple_of(ngroups),
            "ssd: ngroups = {ngroups} must divide the {nheads} heads and the {columns} columns of b"
        );
        let (headdim, d_state) = (d_ssm / nheads, columns / ngroups);
        assert!(
            (1..=256).contains(&headdim) && (1..=256).contains(&d_state),
            "ssd: headdim and d_state must be between 1 and 256, got {headdim} and {d_state}"
        );
        assert!(self.chunk_size > 0, "ssd: chunk_size must be at least 1");
        let (least, most) = self.dt_limit;
        assert!(
            0.0 <= least && least <= most,
            "ssd: expected dt_limit 0 <= least <= most, got {least} and {most}"
        );
        assert_shape!(self.dt, [batch, seq_len, nheads]);
        assert_shape!(self.b, [batch, seq_len, columns]);
        assert_shape!(self.c, [batch, seq_len, columns]);
        match &self.d {
            Some(Skip::PerHead(d)) => assert_shape!(d, [nheads]),
            Some(Skip::PerChannel(d)) => assert_shape!(d, [nheads, headdim]),
            None => {}
        }
        if let Some(bias) = &self.dt_bias {
            assert_shape!(bias, [nheads]);
        }
        if let Some(state) = &self.initial_state {
            assert_shape!(state, [batch, nheads, headdim, d_state]);
        }
        if let Some(seq_idx) = &self.seq_idx {
            assert_shape!(seq_idx, [batch, seq_len]);
        }
    }

    /// The arguments as the seam takes them.
    pub(super) fn into_inputs(self) -> SsdInputs<Dispatch> {
        let dtype = sequence_dtype(&self.x);
        let chunk_size = match on_cube(&self.x.device()) {
            true => chunk_of_kernels(self.chunk_size),
            false => self.chunk_size,
        };
        SsdInputs {
            x: primitive_of(self.x, dtype),
            dt: primitive_of(self.dt, dtype),
            a: float_primitive(self.a),
            b: primitive_of(self.b, dtype),
            c: primitive_of(self.c, dtype),
            d: match self.d {
                Some(Skip::PerHead(d)) => optional_float(Some(d), DType::F32),
                Some(Skip::PerChannel(d)) => optional_float(Some(d), DType::F32),
                None => None.into(),
            },
            dt_bias: optional_float(self.dt_bias, DType::F32),
            initial_state: optional_float(self.initial_state, DType::F32),
            seq_idx: optional_int(self.seq_idx),
            options: SsdOptions {
                ngroups: self.ngroups,
                chunk_size,
                dt_softplus: self.dt_softplus,
                dt_limit: self.dt_limit,
            },
        }
    }
}

/// The next size up that `mamba_kernels` computes with, or its largest. With any other, tensors would go through plain
/// operations, whose products CUDA rounds to TF32.
fn chunk_of_kernels(chunk_size: usize) -> usize {
    chunk_size.min(256).next_multiple_of(16)
}

/// Runs the recurrence of [`Ssd`] and returns `y` and the state after the last position.
///
/// Both outputs are differentiable with respect to every float input. The tape keeps the inputs
/// and the state before every chunk; the rest is recomputed.
///
/// # Shapes
///
/// - y: `[batch, seq_len, nheads * headdim]`, in the dtype of `x`
/// - final state: `[batch, nheads, headdim, d_state]`, f32
///
/// # Panics
///
/// If a shape differs from the one documented on its field, `x` is empty, `headdim` or `d_state` is past 256, or the
/// limits of the time step are no range above zero.
pub fn ssd(ssd: Ssd) -> (Tensor<3>, Tensor<4>) {
    ssd.check();
    let dtype = ssd.x.dtype();
    let (y, final_state) = match ssd.strategy.resolve(&ssd.x.device()) {
        Strategy::Reference => reference::ssd(ssd),
        Strategy::Auto | Strategy::Fused => {
            let outputs = Dispatch::ssd(ssd.into_inputs(), false);
            (
                Tensor::from_dispatch(outputs.y),
                Tensor::from_dispatch(outputs.final_state),
            )
        }
    };
    (y.cast(dtype), final_state)
}
