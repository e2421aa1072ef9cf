//! The `[training]` section.

use anyhow::{Result, ensure};
use burn::tensor::Device;
use mamba_core::Precision;
use serde::{Deserialize, Serialize};

use crate::schedule::ScheduleKind;

/// The update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam; `weight_decay` is an L2 penalty added to the gradient.
    Adam,
    /// AdamW; `weight_decay` is decoupled from the gradient.
    AdamW,
}

/// `training.precision` as it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionSetting {
    /// [`Precision::F32`].
    #[default]
    F32,
    /// [`Precision::Bf16`]; an error on a device without it.
    Bf16,
    /// [`Precision::fastest`]. A run writes down which that was.
    Auto,
}

impl PrecisionSetting {
    /// What it stands for on `device`.
    pub fn on(self, device: &Device) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::Auto => Precision::fastest(device),
        }
    }
}

impl From<Precision> for PrecisionSetting {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// The optimisation. A limit or an interval of 0 is off.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingConfig {
    /// Passes over the training split. Default: 1.
    pub epochs: usize,
    /// Optimizer steps; overrides `epochs`. Default: 0.
    pub max_steps: usize,
    /// Minutes of training after which the run ends as if complete. Default: 0.
    pub max_minutes: f64,
    /// `"f32"`, or `"bf16"` for products and activations in bf16 on a device that has it (a CPU has, and is slower so);
    /// parameters, their gradients, the residual stream and the states of mixers stay in f32. `"auto"` takes bf16 on a GPU
    /// that has it and rounds to it.
    /// Default: `"f32"`.
    pub precision: PrecisionSetting,
    /// `"adam"` or `"adamw"`. Default: `"adamw"`.
    pub optimizer: OptimizerKind,
    /// The peak learning rate. Default: 1e-3.
    pub learning_rate: f64,
    /// The learning rate at the end of a cosine schedule. Default: 1e-5.
    pub min_learning_rate: f64,
    /// `"cosine"` or `"constant"`. Default: `"cosine"`.
    pub schedule: ScheduleKind,
    /// Steps over which the learning rate rises linearly to its peak. Default: 100.
    pub warmup_steps: usize,
    /// The same as a part of all steps; above 0 it overrides `warmup_steps`. Default: 0.
    pub warmup_fraction: f64,
    /// Decay of the first moment. Default: 0.9.
    pub beta_1: f64,
    /// Decay of the second moment. Default: 0.95.
    pub beta_2: f64,
    /// Keeps the update finite where the second moment vanishes. Default: 1e-8.
    pub epsilon: f64,
    /// Weight decay of matrices; never applied to norms, biases, `A_log`, `D` and the bias of
    /// dt. Default: 0.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down. Default: 1.
    pub clip_norm: f64,
    /// Batches whose gradients are averaged into one optimizer step. Default: 1.
    pub grad_accum: usize,
    /// Seeds the initialisation and the order of the data. Default: 42.
    pub seed: u64,
    /// Steps between evaluations on the valid split, besides one an epoch. Default: 0.
    pub eval_every: usize,
    /// Batches in such an evaluation; 0 takes the whole split. Default: 0.
    pub eval_batches: usize,
    /// Steps between checkpoints, besides one an epoch. Default: 0.
    pub checkpoint_every: usize,
    /// Checkpoints kept, besides the one with the best valid loss. Default: 2.
    pub keep_checkpoints: usize,
    /// Steps between logged training losses. Default: 10.
    pub log_every: usize,
    /// Evaluations without improvement after which training ends. Default: 0.
    pub patience: usize,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            max_steps: 0,
            max_minutes: 0.0,
            precision: PrecisionSetting::F32,
            optimizer: OptimizerKind::AdamW,
            learning_rate: 1e-3,
            min_learning_rate: 1e-5,
            schedule: ScheduleKind::Cosine,
            warmup_steps: 100,
            warmup_fraction: 0.0,
            beta_1: 0.9,
            beta_2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            grad_accum: 1,
            seed: 42,
            eval_every: 0,
            eval_batches: 0,
            checkpoint_every: 0,
            keep_checkpoints: 2,
            log_every: 10,
            patience: 0,
        }
    }
}

impl TrainingConfig {
    pub(super) fn validate(&self) -> Result<()> {
        let positive = |key: &str, value: f64| {
            ensure!(
                value.is_finite() && value > 0.0,
                "training.{key}: must be a positive number, got {value}"
            );
            Ok(())
        };
        let not_negative = |key: &str, value: f64| {
            ensure!(
                value.is_finite() && value >= 0.0,
                "training.{key}: must be 0 or more, got {value}"
            );
            Ok(())
        };
        let decay = |key: &str, value: f64| {
            ensure!(
                (0.0..1.0).contains(&value),
                "training.{key}: must be at least 0 and below 1, got {value}"
            );
            Ok(())
        };
        let in_f32 = |key: &str, value: f64| {
            ensure!(
                value == 0.0 || (f32::MIN_POSITIVE..=f32::MAX).contains(&(value as f32)),
                "training.{key}: must be from {:.1e} to {:.1e}, as steps are computed in 32 bits; got {value:e}",
                f32::MIN_POSITIVE,
                f32::MAX
            );
            Ok(())
        };
        let at_least_one = |key: &str, value: usize| {
            ensure!(value > 0, "training.{key}: must be at least 1");
            Ok(())
        };

        ensure!(
            self.epochs > 0 || self.max_steps > 0,
            "training.epochs: must be at least 1 where training.max_steps is 0"
        );
        not_negative("max_minutes", self.max_minutes)?;
        positive("learning_rate", self.learning_rate)?;
        not_negative("min_learning_rate", self.min_learning_rate)?;
        ensure!(
            self.schedule == ScheduleKind::Constant || self.min_learning_rate <= self.learning_rate,
            "training.min_learning_rate: must not exceed training.learning_rate ({}), got {}",
            self.learning_rate,
            self.min_learning_rate
        );
        decay("warmup_fraction", self.warmup_fraction)?;
        for (key, value) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            decay(key, value)?;
            ensure!(
                (value as f32) < 1.0,
                "training.{key}: must be below 1 also in 32 bits, in which steps are computed; got {value}"
            );
        }
        positive("epsilon", self.epsilon)?;
        not_negative("weight_decay", self.weight_decay)?;
        not_negative("clip_norm", self.clip_norm)?;
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("min_learning_rate", self.min_learning_rate),
            ("epsilon", self.epsilon),
            ("weight_decay", self.weight_decay),
            ("clip_norm", self.clip_norm),
        ] {
            in_f32(key, value)?;
        }
        at_least_one("grad_accum", self.grad_accum)?;
        at_least_one("keep_checkpoints", self.keep_checkpoints)?;
        at_least_one("log_every", self.log_every)
    }
}
