//! The model as burn-train sees it.

use burn::backend::ExecutionError;
use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use burn::train::metric::Adaptor;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use mamba_core::LanguageModel;

use super::metrics::{ThroughputInput, TokenLossInput};
use crate::optimizer::clip_global_norm;
use crate::windows::TokenBatch;

/// A language model with what its optimizer step needs to know.
#[derive(Module, Debug)]
pub struct LmTraining {
    /// The model.
    pub model: LanguageModel,
    grad_accum: usize,
    clip_norm: f64,
}

impl LmTraining {
    /// Wraps `model` for steps that average `grad_accum` batches and clip the gradient to the
    /// global norm `clip_norm`; a `clip_norm` of 0 does not clip.
    pub fn new(model: LanguageModel, grad_accum: usize, clip_norm: f64) -> Self {
        Self {
            model,
            grad_accum,
            clip_norm,
        }
    }
}

/// The loss of one batch or of one optimizer step.
#[derive(Clone, Debug)]
pub struct LmOutput {
    /// Mean cross-entropy in nats, off the autodiff graph. Shape `[1]`.
    pub loss: Tensor<1>,
    /// The tokens the loss is a mean over.
    pub tokens: usize,
    /// Seconds the computation took.
    pub seconds: f64,
}

impl TrainStep for LmTraining {
    type Input = TokenBatch;
    type Output = LmOutput;

    fn step(&self, batch: TokenBatch) -> TrainOutput<LmOutput> {
        let tokens = batch.targets.dims().iter().product();
        let loss = self.model.loss(batch.inputs, batch.targets);
        // Gradients of the batches of a step are summed: dividing here makes that their mean.
        let grads = (loss.clone() / self.grad_accum as f64).backward();
        let output = LmOutput {
            loss: loss.inner(),
            tokens,
            seconds: 0.0,
        };
        TrainOutput::new(self, grads, output)
    }

    fn optimize(
        self,
        optimizer: &mut ModuleOptimizer,
        learning_rate: ModuleLearningRate,
        grads: GradientsParams,
    ) -> Self {
        let grads = if self.clip_norm > 0.0 {
            clip_global_norm(&self, grads, self.clip_norm)
        } else {
            grads
        };
        optimizer.step(learning_rate, self, grads)
    }
}

impl InferenceStep for LmTraining {
    type Input = TokenBatch;
    type Output = LmOutput;

    fn step(&self, batch: TokenBatch) -> LmOutput {
        let tokens = batch.targets.dims().iter().product();
        LmOutput {
            loss: self.model.loss(batch.inputs, batch.targets),
            tokens,
            seconds: 0.0,
        }
    }
}

impl ItemLazy for LmOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        self.loss.device().flush()?;
        Ok(self)
    }
}

impl Adaptor<TokenLossInput> for LmOutput {
    fn adapt(&self) -> TokenLossInput {
        TokenLossInput {
            loss: self.loss.clone(),
            tokens: self.tokens,
        }
    }
}

impl Adaptor<ThroughputInput> for LmOutput {
    fn adapt(&self) -> ThroughputInput {
        ThroughputInput {
            tokens: self.tokens,
            seconds: self.seconds,
        }
    }
}
