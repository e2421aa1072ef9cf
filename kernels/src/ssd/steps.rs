//! What the steps come to, once for all channels and states of a head: `dt` after bias, softplus and limits, its sum
//! times `a` over a chunk, and where runs begin.
//!
//! A cube owns a chunk of some heads, a unit a piece of it of one head: it sums its piece, then adds what the pieces before
//! come to, in their order. Neighbouring units are neighbouring heads, so that loads fill lines. Sums begin anew where a
//! run does: a NaN of one run is in no other's sums. Positions past the sequence take steps of zero length. 8 bytes
//! written a position and head.

use cubecl::prelude::*;

use super::{Dims, SsdInputs};
use crate::KernelError;
use crate::bits::limit;
use crate::pointwise::{softplus, takes_ptx};
use crate::tensors::{checked_address_type, present, scratch};

/// Heads of a cube.
const HEADS: usize = 16;

/// Positions of a unit. Chunks are multiples of it.
const PIECE: usize = 16;

/// Values of a vector that is written. Pieces are multiples of it.
const LANES: usize = 4;

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
    let cubes = dims.batch * dims.nheads.div_ceil(HEADS) * (length / chunk);
    let units = HEADS * (chunk / PIECE);
    let cube = CubeDim::new_1d(units as u32);
    let address = checked_address_type(client, inputs.tensors().chain(steps.tensors()))?;
    let optional = |tensor: &Option<TensorBinding>| tensor.clone().map(|it| it.into_tensor_arg());
    // SAFETY: cubes beyond the chunks end at once; every index lies inside its tensor, whose shape was checked.
    unsafe {
        steps_kernel::launch_unchecked(
            client,
            cubecl::calculate_cube_count_elemwise(client, cubes * units, cube),
            cube,
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
    raw: &Tensor<F>,                               // [batch, seq_len, nheads]
    a: &Tensor<f32>,                               // [nheads]
    dt_bias: ComptimeOption<&Tensor<f32>>,         // [nheads]
    seq_idx: ComptimeOption<&Tensor<I>>,           // [batch, seq_len]
    steps: &mut Tensor<Vector<f32, Const<LANES>>>, // [batch, nheads, length]
    sums: &mut Tensor<Vector<f32, Const<LANES>>>,  // [batch, nheads, length]
    mut runs: ComptimeOption<OwnedTensor<u32>>,    // [batch, length]
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
    let blocks = nheads.div_ceil(HEADS);
    if CUBE_POS >= steps.shape(0) * chunks * blocks {
        terminate!();
    }
    let lane = UNIT_POS as usize % HEADS;
    let piece = UNIT_POS as usize / HEADS;
    let wanted = CUBE_POS % blocks * HEADS + lane;
    let exists = wanted < nheads;
    let head = select(exists, wanted, nheads - 1);
    let start = CUBE_POS / blocks % chunks * chunk;
    let batch = CUBE_POS / blocks / chunks;
    let first = start + piece * PIECE;
    let source = batch * raw.stride(0) + head;
    let rate = a[head];
    let bias = #[comptime]
    match dt_bias {
        ComptimeOption::Some(dt_bias) => dt_bias[head],
        ComptimeOption::None => 0.0f32.runtime(),
    };

    let mut values = Array::<F>::new(PIECE);
    #[unroll]
    for i in 0..PIECE {
        let t = first + i;
        let inside = select(t < seq_len, t, seq_len - 1);
        values[i] = raw[source + inside * raw.stride(1)];
    }
    // Of the piece alone; the run that began in it, or 0.
    let mut taken = Array::<f32>::new(PIECE);
    let mut elapsed = Array::<f32>::new(PIECE);
    let mut begun = Array::<u32>::new(PIECE);
    let mut sum = 0.0f32;
    let mut run = 0u32;
    #[unroll]
    for i in 0..PIECE {
        let t = first + i;
        let mut dt = f32::cast_from(values[i]) + bias;
        if comptime!(dt_softplus) {
            dt = softplus(dt, ptx);
        }
        dt = limit(dt, shortest, longest);
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
        taken[i] = dt;
        elapsed[i] = sum;
        begun[i] = run;
    }

    let pieces = comptime!(chunk / PIECE);
    let mut totals = Shared::<[f32]>::new_slice(comptime!(pieces * HEADS));
    let mut last_runs = Shared::<[u32]>::new_slice(pieces);
    totals[piece * HEADS + lane] = sum;
    if lane == 0 {
        last_runs[piece] = run;
    }
    sync_cube();
    let mut before = 0.0f32;
    let mut run_before = 0u32;
    for earlier in 0..piece {
        if comptime!(seq_idx.is_some()) {
            let run = last_runs[earlier];
            if run > 0 {
                before = 0.0f32;
                run_before = run;
            }
        }
        before += totals[earlier * HEADS + lane];
    }
    if exists {
        let target = (batch * nheads + head) * length + first;
        #[unroll]
        for vector in 0..comptime!(PIECE / LANES) {
            let mut dts = Vector::<f32, Const<LANES>>::empty();
            let mut ends = Vector::<f32, Const<LANES>>::empty();
            #[unroll]
            for lane in 0..LANES {
                let i = comptime!(vector * LANES + lane);
                let sum = elapsed[i];
                dts.insert(lane, taken[i]);
                ends.insert(lane, select(begun[i] == 0, before + sum, sum));
            }
            steps[target / LANES + vector] = dts;
            sums[target / LANES + vector] = ends;
        }
    }
    #[comptime]
    if let ComptimeOption::Some(runs) = &mut runs {
        if wanted == 0 {
            #[unroll]
            for i in 0..PIECE {
                let run = select(begun[i] == 0, run_before, begun[i]);
                runs[batch * length + first + i] = run;
            }
        }
    }
}
