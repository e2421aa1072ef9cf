//! Sequences through the kernels that decode Mamba-1 and Mamba-2.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use mamba_kernels::decode::{Choice, Decoder, Tokens};

use super::steps::AT_ONCE;
use super::{Chooser, GenerateError};
use crate::language_model::LanguageModel;
use crate::ops::{Behind, decoder};
use crate::sampling::SamplingError;
use crate::snapshot::Snapshot;
use crate::state::{LanguageModelState, LayerState, Mamba1State, Mamba2State};

/// Sequences through the kernels that decode Mamba-1 and Mamba-2, a token of each at a time. Where no sampler filters and all have
/// one temperature the device chooses, and computes tokens while those before them are on their way.
pub(super) struct Kernels {
    /// There until this is dropped.
    decoder: Option<Decoder>,
    choice: Choice,
    /// Where the decoder goes then, unless it failed.
    spare: Option<Spare>,
    vocab_size: usize,
    /// What is computed and not taken. The decoder has read all that came before.
    pending: Option<Pending>,
}

enum Pending {
    /// What the device has chosen or will have.
    Tokens(Tokens),
    /// The logits, which the decoder has.
    Logits,
    /// The logits that the modules have left behind the prompts.
    Prompt(Box<Tensor<2>>),
}

/// A decoder that nobody uses, for whom the next one like it is made.
#[derive(Clone, Debug, Default)]
pub(super) struct Spare(Arc<Mutex<Option<(Choice, Decoder)>>>);

impl Spare {
    fn take(&self, choice: Choice, batch: usize) -> Option<Decoder> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, mut decoder) = kept.take_if(|(kind, it)| *kind == choice && it.batch() == batch)?;
        decoder.forget();
        Some(decoder)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // Tokens on their way are read from the decoder's buffers.
        self.pending = None;
        if let (Some(spare), Some(decoder)) = (&self.spare, self.decoder.take()) {
            let mut kept = spare.0.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = Some((self.choice, decoder));
        }
    }
}

/// A sequence of the decoder's.
pub(super) struct Row<'a> {
    pub chooser: &'a mut Chooser,
    /// Of the prompt or chosen; none only where a snapshot was continued by nothing.
    pub last: Option<u32>,
    /// Whether its tokens are wanted.
    pub going: bool,
}

impl Kernels {
    /// Reads prompts, where the kernels cover that; those of one length that stand side by side together.
    pub fn read(
        model: &LanguageModel,
        prompts: &[&[u32]],
        choosers: &mut [&mut Chooser],
        spare: &Spare,
    ) -> Option<Self> {
        let choice = choice(choosers.iter().map(|it| &**it));
        let mut kernels = match spare.take(choice, prompts.len()) {
            Some(decoder) => Self::of(decoder, model, choice),
            None => Self::new(model, Behind::Nothing(prompts.len()), choice)?,
        };
        let unread: Vec<Chooser> = choosers.iter().map(|it| (*it).clone()).collect();
        kernels.give_uniform(choosers.iter_mut().map(|it| Some(&mut **it)));
        if let Err(error) = kernels.decoder().read(prompts, AT_ONCE) {
            log::debug!("decoding: {error}; the prompt goes through the modules");
            for (chooser, unread) in choosers.iter_mut().zip(unread) {
                **chooser = unread;
            }
            return None;
        }
        kernels.pending = Some(match kernels.choice {
            Choice::Device { .. } => Pending::Tokens(kernels.decoder().tokens()),
            Choice::Caller => Pending::Logits,
        });
        kernels.spare = Some(spare.clone());
        Some(kernels)
    }

    /// Goes on from what has left `state` and `logits` behind.
    pub fn go_on<'a>(
        model: &LanguageModel,
        state: &LanguageModelState,
        logits: Tensor<2>,
        choosers: impl Iterator<Item = &'a Chooser>,
    ) -> Option<Self> {
        let mut kernels = Self::new(model, Behind::State(state), choice(choosers))?;
        kernels.pending = Some(Pending::Prompt(logits.into()));
        Some(kernels)
    }

    fn new(model: &LanguageModel, behind: Behind, choice: Choice) -> Option<Self> {
        Some(Self::of(decoder(model, behind, choice)?, model, choice))
    }

    fn of(decoder: Decoder, model: &LanguageModel, choice: Choice) -> Self {
        Self {
            decoder: Some(decoder),
            choice,
            spare: None,
            vocab_size: model.vocab_size(),
            pending: None,
        }
    }

    fn decoder(&mut self) -> &mut Decoder {
        self.decoder.as_mut().expect("there until this is dropped")
    }

    /// What the device did, after which nobody uses the decoder again if it failed.
    fn told<T>(&mut self, result: Result<T, impl Display>) -> Result<T, GenerateError> {
        result.map_err(|error| {
            self.spare = None;
            GenerateError::Device(error.to_string())
        })
    }

    /// The token behind each sequence's last one; any token where none is wanted.
    pub fn next(&mut self, rows: &mut [Row<'_>]) -> Result<Vec<u32>, GenerateError> {
        self.read_last(rows)?;
        let chosen = match self.pending.take() {
            Some(Pending::Tokens(chosen)) => chosen,
            Some(Pending::Prompt(logits)) => {
                return choose(&mut super::steps::to_host(*logits)?, rows);
            }
            Some(Pending::Logits) | None => {
                let logits = self.decoder().logits();
                return choose(&mut self.told(logits)?, rows);
            }
        };
        self.pending = Some(Pending::Tokens(self.step(rows)?));
        let tokens = self.told(chosen.wait())?;
        let tokens = tokens.into_iter().zip(rows).map(|(token, row)| {
            let none = SamplingError::NoChoice {
                vocab_size: self.vocab_size,
            };
            match row.going {
                true => Ok(token.ok_or(none)?),
                false => Ok(0),
            }
        });
        tokens.collect()
    }

    /// Reads the tokens that were chosen last, unless that is done.
    pub fn read_last(&mut self, rows: &mut [Row<'_>]) -> Result<(), GenerateError> {
        if self.pending.is_some() {
            return Ok(());
        }
        let last = rows.iter().map(|row| {
            debug_assert!(row.last.is_some() || !row.going, "a token was chosen");
            row.last.unwrap_or_default()
        });
        let last: Vec<u32> = last.collect();
        self.decoder().give_tokens(&last);
        self.pending = Some(match self.choice {
            Choice::Caller => {
                let done = self.decoder().step();
                self.told(done)?;
                Pending::Logits
            }
            Choice::Device { .. } => Pending::Tokens(self.step(rows)?),
        });
        Ok(())
    }

    /// After [`Kernels::read_last`], but for the position.
    pub fn snapshot(
        &self,
        model: &LanguageModel,
        device: &Device,
    ) -> Result<Snapshot, GenerateError> {
        let decoder = self.decoder.as_ref().expect("there until this is dropped");
        let logits = match &self.pending {
            Some(Pending::Prompt(logits)) => (**logits).clone(),
            _ => {
                let logits = decoder.logits().map_err(device_failed)?;
                Tensor::from_data(TensorData::new(logits, [1, self.vocab_size]), device)
            }
        };
        let states = decoder.states().map_err(device_failed)?;
        let mut state = model.initial_state(1, device);
        let layers = state.layers.into_iter().zip(states);
        state.layers = layers
            .map(|(layer, values)| filled(layer, values, device))
            .collect();
        Ok(Snapshot { state, logits })
    }

    /// A number of each sequence that goes on, if the device chooses by one.
    fn give_uniform<'a>(&mut self, choosers: impl Iterator<Item = Option<&'a mut Chooser>>) {
        if let Choice::Device { temperature } = self.choice
            && temperature > 0.0
        {
            let uniform = choosers.map(|it| it.map_or(0.0, |chooser| chooser.sampler.uniform()));
            let uniform: Vec<f32> = uniform.collect();
            self.decoder().give_uniform(&uniform);
        }
    }

    /// The tokens that come behind those that the decoder has.
    fn step(&mut self, rows: &mut [Row<'_>]) -> Result<Tokens, GenerateError> {
        self.give_uniform(rows.iter_mut().map(|row| match row.going {
            true => Some(&mut *row.chooser),
            false => None,
        }));
        let done = self.decoder().step();
        self.told(done)?;
        Ok(self.decoder().tokens())
    }
}

/// The device's, where it can choose for all: nothing is asked for but one temperature.
fn choice<'a>(mut choosers: impl Iterator<Item = &'a Chooser>) -> Choice {
    let first = choosers.next().and_then(Chooser::unfiltered);
    match first {
        Some(temperature) if choosers.all(|it| it.unfiltered() == first) => {
            Choice::Device { temperature }
        }
        _ => Choice::Caller,
    }
}

/// Chooses for each sequence that goes on, by its row of logits.
fn choose(logits: &mut [f32], rows: &mut [Row<'_>]) -> Result<Vec<u32>, GenerateError> {
    let width = logits.len() / rows.len();
    let chosen = logits
        .chunks_mut(width)
        .zip(rows)
        .map(|(logits, row)| match row.going {
            true => row.chooser.choose(logits),
            false => Ok(0),
        });
    chosen.collect()
}

/// A state of that kind and these sizes with those values.
fn filled(layer: LayerState, [conv, ssm]: [Vec<f32>; 2], device: &Device) -> LayerState {
    fn like<const D: usize>(values: Vec<f32>, tensor: &Tensor<D>, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, tensor.dims()), device)
    }
    match layer {
        LayerState::Mamba1(it) => LayerState::Mamba1(Mamba1State {
            conv: like(conv, &it.conv, device),
            ssm: like(ssm, &it.ssm, device),
        }),
        LayerState::Mamba2(it) => LayerState::Mamba2(Mamba2State {
            conv: like(conv, &it.conv, device),
            ssm: like(ssm, &it.ssm, device),
        }),
        other => other,
    }
}

fn device_failed(error: impl Display) -> GenerateError {
    GenerateError::Device(error.to_string())
}
