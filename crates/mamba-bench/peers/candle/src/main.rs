//! candle's Mamba-1 and Mamba-2 beside mamba-lab's: one JSON request a line on standard input, one JSON object a line
//! back. Started by mamba-bench, which gives a folder with its own model in Hugging Face's layout, so that both sides
//! compute the same function. What goes wrong comes back as `{"error": ..}`.

#[path = "../../lines.rs"]
mod lines;
mod models;

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use lines::Request;
use models::{Model, State};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut peer = Peer::default();
    // The chain of candle's own errors ends in a backtrace: its first link tells enough.
    lines::serve(|request| peer.answer(request).map_err(|error| anyhow!("{error}")))
}

/// What was loaded, and the tokens to run on.
#[derive(Default)]
struct Peer {
    models: HashMap<String, Model>,
    rows: Vec<Vec<u32>>,
}

impl Peer {
    fn answer(&mut self, request: &Request) -> Result<Value> {
        match request.text("request")? {
            "hello" => Ok(json!({"version": models::version()})),
            "load" => {
                ensure!(
                    !request.asks("half"),
                    "on a CPU candle's Mamba runs in f32 here"
                );
                ensure!(
                    !request.asks("training"),
                    "candle's Mamba is for inference alone"
                );
                let model = Model::load(Path::new(request.text("folder")?))?;
                let parameters = model.parameters();
                self.models.insert(request.text("model")?.into(), model);
                Ok(json!({"parameters": parameters}))
            }
            "forget" => {
                self.models.remove(request.text("model")?);
                Ok(json!({}))
            }
            "tokens" => {
                self.rows = request.rows()?;
                Ok(json!({}))
            }
            "logits" => {
                let (logits, _) = self.model(request.text("model")?)?.read(&self.rows)?;
                Ok(json!({"values": logits.flatten_all()?.to_vec1::<f32>()?}))
            }
            "prefill" => {
                let model = self.model(request.text("model")?)?;
                let times: Result<Vec<f64>> = (0..request.number("calls")?)
                    .map(|_| {
                        let start = Instant::now();
                        let (logits, _) = model.read(&self.rows)?;
                        models::likeliest(&logits)?;
                        Ok(start.elapsed().as_secs_f64() * 1e3)
                    })
                    .collect();
                Ok(json!({"ms": times?}))
            }
            "decode" => {
                let model = self.model(request.text("model")?)?;
                let ms = decode(model, &self.rows, request.number("tokens")?)?;
                Ok(json!({"ms": [ms]}))
            }
            "forward" => bail!("candle's Mamba gives no hidden states without logits"),
            "train" => bail!("candle's Mamba is for inference alone"),
            other => bail!("unknown request {other}"),
        }
    }

    fn model(&self, name: &str) -> Result<&Model> {
        let model = self.models.get(name);
        model.with_context(|| format!("no model {name} is loaded"))
    }
}

/// Milliseconds a step of `tokens` steps behind the prompts, greedily chosen; one before them does not count.
fn decode(model: &Model, rows: &[Vec<u32>], tokens: usize) -> Result<f64> {
    let (logits, mut state) = model.read(rows)?;
    let mut last = models::likeliest(&logits)?;
    let mut step = |state: &mut State| -> Result<()> {
        last = models::likeliest(&model.step(&last, state)?)?;
        Ok(())
    };
    step(&mut state)?;
    let start = Instant::now();
    for _ in 0..tokens {
        step(&mut state)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / tokens as f64)
}
