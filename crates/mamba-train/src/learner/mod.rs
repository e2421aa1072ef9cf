//! The training loop, on burn-train's [`SupervisedTraining`](burn::train::SupervisedTraining).
//!
//! burn-train counts in epochs; a language model's run counts in optimizer steps. The loop is
//! therefore a custom learning strategy, [`StepStrategy`], which evaluates, saves and stops at any
//! step, and leaves dashboard, metrics and interruption to burn-train.

mod loader;
mod metrics;
mod module;
mod plan;
mod state;
mod stepper;
mod strategy;

pub use loader::{Order, TokenLoader};
pub use metrics::{
    MemoryMetric, PerplexityMetric, ThroughputInput, ThroughputMetric, TokenLossInput,
    TokenLossMetric,
};
pub use module::{LmOutput, LmTraining};
pub use plan::Plan;
pub use state::{Best, LossWindow, TrainState};
pub use strategy::{StepStrategy, Stop};
