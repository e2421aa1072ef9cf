//! mamba-rs's Mamba-1 and Mamba-2 beside mamba-lab's: one JSON request a line on standard input, one JSON object a line
//! back. Started by mamba-bench with a device, `cpu` or `cuda:0`, and then given a folder with its own model in Hugging
//! Face's layout, so that both sides compute the same function. What goes wrong comes back as `{"error": ..}`.

#[path = "../../lines.rs"]
mod lines;
mod models;

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use lines::Request;
use models::Model;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let device = std::env::args().nth(1).unwrap_or_else(|| "cpu".into());
    let mut peer = Peer {
        device,
        models: HashMap::new(),
        rows: Vec::new(),
    };
    lines::serve(|request| peer.answer(request))
}

/// What was loaded, and the tokens to run on.
struct Peer {
    device: String,
    models: HashMap<String, Model>,
    rows: Vec<Vec<u32>>,
}

impl Peer {
    fn answer(&mut self, request: &Request) -> Result<Value> {
        match request.text("request")? {
            "hello" => Ok(json!({"version": models::version()})),
            "load" => {
                ensure!(
                    !request.asks("training"),
                    "it is compared in inference alone"
                );
                let folder = Path::new(request.text("folder")?);
                let (model, parameters) = Model::load(folder, &self.device, request.asks("half"))?;
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
                let (model, rows) = self.model(request.text("model")?)?;
                let mut logits = Vec::new();
                for row in rows {
                    logits.extend(model.read(row)?);
                }
                Ok(json!({"values": logits}))
            }
            "prefill" => {
                let calls = request.number("calls")?;
                let (model, rows) = self.model(request.text("model")?)?;
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
                let tokens = request.number("tokens")?;
                let (model, rows) = self.model(request.text("model")?)?;
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
