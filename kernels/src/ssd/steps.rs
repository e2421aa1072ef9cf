//! What the steps come to, once for all channels and states of a head: `dt` after bias, softplus and limits, its sum
//! times `a` over a chunk, and where runs begin.
//!
//! One unit a sequence, chunk and head; it walks the chunk. Neighbouring units are neighbouring heads, so that loads fill
//! lines. Sums begin anew where a run does: a NaN of one run is in no other's sums. Positions past the sequence take steps
//! of zero length. 8 bytes written a position and head.

use cubecl::prelude::*;

use super::{Dims, SsdInputs};
use crate::KernelError;
use crate::pointwise::{softplus, takes_ptx};
use crate::tensors::{checked_address_type, present, scratch};

/// Units of a cube: few, so that few chunks spread over the device.
const UNITS: u32 = 64;

/// Positions whose loads are in flight at once. Chunks are multiples of it.
const AHEAD: usize = 16;

/// What the other kernels read of the steps. `length` is the sequence's, rounded up to whole chunks.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    /// `dt`: `[batch, nheads, length]`, f32.
    pub dt: TensorBinding,
    /// Sums of `dt a` up to and with a position, from the beginning of its chunk or run, whichever is later: the same
    /// shape.
    pub sums: TensorBinding,
    /// Where a position's run begins: 0 before its chunk, else 1 more than the place within the chunk.
    /// `[batch, length]`, u32; left out without `seq_idx`.
    pub runs: Option<TensorBinding>,
}

impl Steps {
    pub fn tensors(&self) -> impl Iterator<Item = &TensorBinding> {
        [&self.dt, &self.sums].into_iter().chain(self.runs.as_ref())
    }
}

/// The steps of chunks of `chunk` positions.
pub(super) fn steps(
    client: &Client,
    inputs: &SsdInputs,
    dims: &Dims,
    chunk: usize,
) -> Result<Steps, KernelError> {
    let length = dims.seq_len.next_multiple_of(chunk);
    let steps = Steps {
        dt: scratch(client, &[dims.batch, dims.nheads, length]),
        sums: scratch(client, &[dims.batch, dims.nheads, length]),
        // Four bytes an entry, as f32.
        runs: (inputs.seq_idx.as_ref()).map(|_| scratch(client, &[dims.batch, length])),
    };
    let given = present([
        inputs.dt_bias.is_some(),
        inputs.seq_idx.is_some(),
        steps.runs.is_some(),
    ]);
    let walks = dims.batch * dims.nheads * (length / chunk);
    let units = CubeDim::new_1d(UNITS);
    let address = checked_address_type(client, inputs.tensors().chain(steps.tensors()))?;
    let optional = |tensor: &Option<TensorBinding>| tensor.clone().map(|it| it.into_tensor_arg());
    // SAFETY: units beyond the chunks end at once; every index lies inside its tensor, whose shape was checked.
    unsafe {
        steps_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, walks, units),
            units,
            address,
            inputs.dt.clone().into_tensor_arg(),
            inputs.a.clone().into_tensor_arg(),
            optional(&inputs.dt_bias).into(),
            optional(&inputs.seq_idx).into(),
            steps.dt.clone().into_tensor_arg(),
            steps.sums.clone().into_tensor_arg(),
            optional(&steps.runs).into(),
            inputs.dt_limit.0,
            inputs.dt_limit.1,
            chunk,
            inputs.dt_softplus,
            takes_ptx(client),
            given,
            [inputs.dtype, inputs.index_dtype],
        );
    }
    Ok(steps)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn steps_kernel<F: Float, I: Int>(
    raw: &Tensor<F>,                            // [batch, seq_len, nheads]
    a: &Tensor<f32>,                            // [nheads]
    dt_bias: ComptimeOption<&Tensor<f32>>,      // [nheads]
    seq_idx: ComptimeOption<&Tensor<I>>,        // [batch, seq_len]
    steps: &mut Tensor<f32>,                    // [batch, nheads, length]
    sums: &mut Tensor<f32>,                     // [batch, nheads, length]
    mut runs: ComptimeOption<OwnedTensor<u32>>, // [batch, length]
    shortest: f32,
    longest: f32,
    #[comptime] chunk: usize,
    #[comptime] dt_softplus: bool,
    #[comptime] ptx: bool,
    #[comptime] _present: u32,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let seq_len = raw.shape(1);
    let nheads = raw.shape(2);
    let length = steps.shape(2);
    let chunks = length / chunk;
    if ABSOLUTE_POS >= steps.shape(0) * chunks * nheads {
        terminate!();
    }
    let head = ABSOLUTE_POS % nheads;
    let start = ABSOLUTE_POS / nheads % chunks * chunk;
    let batch = ABSOLUTE_POS / nheads / chunks;
    let source = batch * raw.stride(0) + head;
    let target = (batch * nheads + head) * length + start;
    let rate = a[head];
    let bias = #[comptime]
    match dt_bias {
        ComptimeOption::Some(dt_bias) => dt_bias[head],
        ComptimeOption::None => 0.0f32.runtime(),
    };

    let mut sum = 0.0f32;
    let mut run = 0u32;
    for block in 0..comptime!(chunk / AHEAD) {
        let first = start + block * AHEAD;
        let mut values = Array::<F>::new(AHEAD);
        #[unroll]
        for i in 0..AHEAD {
            let t = first + i;
            let inside = select(t < seq_len, t, seq_len - 1);
            values[i] = raw[source + inside * raw.stride(1)];
        }
        #[unroll]
        for i in 0..AHEAD {
            let t = first + i;
            let mut dt = f32::cast_from(values[i]) + bias;
            if comptime!(dt_softplus) {
                dt = softplus(dt, ptx);
            }
            // Unlike a minimum, a comparison lets NaN through.
            dt = select(dt < shortest, shortest, dt);
            dt = select(dt > longest, longest, dt);
            dt = select(t < seq_len, dt, 0.0f32);
            #[comptime]
            if let ComptimeOption::Some(seq_idx) = seq_idx {
                let here = select(t < seq_len, t, seq_len - 1);
                let before = select(t > 0, t, 1) - 1;
                let before = select(before < here, before, here);
                let base = batch * seq_idx.stride(0);
                if seq_idx[base + here] != seq_idx[base + before] {
                    sum = 0.0f32;
                    run = (t - start) as u32 + 1;
                }
            }
            sum += select(t < seq_len, dt * rate, 0.0f32);
            let place = target + block * AHEAD + i;
            steps[place] = dt;
            sums[place] = sum;
            #[comptime]
            if let ComptimeOption::Some(runs) = &mut runs {
                if head == 0 {
                    runs[batch * length + t] = run;
                }
            }
        }
    }
}
