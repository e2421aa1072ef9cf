//! What passes tokens through the model, one at a time.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

#[cfg(feature = "cube")]
use super::kernels::{Kernels, Row};
use super::request::check_positions;
use super::{Chooser, GenerateError, Prepared};
use crate::language_model::LanguageModel;
use crate::snapshot::Snapshot;

/// Tokens of a prompt that are read at once: enough to keep any device busy, few enough that the memory for a prompt of any
/// length is that of a short one.
pub(super) const AT_ONCE: usize = 4096;

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
        prepared: &Prepared<'a>,
        prompt: &[u32],
        after: Option<Snapshot>,
        chooser: &mut Chooser,
    ) -> Self {
        let Prepared { model, device, .. } = prepared;
        #[cfg(feature = "cube")]
        if after.is_none()
            && prompt.len() <= AT_ONCE
            && let Some(kernels) =
                Kernels::read(model, &[prompt], &mut [&mut *chooser], &prepared.spare)
        {
            return Self::Kernels(Box::new(kernels));
        }
        let Snapshot { state, logits } = read(model, prompt, after, device);
        #[cfg(feature = "cube")]
        {
            let choosers = std::iter::once(&*chooser);
            if let Some(kernels) = Kernels::go_on(model, &state, logits.clone(), choosers) {
                return Self::Kernels(Box::new(kernels));
            }
        }
        #[cfg(not(feature = "cube"))]
        let _ = chooser;
        Self::Modules(Box::new(Modules {
            model,
            device: device.clone(),
            logits: Some(logits),
            state: Some(state),
        }))
    }

    /// The token behind `last`, which may not be read yet.
    pub fn next(&mut self, chooser: &mut Chooser, last: Option<u32>) -> Result<u32, GenerateError> {
        match self {
            Self::Modules(modules) => modules.next(chooser, last),
            #[cfg(feature = "cube")]
            Self::Kernels(kernels) => Ok(kernels.next(&mut [row_of(chooser, last)])?[0]),
        }
    }

    /// Reads the token that was chosen last, unless that is done.
    pub fn read_last(
        &mut self,
        chooser: &mut Chooser,
        last: Option<u32>,
    ) -> Result<(), GenerateError> {
        #[cfg(not(feature = "cube"))]
        let _ = chooser;
        match self {
            Self::Modules(modules) => modules.read_last(last),
            #[cfg(feature = "cube")]
            Self::Kernels(kernels) => kernels.read_last(&mut [row_of(chooser, last)]),
        }
    }

    /// After [`Steps::read_last`]: what is remembered of `position` tokens.
    pub fn snapshot(
        &self,
        model: &LanguageModel,
        position: usize,
        device: &Device,
    ) -> Result<Snapshot, GenerateError> {
        let mut snapshot = match self {
            Self::Modules(modules) => modules.snapshot(),
            #[cfg(feature = "cube")]
            Self::Kernels(kernels) => kernels.snapshot(model, device)?,
        };
        #[cfg(not(feature = "cube"))]
        let _ = (model, device);
        snapshot.state.position = position;
        Ok(snapshot)
    }
}

#[cfg(feature = "cube")]
fn row_of(chooser: &mut Chooser, last: Option<u32>) -> Row<'_> {
    Row {
        chooser,
        last,
        going: true,
    }
}

/// The tokens of one sequence as a batch, `[1, seq_len]`.
pub(super) fn row(tokens: &[u32], device: &Device) -> Tensor<2, Int> {
    rows(&[tokens], device)
}

/// Sequences of one length, `[batch, seq_len]`.
pub(super) fn rows(sequences: &[&[u32]], device: &Device) -> Tensor<2, Int> {
    let shape = [sequences.len(), sequences[0].len()];
    let tokens = sequences.iter().flat_map(|it| it.iter());
    let tokens = tokens.map(|token| *token as i32).collect();
    Tensor::from_data(TensorData::new::<i32, _>(tokens, shape), device)
}

/// Reads a prompt through the modules, in parts; not nothing after nothing.
pub(super) fn read(
    model: &LanguageModel,
    prompt: &[u32],
    after: Option<Snapshot>,
    device: &Device,
) -> Snapshot {
    let (mut state, mut logits) = match after {
        Some(Snapshot { state, logits }) => (state, Some(logits)),
        None => (model.initial_state(1, device), None),
    };
    let mut parts = prompt.chunks(AT_ONCE).peekable();
    while let Some(part) = parts.next() {
        let tokens = row(part, device);
        match parts.peek() {
            Some(_) => (_, state) = model.forward(tokens, state),
            None => {
                let (last, after) = model.prefill(tokens, state);
                (logits, state) = (Some(last), after);
            }
        }
    }
    let logits = logits.expect("something was read");
    Snapshot { state, logits }
}

/// The values of a tensor on the host.
pub(super) fn to_host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, GenerateError> {
    let data = tensor.cast(DType::F32).try_into_data();
    let data = data.map_err(|error| GenerateError::Device(error.to_string()))?;
    match data.try_into_vec::<f32>() {
        Ok(values) => Ok(values),
        Err(error) => Err(GenerateError::Device(format!("{error:?}"))),
    }
}

pub(super) struct Modules<'a> {
    model: &'a LanguageModel,
    device: Device,
    /// Behind all of the history, until a token is chosen by them.
    logits: Option<Tensor<2>>,
    /// Put back after every step.
    state: Option<crate::state::LanguageModelState>,
}

impl Modules<'_> {
    /// The last token is read first, so that the last one chosen costs no pass of the model.
    fn next(&mut self, chooser: &mut Chooser, last: Option<u32>) -> Result<u32, GenerateError> {
        self.read_last(last)?;
        let logits = self.logits.clone().expect("there after reading");
        let token = chooser.choose(&mut to_host(logits)?)?;
        self.logits = None;
        Ok(token)
    }

    fn read_last(&mut self, last: Option<u32>) -> Result<(), GenerateError> {
        if self.logits.is_some() {
            return Ok(());
        }
        let last = last.expect("a token was chosen");
        let position = self.state.as_ref().map_or(0, |state| state.position);
        check_positions(self.model, position + 1)?;
        let state = self.state.take().expect("put back after every step");
        let tokens = Tensor::<1, Int>::from_data([last as i32], &self.device);
        let (logits, state) = self.model.step(tokens, state);
        self.state = Some(state);
        self.logits = Some(logits);
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.state.clone().expect("put back after every step"),
            logits: self.logits.clone().expect("the last token is read"),
        }
    }
}
