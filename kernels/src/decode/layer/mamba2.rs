//! What a layer of Mamba-2 has of its own.

use cubecl::ir::FloatKind;
use cubecl::prelude::*;

use super::{Mixer, Scale, ScanBuffers, Vectors, argument};
use crate::KernelError;
use crate::decode::model::Sizes;
use crate::decode::pack::{copy, ones};
use crate::decode::product::Split;
use crate::decode::rows::Products;
use crate::decode::ssd_step::{SsdStep, ssd_step_kernel};
use crate::decode::team::lanes;
use crate::gated_rms_norm::{GatedNormInputs, MAX_GROUP, gated_rms_norm};
use crate::tensors::{address_type, check_optional, check_size, check_whole, present};

/// The parameters that a layer of Mamba-2 has of its own.
#[derive(Clone, Debug)]
pub struct Mamba2Weights {
    /// Rows of a head's state.
    pub headdim: usize,
    /// Groups of heads that share `B` and `C`.
    pub ngroups: usize,
    /// Added to the time step before softplus, `[nheads]`.
    pub dt_bias: Option<TensorBinding>,
    /// Between which values the time step is clamped, after softplus.
    pub dt_limit: (f32, f32),
    /// `A` itself, not its logarithm, `[nheads]`.
    pub a: TensorBinding,
    /// Skip connection, `[nheads]` or `[d_inner]`.
    pub d: TensorBinding,
    /// Left out where the output is gated only.
    pub norm: Option<GatedNormWeights>,
}

/// The norm between the recurrence and the output projection, over each of `ngroups` groups of channels.
#[derive(Clone, Debug)]
pub struct GatedNormWeights {
    /// `[d_inner]`
    pub gamma: TensorBinding,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Whether the gate multiplies what is normalised already.
    pub norm_before_gate: bool,
}

/// The same, ready to run.
#[derive(Clone, Debug)]
pub(in crate::decode) struct Mamba2 {
    pub nheads: usize,
    pub headdim: usize,
    pub ngroups: usize,
    pub d_state: usize,
    pub dt_bias: Option<TensorBinding>,
    pub dt_limit: (f32, f32),
    pub a: TensorBinding,
    pub d: TensorBinding,
    pub norm: Option<GatedNorm>,
}

#[derive(Clone, Debug)]
pub(in crate::decode) struct GatedNorm {
    /// Padded with zeros.
    gamma: TensorBinding,
    /// Channels that are normalised together.
    group_size: usize,
    pub epsilon: f32,
    before_gate: bool,
    /// Whether the output projection does it.
    folded: bool,
}

impl Mamba2Weights {
    /// The mixer of so many convolved channels, what its input projection holds, and the shape of a sequence's state.
    pub(super) fn pack(
        self,
        client: &Client,
        channels: usize,
        dtype: ElemType,
        products: Products,
    ) -> Result<(Mixer, Split, Vec<usize>), KernelError> {
        let (headdim, ngroups) = (self.headdim, self.ngroups);
        let nheads = self.a.size();
        check_size("headdim", "between 1 and 256", headdim, 256)?;
        check_size("nheads", "at least 1", nheads, usize::MAX)?;
        if ngroups == 0 || !nheads.is_multiple_of(ngroups) {
            return Err(KernelError::Size {
                name: "ngroups",
                expected: "a divisor of nheads",
                got: ngroups,
            });
        }
        let d_inner = nheads * headdim;
        let d_state = channels.saturating_sub(d_inner) / (2 * ngroups);
        check_size("d_state", "between 1 and 256", d_state, 256)?;
        if channels != d_inner + 2 * ngroups * d_state {
            return Err(KernelError::Size {
                name: "rows of conv_weight",
                expected: "nheads headdim + 2 ngroups d_state",
                got: channels,
            });
        }
        check_whole("a", &self.a, &[nheads])?;
        check_optional("dt_bias", &self.dt_bias, &[nheads])?;
        let factors = match self.d.size() == nheads {
            true => nheads,
            false => d_inner,
        };
        check_whole("d", &self.d, &[factors])?;
        let lanes = lanes(dtype.size(), &client.properties().hardware);
        let norm = match self.norm {
            Some(norm) => {
                check_whole("gamma", &norm.gamma, &[d_inner])?;
                let folded = products != Products::Whole && ngroups == 1 && !norm.norm_before_gate;
                // The norm's own kernel writes rows without padding.
                if !folded && !d_inner.is_multiple_of(lanes) {
                    return Err(KernelError::NotCovered(
                        "gated norms of rows that fill no vectors",
                    ));
                }
                let norm = GatedNorm {
                    gamma: copy(client, norm.gamma, lanes),
                    group_size: d_inner / ngroups,
                    epsilon: norm.epsilon,
                    before_gate: norm.norm_before_gate,
                    folded,
                };
                if !folded {
                    norm.check()?;
                }
                Some(norm)
            }
            None => None,
        };
        let split = Split {
            first: d_inner,
            channels,
            passed: nheads,
            gate: d_inner,
            silu: norm.as_ref().is_none_or(|norm| norm.folded),
        };
        let mixer = Mamba2 {
            nheads,
            headdim,
            ngroups,
            d_state,
            dt_bias: self.dt_bias,
            dt_limit: self.dt_limit,
            a: self.a,
            d: self.d,
            norm,
        };
        let state = vec![nheads, headdim, d_state];
        Ok((Mixer::Mamba2(mixer), split, state))
    }
}

impl Mamba2 {
    /// Channels of the recurrence.
    pub fn d_inner(&self) -> usize {
        self.nheads * self.headdim
    }

    /// Columns of what the norm writes where it is a launch of its own.
    pub(super) fn normed_width(&self) -> usize {
        match self.own_norm() {
            Some(_) => self.d_inner(),
            None => 0,
        }
    }

    /// The scale of the norm that the output projection does, which scales by ones from here on.
    pub(super) fn give_scale(&mut self, client: &Client, lanes: usize) -> Option<TensorBinding> {
        let d_inner = self.d_inner();
        let norm = self.norm.as_mut().filter(|norm| norm.folded)?;
        Some(std::mem::replace(
            &mut norm.gamma,
            ones(client, d_inner, lanes),
        ))
    }

    /// The norm, where it is a launch of its own.
    pub(in crate::decode) fn own_norm(&self) -> Option<&GatedNorm> {
        self.norm.as_ref().filter(|norm| !norm.folded)
    }

    /// From `u` and `gate` to what the output projection reads, and the norm that it does.
    pub(super) fn launch<'a>(
        &'a self,
        client: &Client,
        state: &TensorBinding,
        vectors: &'a Vectors,
        sizes: Sizes,
    ) -> Result<(&'a TensorBinding, Option<Scale<'a>>), KernelError> {
        let buffers = ScanBuffers {
            u: &vectors.u,
            gate: &vectors.gate,
            y: &vectors.y,
        };
        let single = ElemType::Float(FloatKind::F32);
        self.step(client, state, &buffers, None, sizes, single);
        if let Some(norm) = self.own_norm() {
            let [y, gate, normed] = [&vectors.y, &vectors.gate, &vectors.extra]
                .map(|it| one_position(it, self.d_inner()));
            norm.apply(client, y, gate, normed, single)?;
            return Ok((&vectors.extra, None));
        }
        let norm = self.norm.as_ref().map(|norm| Scale {
            gamma: &norm.gamma,
            epsilon: norm.epsilon,
        });
        Ok((&vectors.y, norm))
    }

    /// Parts of a sequence's `y` of which [`step`](Self::step) gives sums of squares.
    pub fn squares(&self, client: &Client, sizes: Sizes) -> usize {
        SsdStep::new(client, self, sizes).parts_of_y()
    }

    /// One step of the recurrence, over vectors of type `dtype`, gated where no norm of its own comes behind it. The sums of
    /// squares over parts of a sequence's `y` go to `squares`, `[batch, parts]`, f32, if somebody wants them.
    pub fn step(
        &self,
        client: &Client,
        state: &TensorBinding,
        buffers: &ScanBuffers,
        squares: Option<&TensorBinding>,
        sizes: Sizes,
        dtype: ElemType,
    ) {
        let step = SsdStep::new(client, self, sizes);
        let gate = match self.own_norm() {
            Some(_) => None,
            None => Some(buffers.gate),
        };
        let (least, most) = self.dt_limit;
        let (count, cube) = step.cubes(client);
        // SAFETY: every index lies inside its tensor, whose shape was checked; all loops end.
        unsafe {
            ssd_step_kernel::launch_unchecked(
                client,
                count,
                cube,
                address_type([state]),
                step.lanes(),
                buffers.u.clone().into_tensor_arg(),
                argument(gate).into(),
                argument(self.dt_bias.as_ref()).into(),
                self.a.clone().into_tensor_arg(),
                self.d.clone().into_tensor_arg(),
                state.clone().into_tensor_arg(),
                buffers.y.clone().into_tensor_arg(),
                argument(squares).into(),
                least,
                // WGSL has no infinity.
                most.min(f32::MAX),
                step,
                present([gate.is_some(), self.dt_bias.is_some(), squares.is_some()]),
                dtype,
            );
        }
    }
}

impl GatedNorm {
    /// Refuses what the norm's own kernel does.
    pub fn check(&self) -> Result<(), KernelError> {
        match self.group_size <= MAX_GROUP {
            true => Ok(()),
            false => Err(KernelError::NotCovered(
                "gated norms of groups wider than 8192",
            )),
        }
    }

    /// The norm as a launch of its own, over sequences `[batch, seq_len, d_inner]` of type `dtype`.
    pub fn apply(
        &self,
        client: &Client,
        y: TensorBinding,
        gate: TensorBinding,
        normed: TensorBinding,
        dtype: ElemType,
    ) -> Result<(), KernelError> {
        let d_inner = y.shape[2];
        let inputs = GatedNormInputs {
            x: y,
            z: gate,
            gamma: TensorBinding {
                shape: [d_inner].into(),
                strides: [1].into_iter().collect(),
                ..self.gamma.clone()
            },
            group_size: self.group_size,
            epsilon: self.epsilon,
            norm_before_gate: self.before_gate,
            dtype,
        };
        gated_rms_norm(client, inputs, normed)
    }
}

/// The first columns of a matrix as sequences of one position.
pub(in crate::decode) fn one_position(matrix: &TensorBinding, columns: usize) -> TensorBinding {
    let (rows, row) = (matrix.shape[0], matrix.strides[0]);
    TensorBinding {
        shape: [rows, 1, columns].into(),
        strides: [row, row, 1].into_iter().collect(),
        ..matrix.clone()
    }
}
