//! candle's Mamba-1 and Mamba-2 beside mamba-lab's: one JSON request a line on standard input, one JSON object a line
//! back. Started by mamba-bench, which gives a folder with its own model in Hugging Face's layout, so that both sides
//! compute the same function. What goes wrong comes back as `{"error": ..}`.

mod models;

use std::collections::HashMap;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use models::{Model, State};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut peer = Peer::default();
    for line in stdin().lock().lines() {
        let answer = match peer.answer(&line?) {
            Ok(answer) => answer,
            // The chain of candle's own errors ends in a backtrace.
            Err(error) => json!({"error": error.to_string()}),
        };
        let mut out = stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// What was loaded, and the tokens to run on.
#[derive(Default)]
struct Peer {
    models: HashMap<String, Model>,
    rows: Vec<Vec<u32>>,
}

impl Peer {
    fn answer(&mut self, line: &str) -> Result<Value> {
        let request: Value = serde_json::from_str(line)?;
        let text = |field: &str| {
            let text = request[field].as_str();
            text.with_context(|| format!("the request has no {field}"))
        };
        let number = |field: &str| {
            let number = request[field].as_u64();
            let number = number.with_context(|| format!("the request has no {field}"))?;
            Ok::<_, anyhow::Error>(number as usize)
        };
        match text("request")? {
            "hello" => Ok(json!({"version": models::version()})),
            "load" => {
                let asked = |field: &str| request[field].as_bool().unwrap_or(false);
                ensure!(!asked("half"), "on a CPU candle's Mamba runs in f32 here");
                ensure!(!asked("training"), "candle's Mamba is for inference alone");
                let model = Model::load(Path::new(text("folder")?))?;
                let parameters = model.parameters();
                self.models.insert(text("model")?.into(), model);
                Ok(json!({"parameters": parameters}))
            }
            "forget" => {
                self.models.remove(text("model")?);
                Ok(json!({}))
            }
            "tokens" => {
                let batch = number("batch")?;
                let values = request["values"].as_array().context("no values")?;
                let values: Vec<u32> = values
                    .iter()
                    .map(|value| value.as_u64().unwrap_or(0) as u32)
                    .collect();
                ensure!(batch > 0 && !values.is_empty(), "no tokens were given");
                let length = values.len() / batch;
                self.rows = values.chunks(length).map(<[u32]>::to_vec).collect();
                Ok(json!({"shape": [batch, length]}))
            }
            "logits" => {
                let (logits, _) = self.model(text("model")?)?.read(&self.rows)?;
                Ok(json!({"values": logits.flatten_all()?.to_vec1::<f32>()?}))
            }
            "prefill" => {
                let model = self.model(text("model")?)?;
                let times: Result<Vec<f64>> = (0..number("calls")?)
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
                let model = self.model(text("model")?)?;
                let ms = decode(model, &self.rows, number("tokens")?)?;
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
