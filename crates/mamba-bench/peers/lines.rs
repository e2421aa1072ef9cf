//! What peers in Rust have in common: requests as lines of JSON on standard input, an answer a line on standard output.

use std::io::{BufRead, Write, stdin, stdout};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Answers every line. What goes wrong comes back as `{"error": ..}`.
pub fn serve(mut answer: impl FnMut(&Request) -> Result<Value>) -> Result<()> {
    for line in stdin().lock().lines() {
        let request = serde_json::from_str(&line?).context("a line is no request");
        let answer = request.and_then(|request| answer(&Request(request)));
        let answer = answer.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        let mut out = stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// A request's fields.
pub struct Request(Value);

impl Request {
    /// A text, which must be there.
    pub fn text(&self, field: &str) -> Result<&str> {
        let text = self.0[field].as_str();
        text.with_context(|| format!("the request has no {field}"))
    }

    /// A number, which must be there.
    pub fn number(&self, field: &str) -> Result<usize> {
        let number = self.0[field].as_u64();
        let number = number.with_context(|| format!("the request has no {field}"))?;
        Ok(number as usize)
    }

    /// Whether something is asked for.
    pub fn asks(&self, field: &str) -> bool {
        self.0[field].as_bool().unwrap_or(false)
    }

    /// Tokens, row by row.
    pub fn rows(&self) -> Result<Vec<Vec<u32>>> {
        let batch = self.number("batch")?;
        let values = self.0["values"].as_array().context("no values")?;
        let values: Vec<u32> = values
            .iter()
            .map(|value| value.as_u64().unwrap_or(0) as u32)
            .collect();
        ensure!(batch > 0 && !values.is_empty(), "no tokens were given");
        Ok(values
            .chunks(values.len() / batch)
            .map(<[u32]>::to_vec)
            .collect())
    }
}
