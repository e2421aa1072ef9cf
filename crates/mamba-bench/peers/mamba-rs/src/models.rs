//! mamba-rs's language models on the CPU and on a GPU behind one face.

use std::fs;
use std::path::Path;
use std::time::Instant;

#[cfg(not(feature = "cuda"))]
use anyhow::bail;
use anyhow::{Error, Result, ensure};
use mamba_rs::{MambaLM, SampleParams};

/// Of mamba-rs, as it was built in.
pub fn version() -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let package = lock.split_once("name = \"mamba-rs\"\nversion = \"");
    let version = package.and_then(|(_, rest)| rest.split('"').next());
    version.unwrap_or("unknown")
}

/// A loaded model. It reads one sequence at a time.
pub enum Model {
    Host(Box<MambaLM>),
    #[cfg(feature = "cuda")]
    Gpu(Box<mamba_rs::MambaGpuLM>),
}

impl Model {
    /// Loads `config.json` and `model.safetensors` of Hugging Face's layout; also the number of parameters.
    pub fn load(folder: &Path, device: &str, half: bool) -> Result<(Self, u64)> {
        // All tensors are of f32, and what names them is small.
        let parameters = fs::metadata(folder.join("model.safetensors"))?.len() / 4;
        let model = match device.strip_prefix("cuda") {
            None => {
                ensure!(!half, "on a CPU it is compared in f32");
                let mut model = MambaLM::from_hf(folder).map_err(Error::msg)?;
                model.backbone.pack_for_decode();
                Self::Host(Box::new(model))
            }
            Some(index) => on_gpu(folder, index.trim_start_matches(':'), half)?,
        };
        Ok((model, parameters))
    }

    /// Reads a prompt: the logits behind it.
    pub fn read(&mut self, prompt: &[u32]) -> Result<Vec<f32>> {
        self.generate(prompt, 0, |_| {})?;
        Ok(match self {
            Self::Host(model) => model.last_logits(0).to_vec(),
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => model.last_logits(0).to_vec(),
        })
    }

    /// Milliseconds a step of `tokens` steps behind a prompt, greedily chosen; one before them does not count.
    pub fn decode(&mut self, prompt: &[u32], tokens: usize) -> Result<f64> {
        let mut times = Vec::with_capacity(tokens + 2);
        // A token comes before the step that reads it.
        self.generate(prompt, tokens + 2, |_| times.push(Instant::now()))?;
        ensure!(times.len() == tokens + 2, "it ended before it was asked to");
        let taken = times[tokens + 1].duration_since(times[1]);
        Ok(taken.as_secs_f64() * 1e3 / tokens as f64)
    }

    fn generate(&mut self, prompt: &[u32], tokens: usize, mut each: impl FnMut(u32)) -> Result<()> {
        let greedy = SampleParams {
            temperature: 0.0,
            max_tokens: tokens,
            ..SampleParams::default()
        };
        match self {
            Self::Host(model) => {
                model.generate_streaming(prompt, &greedy, |token, _| each(token));
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => model
                .generate_streaming(prompt, &greedy, |token, _| each(token))
                .map_err(Error::msg),
        }
    }
}

/// The likeliest token.
pub fn likeliest(logits: &[f32]) -> usize {
    let place = logits.iter().enumerate();
    let place = place.max_by(|a, b| a.1.total_cmp(b.1));
    std::hint::black_box(place.map_or(0, |(index, _)| index))
}

#[cfg(feature = "cuda")]
fn on_gpu(folder: &Path, index: &str, half: bool) -> Result<Model> {
    use mamba_rs::{GpuOptions, MambaGpuLM, WeightDtype};

    let dtype = match half {
        true => WeightDtype::Bf16,
        // Like our linear layers without a rounding to TF32.
        false => WeightDtype::F32,
    };
    let device = if index.is_empty() { 0 } else { index.parse()? };
    let options = GpuOptions::default().device(device).dtype(dtype);
    let mut model = MambaGpuLM::from_hf(folder, 1, options).map_err(Error::msg)?;
    model.capture_graph().map_err(Error::msg)?;
    Ok(Model::Gpu(Box::new(model)))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &Path, _: &str, _: bool) -> Result<Model> {
    bail!("it was built without its feature cuda")
}
