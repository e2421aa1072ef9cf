//! What passes tokens through the model, one at a time.

use burn::tensor::{DType, Device, Int, Tensor};

use super::GenerateError;
#[cfg(feature = "cube")]
use super::kernels::Kernels;
use crate::language_model::LanguageModel;
use crate::sampling::Sampler;
use crate::state::LanguageModelState;

/// What passes tokens through the model, one at a time.
pub(super) enum Steps<'a> {
    /// Burn's modules.
    Modules(Modules<'a>),
    /// The kernels that decode Mamba-1.
    #[cfg(feature = "cube")]
    Kernels(Box<Kernels>),
}

impl<'a> Steps<'a> {
    /// Continues what has left `state` behind, by kernels where there are some for the model.
    pub fn new(
        model: &'a LanguageModel,
        state: LanguageModelState,
        sampler: &Sampler,
        device: &Device,
    ) -> Self {
        #[cfg(feature = "cube")]
        if let Some(kernels) = Kernels::new(model, &state, sampler) {
            return Self::Kernels(Box::new(kernels));
        }
        #[cfg(not(feature = "cube"))]
        let _ = sampler;
        Self::Modules(Modules {
            model,
            state: Some(state),
            device: device.clone(),
        })
    }

    /// Reads the last token of `history` and chooses the next.
    pub fn next(&mut self, sampler: &mut Sampler, history: &[u32]) -> Result<u32, GenerateError> {
        match self {
            Self::Modules(modules) => {
                let logits = modules.read(history[history.len() - 1])?;
                choose(logits, sampler, history)
            }
            #[cfg(feature = "cube")]
            Self::Kernels(kernels) => kernels.next(sampler, history),
        }
    }
}

/// Chooses by the logits of one sequence, `[1, vocab_size]`.
pub(super) fn choose(
    logits: Tensor<2>,
    sampler: &mut Sampler,
    history: &[u32],
) -> Result<u32, GenerateError> {
    let logits = logits.cast(DType::F32).into_data();
    let mut logits: Vec<f32> = logits.iter::<f32>().collect();
    Ok(sampler.sample(&mut logits, history)?)
}

pub(super) struct Modules<'a> {
    model: &'a LanguageModel,
    /// Put back after every step.
    state: Option<LanguageModelState>,
    device: Device,
}

impl Modules<'_> {
    fn read(&mut self, token: u32) -> Result<Tensor<2>, GenerateError> {
        let state = self
            .state
            .take()
            .expect("the state is put back after every step");
        let positions = self.model.max_positions();
        if let Some(positions) = positions.filter(|max| state.position >= *max) {
            self.state = Some(state);
            return Err(GenerateError::OutOfPositions(positions));
        }
        let tokens = Tensor::<1, Int>::from_data([token as i32], &self.device);
        let (logits, state) = self.model.step(tokens, state);
        self.state = Some(state);
        Ok(logits)
    }
}
