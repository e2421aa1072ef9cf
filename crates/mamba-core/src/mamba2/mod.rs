//! The Mamba-2 mixer.

mod config;

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::Linear;
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor, assert_shape};

use crate::init::rescale;
use crate::ops::{
    CausalConv1d, GatedRmsNorm, Skip, Ssd, causal_conv1d, decay_rates, gated_rms_norm, halves,
    project, project_onto, ssd, thirds,
};
use crate::state::Mamba2State;

pub use config::Mamba2Config;

/// Added to a mean square before its root, as in the official module.
pub(crate) const NORM_EPSILON: f64 = 1e-5;

/// The state-space mixer of Mamba-2, whose recurrence is a product of matrices within chunks.
///
/// ```text
/// z, xBC, dt = in_proj(input)
/// x, B, C    = silu(causal_conv1d(xBC))
/// y          = ssd(x, dt + dt_bias, A = -exp(A_log), B, C, D)
/// output     = out_proj(rms_norm(y silu(z)))
/// ```
///
/// With fewer channels in the recurrence than the mixer has, the others are a gated MLP beside it: `in_proj` begins with
/// its two halves, and its output comes first.
///
/// Source: Dao and Gu 2024, "Transformers are SSMs", section 7.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Mamba2 {
    /// `d_model -> 2 d_inner + 2 ngroups d_state + nheads`: the MLP's gate and input if there is one, the gate
    /// `z`, then `x`, `B` and `C`, then the time step of each head.
    pub in_proj: Linear,
    /// One filter a channel of `x`, `B` and `C`, oldest tap first, `[d_ssm + 2 ngroups d_state, d_conv]`.
    pub conv_weight: Param<Tensor<2>>,
    /// `[d_ssm + 2 ngroups d_state]`
    pub conv_bias: Option<Param<Tensor<1>>>,
    /// Added to the time step inside the softplus, `[nheads]`.
    pub dt_bias: Param<Tensor<1>>,
    /// `ln(-A)`, `[nheads]`.
    pub a_log: Param<Tensor<1>>,
    /// Skip connection, `[nheads]` or `[d_ssm]`.
    pub d: Param<Tensor<1>>,
    /// Scale of the gated norm, `[d_ssm]`; without one the output is gated only.
    pub norm_weight: Option<Param<Tensor<1>>>,
    /// `d_inner -> d_model`
    pub out_proj: Linear,
    #[module(skip)]
    pub(crate) headdim: usize,
    #[module(skip)]
    pub(crate) ngroups: usize,
    #[module(skip)]
    pub(crate) norm_before_gate: bool,
    #[module(skip)]
    pub(crate) dt_limit: [f64; 2],
    #[module(skip)]
    chunk_size: usize,
}

impl Mamba2 {
    fn nheads(&self) -> usize {
        let [nheads] = self.a_log.dims();
        nheads
    }

    /// Channels of the recurrence.
    pub(crate) fn d_ssm(&self) -> usize {
        self.nheads() * self.headdim
    }

    fn d_state(&self) -> usize {
        let [conv_dim, _] = self.conv_weight.dims();
        (conv_dim - self.d_ssm()) / (2 * self.ngroups)
    }

    /// The state before any token.
    pub fn initial_state(&self, batch: usize, device: &Device) -> Mamba2State {
        let [conv_dim, d_conv] = self.conv_weight.dims();
        let ssm = [batch, self.nheads(), self.headdim, self.d_state()];
        Mamba2State {
            conv: Tensor::zeros([batch, d_conv - 1, conv_dim], device),
            ssm: Tensor::zeros(ssm, device),
        }
    }

    /// Mixes a sequence, continuing from `state` where one is given.
    ///
    /// # Shapes
    ///
    /// - input: `[batch, seq_len, d_model]`
    /// - output: `[batch, seq_len, d_model]`, and the state after the last position
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not `d_model` or the state is of another batch or mixer.
    pub fn forward(
        &self,
        input: Tensor<3>,
        state: Option<Mamba2State>,
    ) -> (Tensor<3>, Mamba2State) {
        self.mix(input, state, None, None)
    }

    /// [`Mamba2::forward`] over packed sequences: what the mixer remembers is reset wherever
    /// `seq_idx` changes. `state` belongs to the first run.
    ///
    /// # Shapes
    ///
    /// - input: `[batch, seq_len, d_model]`
    /// - seq_idx: `[batch, seq_len]`
    /// - output: `[batch, seq_len, d_model]`, and the state of the last run
    pub fn forward_packed(
        &self,
        input: Tensor<3>,
        seq_idx: Tensor<2, Int>,
        state: Option<Mamba2State>,
    ) -> (Tensor<3>, Mamba2State) {
        self.mix(input, state, Some(seq_idx), None)
    }

    /// Mixes one token.
    ///
    /// # Shapes
    ///
    /// - input: `[batch, d_model]`
    /// - output: `[batch, d_model]`, and the state after it
    pub fn step(&self, input: Tensor<2>, state: Mamba2State) -> (Tensor<2>, Mamba2State) {
        let (output, state) = self.forward(input.unsqueeze_dim(1), Some(state));
        (output.squeeze_dim(1), state)
    }

    /// Scales the initial output projection; a language model passes one over the root of the
    /// number of residual branches.
    pub fn rescale_residual(mut self, factor: f64) -> Self {
        self.out_proj = rescale(self.out_proj, factor);
        self
    }

    /// Mixes a sequence, onto `residual` where one is given.
    pub(crate) fn mix(
        &self,
        input: Tensor<3>,
        state: Option<Mamba2State>,
        seq_idx: Option<Tensor<2, Int>>,
        residual: Option<Tensor<3>>,
    ) -> (Tensor<3>, Mamba2State) {
        let [d_model, _] = self.in_proj.weight.dims();
        let [d_inner, _] = self.out_proj.weight.dims();
        let [conv_dim, _] = self.conv_weight.dims();
        let (d_ssm, columns) = (self.d_ssm(), self.ngroups * self.d_state());
        assert_shape!(input, [_, _, d_model]);
        let (conv_state, ssm_state) = state.map(|state| (state.conv, state.ssm)).unzip();

        let projected = project(&self.in_proj, input);
        let d_mlp = d_inner - d_ssm;
        let (mlp, projected) = match d_mlp {
            0 => (None, projected),
            _ => {
                let [mlp, projected] = halves(projected, 2 * d_mlp);
                let [gate, x] = halves(mlp, d_mlp);
                (Some(silu(gate) * x), projected)
            }
        };
        let [z, xbc, dt] = thirds(projected, d_ssm, conv_dim);
        let (xbc, conv) = causal_conv1d(CausalConv1d {
            bias: self.conv_bias.as_ref().map(Param::val),
            initial_state: conv_state,
            seq_idx: seq_idx.clone(),
            silu: true,
            ..CausalConv1d::new(xbc, self.conv_weight.val())
        });
        let [x, b, c] = thirds(xbc, d_ssm, columns);
        let [least, most] = self.dt_limit;
        let (y, ssm) = ssd(Ssd {
            d: Some(self.skip()),
            dt_bias: Some(self.dt_bias.val()),
            initial_state: ssm_state,
            seq_idx,
            ngroups: self.ngroups,
            chunk_size: self.chunk_size,
            dt_limit: (least, most),
            ..Ssd::new(x, dt, decay_rates(self.a_log.val()), b, c)
        });
        let y = match &self.norm_weight {
            Some(gamma) => gated_rms_norm(GatedRmsNorm {
                group_size: d_ssm / self.ngroups,
                epsilon: NORM_EPSILON,
                norm_before_gate: self.norm_before_gate,
                ..GatedRmsNorm::new(y, z, gamma.val())
            }),
            None => y * silu(z),
        };
        let y = match mlp {
            Some(mlp) => Tensor::cat(vec![mlp, y], 2),
            None => y,
        };
        let output = match residual {
            Some(residual) => project_onto(residual, &self.out_proj, y),
            None => project(&self.out_proj, y),
        };
        (output, Mamba2State { conv, ssm })
    }

    fn skip(&self) -> Skip {
        let (d, nheads) = (self.d.val(), self.nheads());
        let [factors] = d.dims();
        match factors == nheads {
            true => Skip::PerHead(d),
            false => Skip::PerChannel(d.reshape([nheads, self.headdim])),
        }
    }
}

impl ModuleDisplay for Mamba2 {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_model, _] = self.in_proj.weight.dims();
        let [d_inner, _] = self.out_proj.weight.dims();
        let [_, d_conv] = self.conv_weight.dims();
        content
            .add("d_model", &d_model)
            .add("d_inner", &d_inner)
            .add("nheads", &self.nheads())
            .add("headdim", &self.headdim)
            .add("ngroups", &self.ngroups)
            .add("d_state", &self.d_state())
            .add("d_conv", &d_conv)
            .optional()
    }
}
