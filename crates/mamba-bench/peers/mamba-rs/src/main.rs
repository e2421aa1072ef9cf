//! mamba-rs's Mamba-1 and Mamba-2 beside mamba-lab's: one JSON request a line on standard input, one JSON object a line
//! back. Started by mamba-bench with a device, `cpu` or `cuda:0`, and then given a folder with its own model in Hugging
//! Face's layout, so that both sides compute the same function. What goes wrong comes back as `{"error": ..}`.

mod models;

use std::collections::HashMap;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use models::Model;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let device = std::env::args().nth(1).unwrap_or_else(|| "cpu".into());
    let mut peer = Peer {
        device,
        models: HashMap::new(),
        rows: Vec::new(),
    };
    for line in stdin().lock().lines() {
        let answer = match peer.answer(&line?) {
            Ok(answer) => answer,
            Err(error) => json!({"error": format!("{error:#}")}),
        };
        let mut out = stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// What was loaded, and the tokens to run on.
struct Peer {
    device: String,
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
                ensure!(!asked("training"), "it is compared in inference alone");
                let folder = Path::new(text("folder")?);
                let (model, parameters) = Model::load(folder, &self.device, asked("half"))?;
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
                let (model, rows) = self.model(text("model")?)?;
                let mut logits = Vec::new();
                for row in rows {
                    logits.extend(model.read(row)?);
                }
                Ok(json!({"values": logits}))
            }
            "prefill" => {
                let calls = number("calls")?;
                let (model, rows) = self.model(text("model")?)?;
                let mut times = Vec::with_capacity(calls);
                for _ in 0..calls {
                    let start = Instant::now();
                    for row in rows {
                        models::likeliest(&model.read(row)?);
                    }
                    times.push(start.elapsed().as_secs_f64() * 1e3);
                }
                Ok(json!({"ms": times}))
            }
            "decode" => {
                let tokens = number("tokens")?;
                let (model, rows) = self.model(text("model")?)?;
                let [row] = rows else {
                    bail!("it is compared with one sequence at a time");
                };
                Ok(json!({"ms": [model.decode(row, tokens)?]}))
            }
            "forward" => bail!("its language models give no hidden states without logits"),
            "train" => bail!("it is compared in inference alone"),
            other => bail!("unknown request {other}"),
        }
    }

    fn model(&mut self, name: &str) -> Result<(&mut Model, &[Vec<u32>])> {
        let model = self.models.get_mut(name);
        let model = model.with_context(|| format!("no model {name} is loaded"))?;
        Ok((model, &self.rows))
    }
}
