//! Language models of mamba-core, on any device.

use std::cell::Cell;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Int, Tensor, s};
use mamba_core::{
    LanguageModel, LanguageModelState, MixerKind, Precision, Prepared, Request, Sampler,
    SamplingConfig,
};

use crate::problems::Model;

/// Prompts of more tokens in all are read in parts, so that they take the memory of a part and of what the model remembers.
pub const LONG: usize = 1 << 16;

/// Tokens of a part, of all sequences together: enough to keep any device busy.
const PART: usize = 1 << 14;

/// A model with random weights.
pub struct Subject {
    /// What it is.
    pub problem: Model,
    /// The module.
    pub model: LanguageModel,
    device: Device,
}

impl Subject {
    /// Initialises the model; the same weights each time.
    pub fn new(problem: &Model, precision: Precision, device: &Device) -> Self {
        device.seed(1);
        let model = problem.config.init(device).with_precision(precision);
        // Burn makes a parameter when it is first used, which would count as the work of what uses it.
        model.visit(&mut Made);
        Self {
            problem: problem.clone(),
            model,
            device: device.clone(),
        }
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tokens for it, `[batch, length]`.
    pub fn tokens(&self, batch: usize, length: usize) -> Tensor<2, Int> {
        self.problem.tokens(batch, length, &self.device)
    }

    /// Hidden states of whole sequences, `[batch, length, d_model]`, finished.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(&self, tokens: &Tensor<2, Int>) -> Result<Tensor<3>> {
        let hidden = self.model.hidden(tokens.clone(), None);
        self.device
            .sync()
            .context("the device did not finish a forward pass")?;
        Ok(hidden)
    }

    /// Reads prompts, `[batch, length]`, up to the token that follows each, on the host; [`LONG`] ones in parts.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn prefill(&self, prompts: &Tensor<2, Int>) -> Result<(Vec<i64>, LanguageModelState)> {
        let [batch, length] = prompts.dims();
        let part = match batch * length > LONG {
            true => (PART / batch).max(1),
            false => length,
        };
        let mut state = self.model.initial_state(batch, &self.device);
        let mut start = 0;
        while start + part < length {
            let tokens = prompts.clone().slice(s![.., start..start + part]);
            (_, state) = self.model.forward(tokens, state);
            start += part;
        }
        let (logits, state) = self
            .model
            .prefill(prompts.clone().slice(s![.., start..]), state);
        let first = greedy(logits);
        self.device
            .sync()
            .context("the device did not finish a prompt")?;
        Ok((first, state))
    }

    /// Whether all that it remembers is of a fixed size.
    fn is_recurrent(&self) -> bool {
        let mut mixers = self.problem.config.pattern.iter();
        mixers.all(|it| matches!(it, MixerKind::Mamba1 | MixerKind::Mamba2))
    }

    /// Reads prompts, to be continued: on a GPU by [`LanguageModel::generate_all`], which has kernels for recurrences there that
    /// choose tokens, too; several sequences of a transformer, and all on a CPU, by [`LanguageModel::step`].
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn decoding(&self, batch: usize, length: usize, on_cpu: bool) -> Result<Decoding<'_>> {
        let (first, state) = self.prefill(&self.tokens(batch, length))?;
        Ok(Decoding {
            subject: self,
            length,
            first,
            state,
            by_steps: on_cpu || batch > 1 && !self.is_recurrent(),
            prepared: self.model.prepare(&self.device),
            first_token_ms: Cell::new(None),
        })
    }
}

/// Prompts that were read.
pub struct Decoding<'a> {
    subject: &'a Subject,
    length: usize,
    first: Vec<i64>,
    state: LanguageModelState,
    by_steps: bool,
    prepared: Prepared<'a>,
    first_token_ms: Cell<Option<f64>>,
}

impl Decoding<'_> {
    /// What the model remembers of the prompts, in bytes.
    pub fn state_bytes(&self) -> usize {
        self.state.num_bytes()
    }

    /// Milliseconds from asking for the last continuation to its first token on the host, the prompts read in between; none where
    /// continuations go on from prompts that were read before.
    pub fn first_token_ms(&self) -> Option<f64> {
        self.first_token_ms.get()
    }

    /// Milliseconds a step of `tokens` steps, each of which brings every sequence its next token to the host. A first step
    /// does not count, in which a key-value cache grows.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn continue_for(&self, tokens: usize) -> Result<f64> {
        ensure!(tokens > 0, "at least one token must be generated");
        match self.by_steps {
            true => self.step(tokens),
            false => self.generate(tokens),
        }
    }

    fn generate(&self, tokens: usize) -> Result<f64> {
        let problem = &self.subject.problem;
        let batch = self.first.len();
        let ids = problem.token_values(batch, self.length);
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let config = SamplingConfig {
            temperature: 0.0,
            ..SamplingConfig::default()
        };
        let requests = ids.chunks(self.length).map(|prompt| {
            let sampler = Sampler::new(config.clone())?;
            Ok(Request::new(prompt, sampler))
        });
        let start = Instant::now();
        let mut generations = self
            .prepared
            .generate_all(requests.collect::<Result<_>>()?)?;
        let mut next = || {
            generations
                .next()
                .context("generation does not end")?
                .context("no token came")
        };
        // The token behind the prompt, and the step that does not count.
        next()?;
        self.first_token_ms
            .set(Some(start.elapsed().as_secs_f64() * 1e3));
        next()?;
        let start = Instant::now();
        for _ in 0..tokens {
            next()?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e3 / tokens as f64)
    }

    fn step(&self, tokens: usize) -> Result<f64> {
        let Subject { model, device, .. } = self.subject;
        let mut last = self.first.clone();
        // Taken, not cloned, from step to step: a cache that is shared cannot be written in place.
        let mut state = Some(self.state.clone());
        let mut step = || {
            let before = state.take().context("the step before failed")?;
            let ids: Vec<i32> = last.iter().map(|&id| id as i32).collect();
            let ids = Tensor::<1, Int>::from_data(ids.as_slice(), device);
            let (logits, after) = model.step(ids, before);
            (last, state) = (greedy(logits), Some(after));
            device.sync().context("the device did not finish a step")
        };
        step()?;
        let start = Instant::now();
        for _ in 0..tokens {
            step()?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e3 / tokens as f64)
    }
}

/// Uses every parameter.
struct Made;

impl ModuleVisitor for Made {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        drop(param.val());
    }
}

/// The likeliest tokens, on the host. `logits`: `[batch, vocab_size]`
fn greedy(logits: Tensor<2>) -> Vec<i64> {
    logits.argmax(1).into_data().iter::<i64>().collect()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::problems::{Family, Size};

    #[test]
    fn a_long_prompt_leaves_what_its_parts_leave() {
        let device = Device::flex();
        let problem = Model::new(Family::Mamba2, Size::Tiny, 96);
        let subject = Subject::new(&problem, Precision::F32, &device);
        let prompts = subject.tokens(1, LONG + 3);
        let (token, state) = subject.prefill(&prompts).unwrap();
        let empty = subject.model.initial_state(1, &device);
        let (logits, whole) = subject.model.prefill(prompts, empty);
        assert_eq!(token, greedy(logits));
        assert_eq!(state.position, whole.position);
        assert_eq!(state.num_bytes(), whole.num_bytes());
    }
}
