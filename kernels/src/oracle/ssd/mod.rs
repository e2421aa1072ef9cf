mod head;
mod quadratic;
#[cfg(test)]
mod tests;

use super::{assert_len, assert_optional_len};
use head::Head;

pub use quadratic::ssd_quadratic;

/// Inputs of [`ssd`], in row-major order with the channel last.
#[derive(Clone, Copy, Debug)]
pub struct SsdInputs<'a> {
    /// Number of sequences.
    pub batch: usize,
    /// Positions of each sequence: at least one.
    pub seq_len: usize,
    /// Heads.
    pub nheads: usize,
    /// Rows of a head's state.
    pub headdim: usize,
    /// Groups of heads that share `b` and `c`; divides `nheads`. Head `h` reads group `h / (nheads / ngroups)`.
    pub ngroups: usize,
    /// Columns of a head's state.
    pub d_state: usize,
    /// The sequence: `[batch, seq_len, nheads, headdim]`.
    pub x: &'a [f64],
    /// Step sizes before bias, softplus and limits: `[batch, seq_len, nheads]`.
    pub dt: &'a [f64],
    /// Continuous-time decay rates, negative in a stable system: `[nheads]`.
    pub a: &'a [f64],
    /// What enters the state: `[batch, seq_len, ngroups, d_state]`.
    pub b: &'a [f64],
    /// What is read from the state: `[batch, seq_len, ngroups, d_state]`.
    pub c: &'a [f64],
    /// Skip connection: `[nheads]` or `[nheads, headdim]`, told by the length. Absent: zero.
    pub d: Option<&'a [f64]>,
    /// Added to `dt` before softplus: `[nheads]`. Absent: zero.
    pub dt_bias: Option<&'a [f64]>,
    /// State before the first position: `[batch, nheads, headdim, d_state]`. Absent: zero.
    pub initial_state: Option<&'a [f64]>,
    /// The packed document of each position: `[batch, seq_len]`. The state is zeroed before a
    /// position whose index differs from the one before; `initial_state` belongs to the first run.
    pub seq_idx: Option<&'a [i64]>,
    /// Whether step sizes go through [`softplus`](super::softplus).
    pub dt_softplus: bool,
    /// Least and largest step size: clamped after softplus. `(0, infinity)`, the official default, clamps
    /// no softplus.
    pub dt_limit: (f64, f64),
}

/// Values of [`ssd`].
#[derive(Clone, Debug)]
pub struct SsdOutput {
    /// `[batch, seq_len, nheads, headdim]`.
    pub y: Vec<f64>,
    /// State after the last position: `[batch, nheads, headdim, d_state]`.
    pub final_state: Vec<f64>,
}

/// Gradients of every input of [`ssd`], each in its input's shape.
#[derive(Clone, Debug)]
pub struct SsdGradients {
    /// `[batch, seq_len, nheads, headdim]`.
    pub x: Vec<f64>,
    /// `[batch, seq_len, nheads]`.
    pub dt: Vec<f64>,
    /// `[nheads]`.
    pub a: Vec<f64>,
    /// `[nheads]`: the root of the sum of squares of the terms, one a position, whose sum is `a`. They cancel in part, so that
    /// this, and not `a`, says how much rounding is to be expected.
    pub a_scale: Vec<f64>,
    /// `[batch, seq_len, ngroups, d_state]`.
    pub b: Vec<f64>,
    /// `[batch, seq_len, ngroups, d_state]`.
    pub c: Vec<f64>,
    /// `[nheads]` or `[nheads, headdim]`.
    pub d: Option<Vec<f64>>,
    /// `[nheads]`.
    pub dt_bias: Option<Vec<f64>>,
    /// `[batch, nheads, headdim, d_state]`.
    pub initial_state: Option<Vec<f64>>,
}

/// The recurrence of Mamba-2, step by step (Dao and Gu 2024, "Transformers are SSMs").
///
/// For every sequence and head, with `h` a matrix of `headdim` rows and `d_state` columns:
///
/// ```text
/// dt  = clamp(softplus(dt_t + dt_bias), dt_limit)
/// h_t = exp(dt * a) * h_{t-1} + dt * x_t b_t^T
/// y_t = h_t c_t + d * x_t
/// ```
///
/// # Panics
///
/// Panics if a slice's length does not match the dimensions.
pub fn ssd(inputs: &SsdInputs) -> SsdOutput {
    inputs.assert_shapes("ssd");
    let mut y = vec![0.0; inputs.x.len()];
    let mut final_state = Vec::with_capacity(inputs.states());
    for head in inputs.heads() {
        let states = head.states();
        for t in 0..inputs.seq_len {
            y[head.row(t)].copy_from_slice(&head.read(t, &states[t + 1]));
        }
        final_state.extend_from_slice(&states[inputs.seq_len]);
    }
    SsdOutput { y, final_state }
}

/// Gradients of a loss through [`ssd`].
///
/// With `g_t` the gradient of the loss with respect to `h_t`, walking from the last position:
///
/// ```text
/// g_t     = grad_y_t c_t^T + exp(dt_{t+1} * a) * g_{t+1}
/// grad_dt = a * exp(dt * a) * <g_t, h_{t-1}> + x_t . (g_t b_t)
/// ```
///
/// Nothing flows back through a reset of the state, nor to a step size beyond its limits.
///
/// # Shapes
///
/// - `grad_y`: `[batch, seq_len, nheads, headdim]`, the gradient with respect to `y`
/// - `grad_final_state`: `[batch, nheads, headdim, d_state]`; absent: the loss does not use the final state
///
/// # Panics
///
/// Panics if a slice's length does not match the dimensions.
pub fn ssd_backward(
    inputs: &SsdInputs,
    grad_y: &[f64],
    grad_final_state: Option<&[f64]>,
) -> SsdGradients {
    let function = "ssd_backward";
    inputs.assert_shapes(function);
    assert_len(function, "grad_y", grad_y, &inputs.sequence_shape());
    let state_shape = inputs.state_shape();
    assert_optional_len(function, "grad_final_state", grad_final_state, &state_shape);

    let mut grads = SsdGradients::zeros(inputs);
    for head in inputs.heads() {
        let grad_state = match grad_final_state {
            Some(grad) => grad[head.state_range()].to_vec(),
            None => vec![0.0; inputs.headdim * inputs.d_state],
        };
        head.backward(grad_y, grad_state, &mut grads);
    }
    grads
}

impl<'a> SsdInputs<'a> {
    /// Every head of every sequence, in the order of the states.
    fn heads(&'a self) -> impl Iterator<Item = Head<'a>> {
        (0..self.batch).flat_map(move |sequence| {
            (0..self.nheads).map(move |head| Head {
                inputs: self,
                sequence,
                head,
            })
        })
    }
}

impl SsdInputs<'_> {
    fn sequence_shape(&self) -> [usize; 4] {
        [self.batch, self.seq_len, self.nheads, self.headdim]
    }

    fn state_shape(&self) -> [usize; 4] {
        [self.batch, self.nheads, self.headdim, self.d_state]
    }

    /// Entries of all states.
    fn states(&self) -> usize {
        self.state_shape().iter().product()
    }

    fn d_has_headdim(&self) -> bool {
        self.d.is_some_and(|d| d.len() != self.nheads)
    }

    fn assert_shapes(&self, function: &str) {
        let &Self {
            batch,
            seq_len,
            nheads,
            headdim,
            ngroups,
            d_state,
            ..
        } = self;
        assert!(
            ngroups > 0 && nheads.is_multiple_of(ngroups),
            "{function}: nheads must be a multiple of ngroups, got {nheads} and {ngroups}"
        );
        assert!(seq_len > 0, "{function}: seq_len must be at least 1, got 0");
        let steps = [batch, seq_len, nheads];
        let projection = [batch, seq_len, ngroups, d_state];
        assert_len(function, "x", self.x, &self.sequence_shape());
        assert_len(function, "dt", self.dt, &steps);
        assert_len(function, "a", self.a, &[nheads]);
        assert_len(function, "b", self.b, &projection);
        assert_len(function, "c", self.c, &projection);
        if self.d_has_headdim() {
            assert_optional_len(function, "d", self.d, &[nheads, headdim]);
        }
        assert_optional_len(function, "dt_bias", self.dt_bias, &[nheads]);
        let initial_state = self.initial_state;
        assert_optional_len(
            function,
            "initial_state",
            initial_state,
            &self.state_shape(),
        );
        assert_optional_len(function, "seq_idx", self.seq_idx, &[batch, seq_len]);
    }
}

impl SsdGradients {
    fn zeros(inputs: &SsdInputs) -> Self {
        let zeros = |input: &[f64]| vec![0.0; input.len()];
        Self {
            x: zeros(inputs.x),
            dt: zeros(inputs.dt),
            a: zeros(inputs.a),
            a_scale: zeros(inputs.a),
            b: zeros(inputs.b),
            c: zeros(inputs.c),
            d: inputs.d.map(zeros),
            dt_bias: inputs.dt_bias.map(zeros),
            initial_state: inputs.initial_state.map(zeros),
        }
    }
}
