//! The language model around the mixers.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, assert_shape, s};

use crate::block::{Block, Mixer, MixerKind};
use crate::mamba1::Mamba1Config;
use crate::mamba2::Mamba2Config;
use crate::norm::{Norm, NormConfig, NormKind};
use crate::ops::{LinearCrossEntropy, Strategy, embed, linear, linear_cross_entropy, token_losses};
use crate::precision::Precision;
use crate::state::LanguageModelState;
use crate::transformer::{AttentionConfig, MlpConfig};

/// Configuration to create a [`LanguageModel`] with [`LanguageModelConfig::init`].
///
/// The model has `n_layer` repetitions of `pattern`: `["mamba1"]` is a Mamba, `["attention",
/// "mlp"]` a transformer, and any other list a hybrid.
#[derive(Config, Debug)]
pub struct LanguageModelConfig {
    /// Entries of the vocabulary. Default: 50257
    #[config(default = 50257)]
    pub vocab_size: usize,
    /// The embedding has a multiple of this many rows. Default: 8
    #[config(default = 8)]
    pub pad_vocab_size_multiple: usize,
    /// Width of the residual stream. Default: 128
    #[config(default = 128)]
    pub d_model: usize,
    /// Repetitions of `pattern`. Default: 1
    #[config(default = 1)]
    pub n_layer: usize,
    /// Mixers of one repetition, first one first. Default: `["mamba1"]`
    #[config(default = "vec![MixerKind::Mamba1]")]
    pub pattern: Vec<MixerKind>,
    /// Norm of every layer and of the end. Default: rms_norm
    #[config(default = "NormKind::RmsNorm")]
    pub norm: NormKind,
    /// Added to a mean square or variance before its root. Default: 1e-5
    #[config(default = 1e-5)]
    pub norm_epsilon: f64,
    /// Learned positions, which bound the sequence length; 0 for none. Default: 0
    #[config(default = 0)]
    pub max_positions: usize,
    /// Whether the head is the embedding. Default: true
    #[config(default = true)]
    pub tie_embeddings: bool,
    /// Of the `mamba1` mixers.
    #[config(default = "Mamba1Config::new(0)")]
    pub mamba1: Mamba1Config,
    /// Of the `mamba2` mixers.
    #[config(default = "Mamba2Config::new(0)")]
    pub mamba2: Mamba2Config,
    /// Of the `attention` mixers.
    #[config(default = "AttentionConfig::new(0, 4)")]
    pub attention: AttentionConfig,
    /// Of the `mlp` mixers.
    #[config(default = "MlpConfig::new(0)")]
    pub mlp: MlpConfig,
}

impl Default for LanguageModelConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl LanguageModelConfig {
    /// The official Mamba-130M: 24 layers of width 768, vocabulary of GPT-NeoX.
    pub fn mamba_130m() -> Self {
        Self::new()
            .with_vocab_size(50_280)
            .with_d_model(768)
            .with_n_layer(24)
    }

    /// The official Mamba-2-130M: 24 layers of width 768, vocabulary of GPT-NeoX.
    pub fn mamba2_130m() -> Self {
        Self::mamba_130m()
            .with_pad_vocab_size_multiple(16)
            .with_pattern(vec![MixerKind::Mamba2])
    }

    /// Rows of the embedding: the vocabulary rounded up to a multiple of
    /// `pad_vocab_size_multiple`.
    pub fn padded_vocab_size(&self) -> usize {
        self.vocab_size
            .next_multiple_of(self.pad_vocab_size_multiple.max(1))
    }

    /// What keeps [`LanguageModelConfig::init`] from working, naming the field.
    pub fn validate(&self) -> Result<(), String> {
        let at_least_one = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("n_layer", self.n_layer),
            ("pattern", self.pattern.len()),
            ("attention.num_heads", self.attention.num_heads),
            ("mamba1.expand", self.mamba1.expand),
        ];
        for (field, value) in at_least_one {
            if value == 0 {
                return Err(format!("{field} must be at least 1"));
            }
        }
        let widths = [
            ("mamba1", self.mamba1.d_model),
            ("mamba2", self.mamba2.d_model),
            ("attention", self.attention.d_model),
            ("mlp", self.mlp.d_model),
        ];
        for (field, width) in widths {
            if width != 0 && width != self.d_model {
                return Err(format!(
                    "{field}.d_model must be left out or equal d_model = {}, got {width}",
                    self.d_model
                ));
            }
        }
        if !(1..=256).contains(&self.mamba1.d_state) {
            let d_state = self.mamba1.d_state;
            return Err(format!(
                "mamba1.d_state must be between 1 and 256, got {d_state}"
            ));
        }
        if self.mamba1.d_conv < 2 {
            return Err(format!(
                "mamba1.d_conv must be at least 2, got {}",
                self.mamba1.d_conv
            ));
        }
        if !(0.0 < self.mamba1.dt_min && self.mamba1.dt_min <= self.mamba1.dt_max) {
            return Err("mamba1.dt_min must be above 0 and at most mamba1.dt_max".into());
        }
        if self.pattern.contains(&MixerKind::Mamba2) {
            let mut mamba2 = self.mamba2.clone();
            mamba2.d_model = self.d_model;
            mamba2.validate().map_err(|it| format!("mamba2.{it}"))?;
        }
        if self.norm_epsilon.is_nan() || self.norm_epsilon <= 0.0 {
            return Err(format!(
                "norm_epsilon must be positive, got {}",
                self.norm_epsilon
            ));
        }
        let heads = self.attention.num_heads;
        if self.pattern.contains(&MixerKind::Attention)
            && self.attention.head_dim.is_none()
            && !self.d_model.is_multiple_of(heads)
        {
            return Err(format!(
                "attention.num_heads = {heads} must divide d_model = {}",
                self.d_model
            ));
        }
        Ok(())
    }

    /// Initialises a model: embeddings `N(0, 0.02)`, every branch that writes to the residual
    /// stream scaled by one over the root of their number.
    ///
    /// # Panics
    ///
    /// With the message of [`LanguageModelConfig::validate`], if that returns one.
    pub fn init(&self, device: &Device) -> LanguageModel {
        if let Err(problem) = self.validate() {
            panic!("LanguageModelConfig: {problem}");
        }
        let rows = self.padded_vocab_size();
        let table = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        let norm = NormConfig::new(self.d_model)
            .with_kind(self.norm)
            .with_epsilon(self.norm_epsilon);
        let branches = self.n_layer * self.pattern.len();
        let layers = self
            .pattern
            .iter()
            .cycle()
            .take(branches)
            .map(|kind| Block {
                norm: norm.init(device),
                mixer: self.init_mixer(*kind, branches, device),
            });
        LanguageModel {
            layers: layers.collect(),
            norm: norm.init(device),
            embedding: table.init([rows, self.d_model], device),
            positions: (self.max_positions > 0)
                .then(|| table.init([self.max_positions, self.d_model], device)),
            head: (!self.tie_embeddings).then(|| table.init([rows, self.d_model], device)),
            vocab_size: self.vocab_size,
        }
    }

    fn init_mixer(&self, kind: MixerKind, branches: usize, device: &Device) -> Mixer {
        let factor = (branches as f64).sqrt().recip();
        match kind {
            MixerKind::Mamba1 => {
                let mut config = self.mamba1.clone();
                config.d_model = self.d_model;
                Mixer::Mamba1(config.init(device).rescale_residual(factor))
            }
            MixerKind::Mamba2 => {
                let mut config = self.mamba2.clone();
                config.d_model = self.d_model;
                Mixer::Mamba2(config.init(device).rescale_residual(factor))
            }
            MixerKind::Attention => {
                let mut config = self.attention.clone();
                config.d_model = self.d_model;
                Mixer::Attention(config.init(device).rescale_residual(factor))
            }
            MixerKind::Mlp => {
                let mut config = self.mlp.clone();
                config.d_model = self.d_model;
                Mixer::Mlp(config.init(device).rescale_residual(factor))
            }
        }
    }
}

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
        for layer in &self.layers {
            x = layer.forward_sequence(x, seq_idx.clone());
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
        for (layer, layer_state) in self.layers.iter().zip(state.layers) {
            let (output, layer_state) = layer.forward(x, layer_state);
            x = output;
            layers.push(layer_state);
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
