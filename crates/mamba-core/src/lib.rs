//! Selective state-space models as [Burn](burn) modules: one model code for every backend.
//!
//! | symbol | name in the papers | meaning | typical |
//! |---|---|---|---|
//! | `batch` | B | sequences at once | 8 |
//! | `seq_len` | L | positions of a sequence | 2048 |
//! | `d_model` | | width of the residual stream | 768 |
//! | `d_inner` | D | channels of a mixer, `expand * d_model` | 1536 |
//! | `d_state` | N | states a channel | 16 |
//! | `d_conv` | | width of the causal convolution | 4 |
//! | `dt_rank` | R | rank of the time-step projection, `ceil(d_model / 16)` | 48 |
//! | `nheads` | H | heads of Mamba-2, `d_inner / headdim` | 24 |
//! | `headdim` | P | channels a head | 64 |
//! | `ngroups` | G | groups of heads that share B and C | 1 |
//! | `delta`, `dt` | Δ | time step, before and after softplus | |
//! | `a`, `b`, `c`, `d` | A, B, C, D | decay, input, output and skip of the recurrence | |
//!
//! # Train a tiny model
//!
//! ```
//! use burn::module::Module;
//! use burn::optim::{AdamConfig, GradientsParams};
//! use burn::tensor::{Device, Int, Tensor};
//! use mamba_core::{LanguageModelConfig, Sampler, SamplingConfig};
//!
//! let device = Device::default().autodiff();
//! device.seed(1);
//! let mut model = LanguageModelConfig::new()
//!     .with_vocab_size(12)
//!     .with_d_model(16)
//!     .with_n_layer(2)
//!     .init(&device);
//! let mut optimizer = AdamConfig::new().init();
//!
//! // Twelve tokens that go round in a circle.
//! let inputs = Tensor::<1, Int>::arange(0..24, &device).remainder_scalar(12).unsqueeze::<2>();
//! let targets = (inputs.clone() + 1).remainder_scalar(12);
//! let first = model.loss(inputs.clone(), targets.clone()).into_scalar::<f32>();
//! for _ in 0..60 {
//!     let loss = model.loss(inputs.clone(), targets.clone());
//!     let gradients = GradientsParams::from_grads(loss.backward(), &model);
//!     model = optimizer.step(1e-2, model, gradients);
//! }
//! let last = model.loss(inputs, targets).into_scalar::<f32>();
//! assert!(last < 0.1 * first, "loss went from {first} to {last}");
//!
//! let model = model.valid();
//! let greedy = Sampler::new(SamplingConfig { temperature: 0.0, ..Default::default() })?;
//! let next = model.generate(&[3, 4, 5], greedy, &device.inner())?.next().unwrap()?;
//! assert_eq!(next, 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![recursion_limit = "256"]

mod block;
pub mod checkpoint;
pub mod compilation;
pub mod device;
pub mod failure;
pub mod files;
mod generate;
mod init;
mod language_model;
mod limits;
mod mamba1;
mod mamba2;
pub mod memory;
mod norm;
pub mod ops;
mod precision;
mod sampling;
mod snapshot;
mod state;
pub mod transformer;

pub use block::{Block, Mixer, MixerKind};
pub use generate::{
    Continuation, GenerateError, Generated, Generations, Generator, Logprobs, Prepared, Request,
    Score, StopFilter,
};
pub use language_model::{LanguageModel, LanguageModelConfig};
pub use mamba1::{DtInit, Mamba1, Mamba1Config};
pub use mamba2::{Mamba2, Mamba2Config};
pub use norm::{Norm, NormConfig, NormKind};
pub use precision::Precision;
pub use sampling::{Sampler, SamplingConfig, SamplingError};
pub use snapshot::{Snapshot, SnapshotError};
pub use state::{LanguageModelState, LayerState, Mamba1State, Mamba2State};
