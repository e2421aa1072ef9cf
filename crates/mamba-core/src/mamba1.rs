//! The Mamba-1 mixer.

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Int, Tensor, assert_shape};
use serde::{Deserialize, Serialize};

use crate::init::{inverse_softplus_of_time_steps, rescale, torch_linear};
use crate::limits::{check_bounds, check_positive, check_sizes, check_time_steps};
use crate::ops::{
    CausalConv1d, SelectiveScan, causal_conv1d, decay_rates, halves, linear, project, project_onto,
    rms_norm_to, selective_scan, thirds,
};
use crate::state::Mamba1State;

/// How the weight of the time-step projection starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DtInit {
    /// `U(-s, s)` with `s = dt_rank^-1/2 * dt_scale`.
    Random,
    /// `s` everywhere.
    Constant,
}

/// Configuration to create a [`Mamba1`] mixer with [`Mamba1Config::init`].
///
/// The fields and their defaults are those of the official `Mamba` module.
#[derive(Config, Debug)]
pub struct Mamba1Config {
    /// Width of the residual stream. Inside a language model's configuration 0 stands for the
    /// width of the model.
    pub d_model: usize,
    /// States a channel. Default: 16
    #[config(default = 16)]
    pub d_state: usize,
    /// Width of the convolution, at least 2. Default: 4
    #[config(default = 4)]
    pub d_conv: usize,
    /// `d_inner / d_model`. Default: 2
    #[config(default = 2)]
    pub expand: usize,
    /// Rank of the time-step projection; 0 stands for `ceil(d_model / 16)`. Default: 0
    #[config(default = 0)]
    pub dt_rank: usize,
    /// Smallest time step at initialisation. Default: 0.001
    #[config(default = 0.001)]
    pub dt_min: f64,
    /// Largest time step at initialisation. Default: 0.1
    #[config(default = 0.1)]
    pub dt_max: f64,
    /// How the time-step projection starts. Default: random
    #[config(default = "DtInit::Random")]
    pub dt_init: DtInit,
    /// Scale of the initial time-step projection. Default: 1.0
    #[config(default = 1.0)]
    pub dt_scale: f64,
    /// No initial time step lies below it. Default: 1e-4
    #[config(default = 1e-4)]
    pub dt_init_floor: f64,
    /// Whether the convolution has a bias. Default: true
    #[config(default = true)]
    pub conv_bias: bool,
    /// Whether the input and output projections have biases. Default: false
    #[config(default = false)]
    pub bias: bool,
    /// Divides the low-rank time step, B and C by their root mean squares, as FalconMamba does, with this added to the
    /// mean squares; left out: they stay as they are. Default: none
    #[config(default = "None")]
    pub dt_bc_rms_epsilon: Option<f64>,
}

impl Mamba1Config {
    /// Channels of the recurrence: `expand * d_model`.
    pub fn d_inner(&self) -> usize {
        self.expand * self.d_model
    }

    /// Rank of the time-step projection, with 0 resolved.
    pub fn resolved_dt_rank(&self) -> usize {
        match self.dt_rank {
            0 => self.d_model.div_ceil(16),
            rank => rank,
        }
    }

    /// What keeps [`Mamba1Config::init`] from working, naming the field.
    pub fn validate(&self) -> Result<(), String> {
        check_sizes(&[("d_model", self.d_model), ("expand", self.expand)])?;
        check_bounds(&[("dt_rank", self.dt_rank), ("d_conv", self.d_conv)])?;
        if !(1..=256).contains(&self.d_state) {
            return Err(format!(
                "d_state must be between 1 and 256, got {}",
                self.d_state
            ));
        }
        if self.d_conv < 2 {
            return Err(format!("d_conv must be at least 2, got {}", self.d_conv));
        }
        check_time_steps(self.dt_min, self.dt_max, self.dt_init_floor)?;
        check_positive("dt_scale", self.dt_scale)?;
        match self.dt_bc_rms_epsilon {
            Some(epsilon) => check_positive("dt_bc_rms_epsilon", epsilon),
            None => Ok(()),
        }
    }

    /// Initialises a mixer as the official module does.
    ///
    /// # Panics
    ///
    /// With the message of [`Mamba1Config::validate`], if that returns one.
    pub fn init(&self, device: &Device) -> Mamba1 {
        if let Err(problem) = self.validate() {
            panic!("Mamba1Config: {problem}");
        }
        let (d_model, d_inner, d_state) = (self.d_model, self.d_inner(), self.d_state);
        let dt_rank = self.resolved_dt_rank();

        // U(-1/sqrt(width), 1/sqrt(width)): a depthwise filter sees `width` inputs.
        let bound = (self.d_conv as f64).sqrt().recip();
        let conv = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        Mamba1 {
            in_proj: torch_linear(d_model, 2 * d_inner, self.bias, device),
            conv_weight: conv.init([d_inner, self.d_conv], device),
            conv_bias: self.conv_bias.then(|| conv.init([d_inner], device)),
            x_proj: torch_linear(d_inner, dt_rank + 2 * d_state, false, device),
            dt_proj: self.init_dt_proj(device),
            a_log: Param::from_tensor(
                Tensor::<1, Int>::arange(1..d_state as i64 + 1, device)
                    .float()
                    .log()
                    .unsqueeze::<2>()
                    .repeat_dim(0, d_inner),
            ),
            d: Initializer::Ones.init([d_inner], device),
            dt_bc_rms_epsilon: self.dt_bc_rms_epsilon,
            out_proj: torch_linear(d_inner, d_model, self.bias, device),
        }
    }

    /// The weight as [`DtInit`] says; the bias such that `softplus(bias)` is log-uniform between
    /// `dt_min` and `dt_max`.
    fn init_dt_proj(&self, device: &Device) -> Linear {
        let (dt_rank, d_inner) = (self.resolved_dt_rank(), self.d_inner());
        let scale = (dt_rank as f64).powf(-0.5) * self.dt_scale;
        let weight = match self.dt_init {
            DtInit::Random => Initializer::Uniform {
                min: -scale,
                max: scale,
            },
            DtInit::Constant => Initializer::Constant { value: scale },
        };
        Linear {
            weight: weight.init([dt_rank, d_inner], device),
            bias: Some(inverse_softplus_of_time_steps(
                d_inner,
                self.dt_min..=self.dt_max,
                self.dt_init_floor,
                device,
            )),
        }
    }
}

/// The selective state-space mixer of Mamba-1.
///
/// ```text
/// x, z     = in_proj(input)
/// x        = silu(causal_conv1d(x))
/// dt, B, C = x_proj(x)                        each divided by its root mean square in a FalconMamba
/// y        = selective_scan(x, dt_proj(dt), A = -exp(A_log), B, C, D, z)
/// output   = out_proj(y)
/// ```
///
/// Source: Gu and Dao 2023, "Mamba", section 3.4.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Mamba1 {
    /// `d_model -> 2 d_inner`: the sequence `x`, then the gate `z`.
    pub in_proj: Linear,
    /// One filter a channel, oldest tap first, `[d_inner, d_conv]`.
    pub conv_weight: Param<Tensor<2>>,
    /// `[d_inner]`
    pub conv_bias: Option<Param<Tensor<1>>>,
    /// `d_inner -> dt_rank + 2 d_state`: the low-rank time step, then `B`, then `C`.
    pub x_proj: Linear,
    /// `dt_rank -> d_inner`; its bias enters inside the softplus.
    pub dt_proj: Linear,
    /// `ln(-A)`, `[d_inner, d_state]`.
    pub a_log: Param<Tensor<2>>,
    /// Skip connection, `[d_inner]`.
    pub d: Param<Tensor<1>>,
    /// `d_inner -> d_model`
    pub out_proj: Linear,
    /// Of the norms of the time step, B and C; none where they are not normalised.
    #[module(skip)]
    pub dt_bc_rms_epsilon: Option<f64>,
}

impl Mamba1 {
    /// The state before any token.
    pub fn initial_state(&self, batch: usize, device: &Device) -> Mamba1State {
        let [d_inner, d_state] = self.a_log.dims();
        let [_, d_conv] = self.conv_weight.dims();
        Mamba1State::zeros(batch, d_inner, d_state, d_conv, device)
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
        state: Option<Mamba1State>,
    ) -> (Tensor<3>, Mamba1State) {
        self.mix(input, state, None, None)
    }

    /// [`Mamba1::forward`] over packed sequences: what the mixer remembers is reset wherever
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
        state: Option<Mamba1State>,
    ) -> (Tensor<3>, Mamba1State) {
        self.mix(input, state, Some(seq_idx), None)
    }

    /// Mixes one token.
    ///
    /// # Shapes
    ///
    /// - input: `[batch, d_model]`
    /// - output: `[batch, d_model]`, and the state after it
    pub fn step(&self, input: Tensor<2>, state: Mamba1State) -> (Tensor<2>, Mamba1State) {
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
        state: Option<Mamba1State>,
        seq_idx: Option<Tensor<2, Int>>,
        residual: Option<Tensor<3>>,
    ) -> (Tensor<3>, Mamba1State) {
        let [d_model, _] = self.in_proj.weight.dims();
        let [d_inner, d_state] = self.a_log.dims();
        let [dt_rank, _] = self.dt_proj.weight.dims();
        assert_shape!(input, [_, _, d_model]);
        let (conv_state, ssm_state) = state.map(|state| (state.conv, state.ssm)).unzip();

        let xz = project(&self.in_proj, input); // [batch, seq_len, 2 d_inner]
        let [x, z] = halves(xz, d_inner);
        let (x, conv) = causal_conv1d(CausalConv1d {
            bias: self.conv_bias.as_ref().map(Param::val),
            initial_state: conv_state,
            seq_idx: seq_idx.clone(),
            silu: true,
            ..CausalConv1d::new(x, self.conv_weight.val())
        });

        let projected = project(&self.x_proj, x.clone()); // [batch, seq_len, dt_rank + 2 d_state]
        let [dt, b, c] =
            thirds(projected, dt_rank, d_state).map(|part| match self.dt_bc_rms_epsilon {
                Some(epsilon) => unscaled_rms_norm(part, epsilon),
                None => part,
            });
        let delta = linear(dt, self.dt_proj.weight.val(), None);
        let (y, ssm) = selective_scan(SelectiveScan {
            d: Some(self.d.val()),
            z: Some(z),
            delta_bias: self.dt_proj.bias.as_ref().map(Param::val),
            initial_state: ssm_state,
            seq_idx,
            ..SelectiveScan::new(x, delta, decay_rates(self.a_log.val()), b, c)
        });
        let output = match residual {
            Some(residual) => project_onto(residual, &self.out_proj, y),
            None => project(&self.out_proj, y),
        };
        (output, Mamba1State { conv, ssm })
    }
}

/// An RMS norm without parameters, computed in f32 whatever the type of `x`.
fn unscaled_rms_norm(x: Tensor<3>, epsilon: f64) -> Tensor<3> {
    let ([_, _, width], output) = (x.dims(), x.dtype().into());
    let ones = Tensor::ones([width], (&x.device(), DType::F32));
    rms_norm_to(x.cast(DType::F32), ones, epsilon, output)
}

impl ModuleDisplay for Mamba1 {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_model, _] = self.in_proj.weight.dims();
        let [d_inner, d_state] = self.a_log.dims();
        let [dt_rank, _] = self.dt_proj.weight.dims();
        let [_, d_conv] = self.conv_weight.dims();
        content
            .add("d_model", &d_model)
            .add("d_inner", &d_inner)
            .add("d_state", &d_state)
            .add("d_conv", &d_conv)
            .add("dt_rank", &dt_rank)
            .optional()
    }
}
