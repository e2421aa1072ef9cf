//! One step of the recurrence.

use cubecl::prelude::*;

use crate::pointwise::{exp, softplus};

/// Vectors of states whose loads are in flight at once: 16 states, 32 registers.
const MOST_AHEAD: usize = 4;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ScanStep {
    pub batch: usize,
    pub d_inner: usize,
    pub d_state: usize,
    pub dt_rank: usize,
    /// Values of the time-step projection that a unit loads at once.
    pub lanes: usize,
    /// States that a unit loads at once.
    pub states: usize,
    pub ptx: bool,
}

impl ScanStep {
    fn dt_vectors(&self) -> usize {
        self.dt_rank.div_ceil(self.lanes)
    }

    /// Vectors of states that a unit keeps in registers while it computes the time step.
    fn ahead(&self) -> usize {
        self.state_vectors().min(MOST_AHEAD)
    }

    fn state_vectors(&self) -> usize {
        self.d_state / self.states
    }
}

/// A unit owns a channel of one sequence: its time step, its states, its output
/// `y = (C h + D u) * gate`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn scan_step_kernel<W: Float, F: Float, V: Size, S: Size>(
    dt_weight: &Tensor<Vector<W, V>>,      // [d_inner, dt_rank]
    dt_bias: ComptimeOption<&Tensor<f32>>, // [d_inner]
    projected: &Tensor<f32>,               // [batch, dt_rank + 2 d_state]
    a: &Tensor<Vector<f32, S>>,            // [d_inner, d_state]
    skip: &Tensor<f32>,                    // [d_inner]
    u: &Tensor<F>,                         // [batch, d_inner or more]
    gate: &Tensor<F>,                      // as u
    state: &mut Tensor<Vector<f32, S>>,    // [batch, d_inner, d_state]
    y: &mut Tensor<F>,                     // as u
    #[comptime] step: ScanStep,
    #[define(W, F)] _dtypes: [ElemType; 2],
) {
    let d_inner = comptime!(step.d_inner);
    if ABSOLUTE_POS >= comptime!(step.batch * step.d_inner) {
        terminate!();
    }
    let sequence = ABSOLUTE_POS / d_inner;
    let channel = ABSOLUTE_POS % d_inner;
    let vectors = comptime!(step.dt_vectors());

    let first = sequence * projected.shape(1);
    let at = sequence * u.shape(1) + channel;
    let per_channel = comptime!(step.state_vectors());
    let state_first = ABSOLUTE_POS * per_channel;
    // Loaded before the time step is known, which hides it.
    let ahead = comptime!(step.ahead());
    let mut rates = Array::<Vector<f32, S>>::new(ahead);
    let mut before = Array::<Vector<f32, S>>::new(ahead);
    #[unroll]
    for n in 0..ahead {
        rates[n] = a[channel * per_channel + n];
        before[n] = state[state_first + n];
    }
    let input = f32::cast_from(u[at]);
    let gate = f32::cast_from(gate[at]);
    let skip = skip[channel];

    let mut delta = 0.0f32;
    #[comptime]
    if let ComptimeOption::Some(bias) = dt_bias {
        delta = bias[channel];
    }
    #[unroll]
    for k in 0..vectors {
        let weight = Vector::<f32, V>::cast_from(dt_weight[channel * vectors + k]);
        #[unroll]
        for j in 0..comptime!(step.lanes) {
            let entry = comptime!(k * step.lanes + j);
            if comptime!(entry < step.dt_rank) {
                delta += weight.extract(j) * projected[first + entry];
            }
        }
    }
    let dt = softplus(delta, comptime!(step.ptx));

    let write = dt * input;
    let b_first = first + comptime!(step.dt_rank);
    let mut read = 0.0f32;
    #[unroll]
    for n in 0..ahead {
        let (after, sum) = walk::<S>(rates[n], before[n], projected, b_first, n, dt, write, step);
        state[state_first + n] = after;
        read += sum;
    }
    for n in ahead..per_channel {
        let rates = a[channel * per_channel + n];
        let before = state[state_first + n];
        let (after, sum) = walk::<S>(rates, before, projected, b_first, n, dt, write, step);
        state[state_first + n] = after;
        read += sum;
    }
    y[at] = F::cast_from((read + skip * input) * gate);
}

/// Some states one step on, and what `C` reads of them.
#[cube]
fn walk<S: Size>(
    rates: Vector<f32, S>,
    before: Vector<f32, S>,
    projected: &Tensor<f32>,
    b_first: usize,
    n: usize,
    dt: f32,
    write: f32,
    #[comptime] step: ScanStep,
) -> (Vector<f32, S>, f32) {
    let mut after = Vector::<f32, S>::empty();
    let mut sum = 0.0f32;
    #[unroll]
    for j in 0..comptime!(step.states) {
        let entry = b_first + n * comptime!(step.states) + j;
        let decay = exp(rates.extract(j) * dt, comptime!(step.ptx));
        let value = before.extract(j) * decay + write * projected[entry];
        after.insert(j, value);
        sum += value * projected[entry + comptime!(step.d_state)];
    }
    (after, sum)
}
