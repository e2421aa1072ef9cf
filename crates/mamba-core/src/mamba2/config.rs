//! What a Mamba-2 mixer is made of.

use burn::config::Config;
use burn::module::{Initializer, Param};
use burn::tensor::{Device, Distribution, Tensor};

use super::Mamba2;
use crate::init::{inverse_softplus_of_time_steps, torch_linear};
use crate::limits::{check_bounds, check_positive, check_sizes, check_time_steps};

/// Configuration to create a [`Mamba2`] mixer with [`Mamba2Config::init`].
///
/// The fields and their defaults are those of the official `Mamba2` module.
#[derive(Config, Debug)]
pub struct Mamba2Config {
    /// Width of the residual stream. Inside a language model's configuration 0 stands for the
    /// width of the model.
    pub d_model: usize,
    /// States a channel. Default: 128
    #[config(default = 128)]
    pub d_state: usize,
    /// Width of the convolution, at least 2. Default: 4
    #[config(default = 4)]
    pub d_conv: usize,
    /// Initial filters are uniform between minus and plus this; left out: as PyTorch's, `d_conv^-1/2`. Default: none
    #[config(default = "None")]
    pub conv_init: Option<f64>,
    /// `d_inner / d_model`. Default: 2
    #[config(default = 2)]
    pub expand: usize,
    /// Channels a head. Default: 64
    #[config(default = 64)]
    pub headdim: usize,
    /// Channels that go through the recurrence, at most `d_inner`; the rest is a gated MLP. Left out: all. Default: none
    #[config(default = "None")]
    pub d_ssm: Option<usize>,
    /// Groups of heads that share B and C. Default: 1
    #[config(default = 1)]
    pub ngroups: usize,
    /// Least and largest `-A` at initialisation. Default: `[1, 16]`
    #[config(default = "[1.0, 16.0]")]
    pub a_init_range: [f64; 2],
    /// Whether the skip connection has a factor for each channel instead of each head. Default: false
    #[config(default = false)]
    pub d_has_hdim: bool,
    /// Whether the output is normalised; without, it is gated only. Default: true
    #[config(default = true)]
    pub rmsnorm: bool,
    /// Whether the gate multiplies what is normalised already. Default: false
    #[config(default = false)]
    pub norm_before_gate: bool,
    /// Smallest time step at initialisation. Default: 0.001
    #[config(default = 0.001)]
    pub dt_min: f64,
    /// Largest time step at initialisation. Default: 0.1
    #[config(default = 0.1)]
    pub dt_max: f64,
    /// No initial time step lies below it. Default: 1e-4
    #[config(default = 1e-4)]
    pub dt_init_floor: f64,
    /// Least and largest time step. Default: `[0, inf]`
    #[config(default = "[0.0, f64::INFINITY]")]
    pub dt_limit: [f64; 2],
    /// Whether the input and output projections have biases. Default: false
    #[config(default = false)]
    pub bias: bool,
    /// Whether the convolution has a bias. Default: true
    #[config(default = true)]
    pub conv_bias: bool,
    /// Positions that are computed as one product of matrices. Default: 256
    #[config(default = 256)]
    pub chunk_size: usize,
}

impl Mamba2Config {
    /// Channels of the mixer: `expand * d_model`.
    pub fn d_inner(&self) -> usize {
        self.expand * self.d_model
    }

    /// Channels of the recurrence.
    pub fn resolved_d_ssm(&self) -> usize {
        self.d_ssm.unwrap_or_else(|| self.d_inner())
    }

    /// Heads of the recurrence.
    pub fn nheads(&self) -> usize {
        self.resolved_d_ssm() / self.headdim
    }

    /// Channels of the convolution: those of the recurrence, B and C.
    pub fn conv_dim(&self) -> usize {
        self.resolved_d_ssm() + 2 * self.ngroups * self.d_state
    }

    /// Outputs of the input projection: gate and input, B and C, and a time step a head.
    pub(crate) fn in_width(&self) -> usize {
        2 * self.d_inner() + 2 * self.ngroups * self.d_state + self.nheads()
    }

    /// What keeps [`Mamba2Config::init`] from working, naming the field.
    pub fn validate(&self) -> Result<(), String> {
        check_sizes(&[
            ("d_model", self.d_model),
            ("expand", self.expand),
            ("headdim", self.headdim),
            ("ngroups", self.ngroups),
            ("d_state", self.d_state),
            ("chunk_size", self.chunk_size),
        ])?;
        check_bounds(&[("d_conv", self.d_conv)])?;
        if self.d_ssm == Some(0) {
            return Err("d_ssm must be at least 1".into());
        }
        for (field, value) in [("d_state", self.d_state), ("headdim", self.headdim)] {
            if value > 256 {
                return Err(format!("{field} must be at most 256, got {value}"));
            }
        }
        if self.d_conv < 2 {
            return Err(format!("d_conv must be at least 2, got {}", self.d_conv));
        }
        let (d_ssm, d_inner) = (self.resolved_d_ssm(), self.d_inner());
        if d_ssm > d_inner {
            return Err(format!(
                "d_ssm must be at most expand * d_model = {d_inner}, got {d_ssm}"
            ));
        }
        if !d_ssm.is_multiple_of(self.headdim) {
            return Err(format!(
                "headdim = {} must divide the {d_ssm} channels of the recurrence",
                self.headdim
            ));
        }
        if !self.nheads().is_multiple_of(self.ngroups) {
            return Err(format!(
                "ngroups = {} must divide the {} heads",
                self.ngroups,
                self.nheads()
            ));
        }
        check_time_steps(self.dt_min, self.dt_max, self.dt_init_floor)?;
        if let Some(bound) = self.conv_init {
            check_positive("conv_init", bound)?;
        }
        let [least, most] = self.a_init_range;
        if !(0.0 < least && least <= most && most.is_finite()) {
            return Err("a_init_range must be two finite numbers above 0, the least first".into());
        }
        let [least, most] = self.dt_limit;
        if !(0.0 <= least && least <= most && least.is_finite()) {
            return Err(
                "dt_limit must be two numbers of at least 0, the least first and finite".into(),
            );
        }
        Ok(())
    }

    /// Initialises a mixer as the official module does.
    ///
    /// # Panics
    ///
    /// With the message of [`Mamba2Config::validate`], if that returns one.
    pub fn init(&self, device: &Device) -> Mamba2 {
        if let Err(problem) = self.validate() {
            panic!("Mamba2Config: {problem}");
        }
        let (d_inner, d_ssm, nheads) = (self.d_inner(), self.resolved_d_ssm(), self.nheads());
        let bound = |of: f64| Initializer::Uniform { min: -of, max: of };
        let filters = (self.d_conv as f64).sqrt().recip();
        let conv_dim = self.conv_dim();
        let [least, most] = self.a_init_range;
        // No distribution has two bounds that are one in f32.
        let a = match least as f32 == most as f32 {
            true => Tensor::<1>::full([nheads], least, device),
            false => Tensor::random([nheads], Distribution::Uniform(least, most), device),
        };
        let skips = if self.d_has_hdim { d_ssm } else { nheads };
        Mamba2 {
            in_proj: torch_linear(self.d_model, self.in_width(), self.bias, device),
            conv_weight: bound(self.conv_init.unwrap_or(filters))
                .init([conv_dim, self.d_conv], device),
            conv_bias: self
                .conv_bias
                .then(|| bound(filters).init([conv_dim], device)),
            dt_bias: inverse_softplus_of_time_steps(
                nheads,
                self.dt_min..=self.dt_max,
                self.dt_init_floor,
                device,
            ),
            a_log: Param::from_tensor(a.log()),
            d: Initializer::Ones.init([skips], device),
            norm_weight: self
                .rmsnorm
                .then(|| Initializer::Ones.init([d_ssm], device)),
            out_proj: torch_linear(d_inner, self.d_model, self.bias, device),
            headdim: self.headdim,
            ngroups: self.ngroups,
            norm_before_gate: self.norm_before_gate,
            dt_limit: self.dt_limit,
            chunk_size: self.chunk_size,
        }
    }
}
