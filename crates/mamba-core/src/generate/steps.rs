//! What passes tokens through the model, one at a time.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::GenerateError;
#[cfg(feature = "cube")]
use super::kernels::Kernels;
use crate::language_model::LanguageModel;
use crate::sampling::Sampler;
use crate::state::LanguageModelState;

/// What passes tokens through the model, one at a time.
pub(super) enum Steps<'a> {
    /// Burn's modules.
    Modules(Box<Modules<'a>>),
    /// The kernels that decode Mamba-1 and Mamba-2.
    #[cfg(feature = "cube")]
    Kernels(Box<Kernels>),
}

impl<'a> Steps<'a> {
    /// Reads `prompt`, and goes on by kernels where there are some for the model.
    pub fn read(
        model: &'a LanguageModel,
        prompt: &[u32],
        sampler: &mut Sampler,
        device: &Device,
    ) -> Self {
        #[cfg(feature = "cube")]
        if let Some(kernels) = Kernels::read(model, prompt, sampler) {
            return Self::Kernels(Box::new(kernels));
        }
        let tokens = prompt.iter().map(|token| *token as i32).collect();
        let tokens = TensorData::new::<i32, _>(tokens, [1, prompt.len()]);
        let tokens = Tensor::<2, Int>::from_data(tokens, device);
        let (logits, state) = model.prefill(tokens, model.initial_state(1, device));
        #[cfg(feature = "cube")]
        if let Some(kernels) = Kernels::go_on(model, &state, logits.clone(), sampler) {
            return Self::Kernels(Box::new(kernels));
        }
        #[cfg(not(feature = "cube"))]
        let _ = sampler;
        Self::Modules(Box::new(Modules {
            model,
            device: device.clone(),
            logits: Some(logits),
            state: Some(state),
        }))
    }

    /// The token behind `history`, whose last may not be read.
    pub fn next(&mut self, sampler: &mut Sampler, history: &[u32]) -> Result<u32, GenerateError> {
        match self {
            Self::Modules(modules) => modules.next(sampler, history),
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
    device: Device,
    /// Behind all of the history, until a token is chosen by them.
    logits: Option<Tensor<2>>,
    /// Put back after every step.
    state: Option<LanguageModelState>,
}

impl Modules<'_> {
    /// The last token is read first, so that the last one chosen costs no pass of the model.
    fn next(&mut self, sampler: &mut Sampler, history: &[u32]) -> Result<u32, GenerateError> {
        let logits = match &self.logits {
            Some(logits) => logits.clone(),
            None => self.read(history[history.len() - 1])?,
        };
        self.logits = Some(logits.clone());
        let token = choose(logits, sampler, history)?;
        self.logits = None;
        Ok(token)
    }

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
