//! The tutorial's model on mamba-core.

use anyhow::{Context, Result};
use burn::module::{Module, Param};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor, TensorData, s};
use mamba_core::{LanguageModel, Mixer};
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::problems::Tutorial;

/// The tutorial's Mamba with its official initialisation.
pub fn tutorial_model(problem: &Tutorial, device: &Device) -> LanguageModel {
    device.seed(1);
    problem.config().init(device)
}

/// Inputs and targets of the tutorial, `[batch, seq_len]` each.
fn tokens(problem: &Tutorial, device: &Device) -> [Tensor<2, Int>; 2] {
    let Tutorial { batch, seq_len, .. } = *problem;
    let sequences = TensorData::new(problem.sequences(), [batch, seq_len + 1]);
    let sequences = Tensor::<2, Int>::from_data(sequences, device);
    [
        sequences.clone().slice(s![.., ..seq_len]),
        sequences.slice(s![.., 1..]),
    ]
}

/// The tutorial's backbone in inference: embedding to final norm, without a tape.
#[derive(Debug)]
pub struct Forward {
    model: LanguageModel,
    inputs: Tensor<2, Int>,
    device: Device,
}

impl Forward {
    /// Takes the weights of `model` to the problem's tokens.
    pub fn new(model: &LanguageModel, problem: &Tutorial, device: &Device) -> Self {
        let device = device.clone().inner();
        let [inputs, _] = tokens(problem, &device);
        Self {
            model: model.clone().valid(),
            inputs,
            device,
        }
    }

    /// Hidden states, `[batch, seq_len, d_model]`, finished.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn run(&self) -> Result<Tensor<3>> {
        let hidden = self.model.hidden(self.inputs.clone(), None);
        self.device
            .sync()
            .context("the device did not finish a forward pass")?;
        Ok(hidden)
    }
}

/// A training step as the tutorial's: forward, cross-entropy, backward, Adam.
pub struct Training {
    model: LanguageModel,
    optimizer: ModuleOptimizer,
    inputs: Tensor<2, Int>,
    targets: Tensor<2, Int>,
    device: Device,
}

impl Training {
    /// Trains `model`, which is on the autodiff device `device`, on the problem's tokens.
    pub fn new(model: LanguageModel, problem: &Tutorial, device: &Device) -> Self {
        Self::on(model, tokens(problem, device), device)
    }

    /// Trains on `[inputs, targets]`, `[batch, seq_len]` each.
    pub fn on(model: LanguageModel, tokens: [Tensor<2, Int>; 2], device: &Device) -> Self {
        let [inputs, targets] = tokens;
        let optimizer = AdamConfig::new().with_epsilon(1e-8).init();
        Self {
            model,
            optimizer,
            inputs,
            targets,
            device: device.clone(),
        }
    }

    /// Takes one step and returns the loss before it, with the trained self.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn step(self) -> Result<(Self, f32)> {
        let Self {
            model,
            mut optimizer,
            inputs,
            targets,
            device,
        } = self;
        let loss = model.loss(inputs.clone(), targets.clone());
        let value = loss.clone().into_scalar();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let model = optimizer.step(Tutorial::LEARNING_RATE, model, gradients);
        device
            .sync()
            .context("the device did not finish a training step")?;
        Ok((
            Self {
                model,
                optimizer,
                inputs,
                targets,
                device,
            },
            value,
        ))
    }
}

/// The tutorial's weights as a safetensors file, matrices as PyTorch has them (`[out, in]`).
///
/// # Errors
///
/// If the model is not one Mamba-1 layer with a head of its own.
pub fn tutorial_weights(model: &LanguageModel) -> Result<Vec<u8>> {
    let [layer] = model.layers.as_slice() else {
        anyhow::bail!("expected one layer, got {}", model.layers.len());
    };
    let Mixer::Mamba1(mixer) = &layer.mixer else {
        anyhow::bail!("expected a Mamba-1 mixer, got {:?}", layer.mixer);
    };
    let head = model
        .head
        .as_ref()
        .context("expected a head of its own, got a tied one")?;
    let dt_bias = mixer
        .dt_proj
        .bias
        .as_ref()
        .context("expected a bias of dt_proj")?;
    let conv_bias = mixer
        .conv_bias
        .as_ref()
        .context("expected a bias of the convolution")?;
    let projection = |weight: &Param<Tensor<2>>| weight.val().transpose().into_data();
    let tensors = [
        ("embedding", model.embedding.val().into_data()),
        ("layer_norm", layer.norm.gamma.val().into_data()),
        ("in_proj", projection(&mixer.in_proj.weight)),
        ("conv_weight", mixer.conv_weight.val().into_data()),
        ("conv_bias", conv_bias.val().into_data()),
        ("x_proj", projection(&mixer.x_proj.weight)),
        ("dt_proj", projection(&mixer.dt_proj.weight)),
        ("dt_bias", dt_bias.val().into_data()),
        ("a_log", mixer.a_log.val().into_data()),
        ("d", mixer.d.val().into_data()),
        ("out_proj", projection(&mixer.out_proj.weight)),
        ("norm", model.norm.gamma.val().into_data()),
        ("head", head.val().into_data()),
    ];
    let mut views = Vec::with_capacity(tensors.len());
    for (name, data) in &tensors {
        let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes())
            .with_context(|| format!("{name} is not f32"))?;
        views.push((*name, view));
    }
    serialize(views, None).context("the weights do not fit a safetensors file")
}
