//! Decoding with a model of Mamba-1 and Mamba-2 layers: one token of few sequences in four or three launches a
//! layer, of many in four to six, recorded once and replayed.
//!
//! ```text
//! x        = embedding[token]
//! of each layer of Mamba-1:
//!   x', z  = in_proj(rms_norm(x));  u = silu(conv_step(x'))
//!   p      = x_proj(u)
//!   y      = scan_step(u, dt_proj(p), B, C) * silu(z)
//!   x      = x + out_proj(y)
//! of each layer of Mamba-2:
//!   z, x', dt = in_proj(rms_norm(x));  u, B, C = silu(conv_step(x'))
//!   y      = ssd_step(u, dt, B, C)
//!   x      = x + out_proj(rms_norm(y * silu(z)))
//! logits   = head(rms_norm(x));  token = choice(logits)
//! ```
//!
//! Sources: Gu and Dao 2023, "Mamba", section 3.4; Dao and Gu 2024, "Transformers are SSMs", section 7. The folder's
//! `README.md` tells who owns what, what it costs and what was measured.

mod choose;
mod graph;
mod layer;
mod model;
mod narrow;
mod pack;
mod product;
mod prompt;
mod rows;
mod scan;
mod ssd_step;
mod team;

use core::fmt;
use core::future::ready;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use cubecl::future::block_on;
use cubecl::prelude::*;
use cubecl::server::{Handle, ServerError};

use crate::KernelError;
pub use layer::{
    GatedNormWeights, LayerState, LayerWeights, Mamba1Weights, Mamba2Weights, MixerWeights,
};
pub use model::Weights;

use choose::NO_TOKEN;
use graph::Recorder;
use model::Model;

/// Most sequences.
pub const MAX_BATCH: usize = 1024;

/// Who chooses the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The caller, who reads the logits and gives a token each step.
    Caller,
    /// The device: by one number in `[0, 1)` a step among the weights `exp(logit / temperature)` in the order
    /// of the vocabulary; the first of the most likely where `temperature` is 0.
    Device {
        /// Not negative.
        temperature: f32,
    },
}

/// What the sequences of a [`Decoder`] begin behind.
#[derive(Clone, Debug)]
pub enum Before {
    /// Nothing.
    Nothing {
        /// Sequences.
        batch: usize,
    },
    /// What has left these states, one a layer.
    States(Vec<LayerState>),
}

/// A model that reads a token of each of its sequences a step.
///
/// It keeps copies of the large matrices in the type that it computes with, and its own states. All its work
/// is on the stream on which it was made, whichever thread calls.
pub struct Decoder {
    client: Client,
    model: Model,
    recorder: Recorder,
    /// Whether the states are those before any token, whatever they hold.
    fresh: bool,
}

/// Tokens on their way from the device.
pub struct Tokens {
    /// Until it is waited for.
    read: Option<Read>,
}

type Read = Pin<Box<dyn Future<Output = Result<Vec<Option<u32>>, ServerError>> + Send>>;

impl Tokens {
    /// Waits for them: one a sequence, absent where no logit was finite or one was not a number.
    ///
    /// # Errors
    ///
    /// If the device failed.
    pub fn wait(mut self) -> Result<Vec<Option<u32>>, ServerError> {
        block_on(self.read.take().expect("waited for once"))
    }
}

impl Drop for Tokens {
    /// A copy that nobody waits for would keep its buffer mapped on wgpu, where the next copy fails then.
    fn drop(&mut self) {
        if let Some(read) = self.read.take() {
            let _ = block_on(read);
        }
    }
}

impl Decoder {
    /// Prepares a model to go on behind `before`, computing with matrices of type `dtype`.
    ///
    /// # Errors
    ///
    /// If a shape is not what the types say, there are more than [`MAX_BATCH`] sequences, or the device lacks
    /// what the kernels need.
    pub fn new(
        client: &Client,
        weights: Weights,
        before: Before,
        dtype: ElemType,
        choice: Choice,
    ) -> Result<Self, KernelError> {
        let mut client = client.clone();
        let fresh = matches!(before, Before::Nothing { .. });
        let model = Model::new(&client, weights, before, dtype, choice)?;
        // SAFETY: it is the stream on which the buffers were made: nothing is reordered.
        unsafe { client.set_stream(model.tokens.stream) };
        Ok(Self {
            client,
            model,
            recorder: Recorder::default(),
            fresh,
        })
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.model.batch()
    }

    /// Whether a step is one replay of recorded launches by now.
    pub fn is_recorded(&self) -> bool {
        self.recorder.is_recorded()
    }

    /// Gives the tokens that the next step reads, one a sequence. Where the device chooses, those that it chose
    /// are given already.
    ///
    /// # Panics
    ///
    /// If there are not as many as sequences.
    pub fn give_tokens(&mut self, tokens: &[u32]) {
        self.write(&self.model.tokens.clone(), u32::as_bytes(tokens));
    }

    /// Gives the numbers by which the next step chooses, one a sequence, in `[0, 1)`.
    ///
    /// # Panics
    ///
    /// If there are not as many as sequences.
    pub fn give_uniform(&mut self, numbers: &[f32]) {
        self.write(&self.model.uniform.clone(), f32::as_bytes(numbers));
    }

    fn write(&self, handle: &Handle, bytes: &[u8]) {
        assert_eq!(
            bytes.len(),
            size_of::<u32>() * self.batch(),
            "one value a sequence"
        );
        self.client
            .write(handle, cubecl::bytes::Bytes::from_bytes_vec(bytes.to_vec()));
    }

    /// Reads a prompt of each sequence and computes the logits of what follows, and where the device chooses the next tokens.
    /// Prompts of one length that stand side by side are read in one pass, of `at_once` tokens at most; a longer prompt in one of
    /// its own. Returns before the device is done.
    ///
    /// # Errors
    ///
    /// If there are not as many prompts as sequences, one is empty, or the kernels do not cover the model's sizes or biases:
    /// nothing was read then. If the device lacks what a kernel needs: what was remembered is lost.
    pub fn read(&mut self, prompts: &[&[u32]], at_once: usize) -> Result<(), KernelError> {
        let Self { model, client, .. } = self;
        model.read(client, prompts, at_once, self.fresh)?;
        self.fresh = false;
        Ok(())
    }

    /// Forgets all tokens.
    pub fn forget(&mut self) {
        self.fresh = true;
    }

    /// Reads the tokens and computes the logits of what follows, and where the device chooses the next tokens.
    /// Returns before the device is done.
    ///
    /// # Errors
    ///
    /// If the device lacks what products of whole matrices need.
    pub fn step(&mut self) -> Result<(), KernelError> {
        let Self {
            client,
            model,
            recorder,
            fresh,
        } = self;
        if std::mem::take(fresh) {
            model.forget(client);
        }
        recorder.run(client, || model.launch(client))
    }

    /// The logits of the last step, `[batch, vocab_size]`.
    ///
    /// # Errors
    ///
    /// If the device failed.
    pub fn logits(&self) -> Result<Vec<f32>, ServerError> {
        let logits = self.model.logits.clone();
        let bytes = self
            .client
            .read_tensor(vec![logits.into_copy_descriptor(size_of::<f32>())])?;
        Ok(f32::from_bytes(&bytes[0]).to_vec())
    }

    /// What is remembered of the tokens that were read, first layer first: the convolution's window and the recurrence's
    /// state, laid out as in [`LayerState`].
    ///
    /// # Errors
    ///
    /// If the device failed.
    pub fn states(&self) -> Result<Vec<[Vec<f32>; 2]>, ServerError> {
        if self.fresh {
            self.model.forget(&self.client);
        }
        let layers = self.model.layers.iter().map(|layer| {
            let tensors = [&layer.window, &layer.state].map(Clone::clone);
            let tensors = tensors.map(|it| it.into_copy_descriptor(size_of::<f32>()));
            let bytes = self.client.read_tensor(tensors.into())?;
            Ok([&bytes[0], &bytes[1]].map(|it| f32::from_bytes(it).to_vec()))
        });
        layers.collect()
    }

    /// The tokens that the device chose in the last step. They are copied before whatever comes next.
    pub fn tokens(&self) -> Tokens {
        let (client, tokens) = (self.client.clone(), self.model.tokens.clone());
        let mut read: Read = Box::pin(async move {
            let bytes = client.read_async(vec![tokens]).await?;
            Ok(u32::from_bytes(&bytes[0])
                .iter()
                .map(|&token| (token != NO_TOKEN).then_some(token))
                .collect())
        });
        // The first poll puts the copy on the stream.
        let poll = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let read = match poll {
            Poll::Ready(tokens) => Box::pin(ready(tokens)),
            Poll::Pending => read,
        };
        Tokens { read: Some(read) }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("batch", &self.batch())
            .field("recorded", &self.is_recorded())
            .finish_non_exhaustive()
    }
}
