//! Both of candle's models behind one face.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{mamba, mamba2};
use serde_json::Value;

/// Of candle-transformers, as it was built in.
pub fn version() -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let package = lock.split_once("name = \"candle-transformers\"\nversion = \"");
    let version = package.and_then(|(_, rest)| rest.split('"').next());
    version.unwrap_or("unknown")
}

/// A loaded model.
pub struct Model {
    kind: Kind,
    parameters: usize,
}

enum Kind {
    One(mamba::Model, mamba::Config),
    Two(mamba2::Model, mamba2::Config, Way),
}

/// How candle's Mamba-2 reads a prompt.
#[derive(Clone, Copy, Debug)]
enum Way {
    Steps,
    Chunks(usize),
}

/// What is remembered: candle's Mamba-1 takes one sequence at a time, its Mamba-2 all.
pub enum State {
    One(Vec<mamba::State>),
    Two(mamba2::State),
}

impl Model {
    /// Loads `config.json` and `model.safetensors` of Hugging Face's layout, in f32.
    pub fn load(folder: &Path) -> Result<Self> {
        let config = fs::read_to_string(folder.join("config.json"))?;
        let config: Value = serde_json::from_str(&config)?;
        let size = |name: &str| {
            let size = config[name].as_u64();
            let size = size.with_context(|| format!("config.json has no {name}"))?;
            Ok::<_, anyhow::Error>(size as usize)
        };
        let tensors =
            candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
        let parameters = tensors.values().map(Tensor::elem_count).sum();
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let kind = match config["model_type"].as_str() {
            Some("mamba") => {
                let config = mamba::Config {
                    d_model: size("hidden_size")?,
                    n_layer: size("num_hidden_layers")?,
                    vocab_size: size("vocab_size")?,
                    pad_vocab_size_multiple: 1,
                };
                // The one name in which the layouts differ.
                let rename =
                    |name: &str| name.replace("backbone.embedding.", "backbone.embeddings.");
                let weights = weights.rename_f(rename).pp("backbone");
                Kind::One(mamba::Model::new(&config, weights)?, config)
            }
            Some("mamba2") => {
                let config = mamba2::Config {
                    d_model: size("hidden_size")?,
                    n_layer: size("num_hidden_layers")?,
                    vocab_size: size("vocab_size")?,
                    d_state: size("state_size")?,
                    expand: size("expand")?,
                    headdim: size("head_dim")?,
                    ngroups: size("n_groups")?,
                    pad_vocab_size_multiple: 1,
                };
                let model = mamba2::Model::new(&config, weights.pp("backbone"))?;
                let way = fastest(&model, &config)?;
                eprintln!("prompts are read by {way:?}");
                Kind::Two(model, config, way)
            }
            other => bail!("candle's Mamba is not {other:?}"),
        };
        Ok(Self { kind, parameters })
    }

    /// How many parameters it has.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Reads prompts of one length: the logits behind each, `[batch, vocab_size]`, and what continues them.
    pub fn read(&self, rows: &[Vec<u32>]) -> Result<(Tensor, State)> {
        match &self.kind {
            Kind::One(model, config) => {
                let (mut logits, mut states) = (Vec::new(), Vec::new());
                for row in rows {
                    let mut state = mamba::State::new(1, config, DType::F32, &Device::Cpu)?;
                    let mut last = None;
                    for token in row {
                        last = Some(model.forward(&tokens(&[*token])?, &mut state)?);
                    }
                    logits.push(last.context("an empty prompt")?);
                    states.push(state);
                }
                Ok((Tensor::cat(&logits, 0)?, State::One(states)))
            }
            Kind::Two(model, config, way) => {
                let (logits, state) = read(model, config, rows, *way)?;
                Ok((logits, State::Two(state)))
            }
        }
    }

    /// Reads one token of each sequence: the logits behind it.
    pub fn step(&self, last: &[u32], state: &mut State) -> Result<Tensor> {
        match (&self.kind, state) {
            (Kind::One(model, _), State::One(states)) => {
                let rows = last.iter().zip(states);
                let rows: Result<Vec<Tensor>> = rows
                    .map(|(token, state)| Ok(model.forward(&tokens(&[*token])?, state)?))
                    .collect();
                Ok(Tensor::cat(&rows?, 0)?)
            }
            (Kind::Two(model, ..), State::Two(state)) => Ok(model.forward(&tokens(last)?, state)?),
            _ => bail!("the state is of another model"),
        }
    }
}

/// The likeliest token of each row.
pub fn likeliest(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.argmax(D::Minus1)?.to_vec1()?)
}

fn tokens(values: &[u32]) -> Result<Tensor> {
    Ok(Tensor::new(values, &Device::Cpu)?)
}

fn read(
    model: &mamba2::Model,
    config: &mamba2::Config,
    rows: &[Vec<u32>],
    way: Way,
) -> Result<(Tensor, mamba2::State)> {
    let (batch, length) = (rows.len(), rows[0].len());
    let mut state = mamba2::State::new(batch, config, DType::F32, &Device::Cpu)?;
    let logits = match way {
        Way::Steps => {
            let mut last = None;
            for position in 0..length {
                let step: Vec<u32> = rows.iter().map(|row| row[position]).collect();
                last = Some(model.forward(&tokens(&step)?, &mut state)?);
            }
            last.context("an empty prompt")?
        }
        Way::Chunks(size) => {
            let all = tokens(&rows.concat())?.reshape((batch, length))?;
            let logits = model.forward_prefill(&all, &mut state, size)?;
            logits.narrow(1, length - 1, 1)?.squeeze(1)?
        }
    };
    Ok((logits, state))
}

/// The way in which a prompt of a few tokens is read fastest: candle lets its caller choose.
fn fastest(model: &mamba2::Model, config: &mamba2::Config) -> Result<Way> {
    let prompt = vec![vec![1u32; 128]];
    let ways = [Way::Steps, Way::Chunks(8), Way::Chunks(16), Way::Chunks(64)];
    let mut best = (f64::INFINITY, Way::Steps);
    for way in ways {
        let start = Instant::now();
        read(model, config, &prompt, way)?;
        let seconds = start.elapsed().as_secs_f64();
        if seconds < best.0 {
            best = (seconds, way);
        }
    }
    Ok(best.1)
}
