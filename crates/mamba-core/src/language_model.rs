//! The language model around the mixers.

mod config;
mod validate;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, assert_shape, s};

use crate::block::Block;
use crate::norm::Norm;
use crate::ops::{LinearCrossEntropy, Strategy, embed, linear, linear_cross_entropy, token_losses};
use crate::precision::Precision;
use crate::state::LanguageModelState;

pub use config::LanguageModelConfig;

/// A language model over any mixers: embedding, [`Block`]s, norm, head.
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// `[padded vocabulary, d_model]`
    pub embedding: Param<Tensor<2>>,
    /// Learned positions, `[max_positions, d_model]`.
    pub positions: Option<Param<Tensor<2>>>,
    /// First layer first.
    pub layers: Vec<Block>,
    /// Applied before the head.
    pub norm: Norm,
    /// `[padded vocabulary, d_model]`; the embedding where there is none.
    pub head: Option<Param<Tensor<2>>>,
    vocab_size: usize,
    /// How many layers read the same input.
    stage: usize,
}

impl LanguageModel {
    /// The same parameters, computing in `precision`. Nothing of it is saved with the parameters.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        let output = precision.dtype();
        for layer in &mut self.layers {
            layer.norm = layer.norm.clone().with_output(output);
        }
        self.norm = self.norm.with_output(output);
        self
    }

    /// Entries of the vocabulary, padding left out.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The longest sequence, where learned positions bound it.
    pub fn max_positions(&self) -> Option<usize> {
        self.positions.as_ref().map(|table| table.dims()[0])
    }

    /// Hidden states of whole sequences, after the final norm. `seq_idx` separates packed
    /// sequences.
    ///
    /// # Shapes
    ///
    /// - tokens, seq_idx: `[batch, seq_len]`
    /// - output: `[batch, seq_len, d_model]`
    ///
    /// # Panics
    ///
    /// If there are learned positions and the sequence is longer than they are.
    pub fn hidden(&self, tokens: Tensor<2, Int>, seq_idx: Option<Tensor<2, Int>>) -> Tensor<3> {
        if let Some(seq_idx) = &seq_idx {
            let [batch, seq_len] = tokens.dims();
            assert_shape!(seq_idx, [batch, seq_len]);
            assert!(
                self.positions.is_none(),
                "LanguageModel: learned positions do not restart within a packed sequence; \
                 use rotary positions (max_positions = 0, attention.rotary_dim > 0)"
            );
        }
        let mut x = self.embed(tokens, 0);
        for stage in self.stages() {
            for (layer, input) in stage.iter().zip(inputs(stage, &x)) {
                x = layer.mix_sequence(input, x, seq_idx.clone());
            }
        }
        self.norm.forward(x)
    }

    /// Mean cross-entropy of the targets in nats; a negative target is not counted.
    ///
    /// # Shapes
    ///
    /// - inputs, targets: `[batch, seq_len]`
    /// - loss: `[1]`
    ///
    /// # Panics
    ///
    /// If the shapes differ, or as [`LanguageModel::hidden`].
    pub fn loss(&self, inputs: Tensor<2, Int>, targets: Tensor<2, Int>) -> Tensor<1> {
        let [batch, seq_len] = inputs.dims();
        assert_shape!(targets, [batch, seq_len]);
        linear_cross_entropy(self.head_and(self.hidden(inputs, None), targets))
    }

    /// [`LanguageModel::loss`] over packed sequences; leave the first token of each run out of
    /// `targets` by making the target before it negative.
    ///
    /// # Shapes
    ///
    /// - inputs, targets, seq_idx: `[batch, seq_len]`
    /// - loss: `[1]`
    pub fn packed_loss(
        &self,
        inputs: Tensor<2, Int>,
        targets: Tensor<2, Int>,
        seq_idx: Tensor<2, Int>,
    ) -> Tensor<1> {
        linear_cross_entropy(self.head_and(self.hidden(inputs, Some(seq_idx)), targets))
    }

    /// Negative log-likelihood of each target in nats, without a backward pass, continuing from
    /// `state`.
    ///
    /// # Shapes
    ///
    /// - inputs, targets: `[batch, seq_len]`
    /// - losses: `[batch, seq_len]`, and the state after the last position
    pub fn score(
        &self,
        inputs: Tensor<2, Int>,
        targets: Tensor<2, Int>,
        state: LanguageModelState,
    ) -> (Tensor<2>, LanguageModelState) {
        let [batch, seq_len] = inputs.dims();
        assert_shape!(targets, [batch, seq_len]);
        let (hidden, state) = self.forward(inputs, state);
        let losses = token_losses(self.head_and(hidden, targets));
        (losses.reshape([batch, seq_len]), state)
    }

    /// Hidden states of the next tokens of sequences whose earlier ones are in `state`.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, seq_len]`
    /// - output: `[batch, seq_len, d_model]`, and the state after the last position
    ///
    /// # Panics
    ///
    /// If there are learned positions and the sequence grows longer than they are.
    pub fn forward(
        &self,
        tokens: Tensor<2, Int>,
        state: LanguageModelState,
    ) -> (Tensor<3>, LanguageModelState) {
        let [_, seq_len] = tokens.dims();
        let mut x = self.embed(tokens, state.position);
        let mut layers = Vec::with_capacity(self.layers.len());
        let mut states = state.layers.into_iter();
        for stage in self.stages() {
            for ((layer, input), state) in stage.iter().zip(inputs(stage, &x)).zip(&mut states) {
                let (output, state) = layer.mix(input, x, state);
                x = output;
                layers.push(state);
            }
        }
        let state = LanguageModelState {
            layers,
            position: state.position + seq_len,
        };
        (self.norm.forward(x), state)
    }

    /// Reads a prompt in one pass: the logits of what follows, and the state that continues it.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, seq_len]`
    /// - logits: `[batch, vocab_size]`
    pub fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        state: LanguageModelState,
    ) -> (Tensor<2>, LanguageModelState) {
        let [_, seq_len] = tokens.dims();
        let (hidden, state) = self.forward(tokens, state);
        let last = hidden.slice(s![.., seq_len - 1..seq_len]);
        (self.logits(last).squeeze_dim(1), state)
    }

    /// Reads one token of each sequence: the logits of what follows, and the state after it.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch]`
    /// - logits: `[batch, vocab_size]`
    pub fn step(
        &self,
        tokens: Tensor<1, Int>,
        state: LanguageModelState,
    ) -> (Tensor<2>, LanguageModelState) {
        self.prefill(tokens.unsqueeze_dim(1), state)
    }

    /// Logits over the vocabulary in f32, padding left out.
    ///
    /// # Shapes
    ///
    /// - hidden: `[batch, seq_len, d_model]`, of [`LanguageModel::hidden`]
    /// - output: `[batch, seq_len, vocab_size]`
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let logits = linear(
            hidden.cast(DType::F32),
            self.head_weight().transpose(),
            None,
        );
        logits.slice(s![.., .., ..self.vocab_size])
    }

    /// The state before any token.
    pub fn initial_state(&self, batch: usize, device: &Device) -> LanguageModelState {
        LanguageModelState {
            layers: self
                .layers
                .iter()
                .map(|layer| layer.initial_state(batch, device))
                .collect(),
            position: 0,
        }
    }

    /// The layers in runs that read the same input: see [`inputs`].
    pub(crate) fn stages(&self) -> impl Iterator<Item = &[Block]> {
        self.layers.chunks(self.stage)
    }

    /// Whether layers read what was before the layer above them.
    #[cfg(feature = "cube")]
    pub(crate) fn has_parallel_layers(&self) -> bool {
        self.stage > 1
    }

    fn head_weight(&self) -> Tensor<2> {
        self.head.as_ref().unwrap_or(&self.embedding).val()
    }

    fn head_and(&self, hidden: Tensor<3>, targets: Tensor<2, Int>) -> LinearCrossEntropy {
        let [batch, seq_len, d_model] = hidden.dims();
        LinearCrossEntropy {
            hidden: hidden.reshape([batch * seq_len, d_model]),
            weight: self.head_weight(),
            targets: targets.reshape([batch * seq_len]),
            vocab_size: self.vocab_size,
            strategy: Strategy::Auto,
        }
    }

    /// The f32 residual stream at the first layer, for tokens that begin at `position`.
    pub(crate) fn embed(&self, tokens: Tensor<2, Int>, position: usize) -> Tensor<3> {
        let [_, seq_len] = tokens.dims();
        let x = embed(self.embedding.val(), tokens);
        let x = match &self.positions {
            Some(table) => {
                let [rows, _] = table.dims();
                let end = position + seq_len;
                assert!(
                    end <= rows,
                    "LanguageModel: {end} tokens exceed the {rows} learned positions"
                );
                x + table.val().slice(s![position..end]).unsqueeze_dim(0)
            }
            None => x,
        };
        x.cast(DType::F32)
    }
}

/// What each layer of a stage reads. The norms come first, so that the residual stream has one owner again when the
/// layers write to it.
pub(crate) fn inputs(stage: &[Block], x: &Tensor<3>) -> Vec<Tensor<3>> {
    let inputs = stage.iter().map(|layer| layer.norm.forward(x.clone()));
    inputs.collect()
}
