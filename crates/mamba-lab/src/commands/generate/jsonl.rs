//! Many prompts: a JSON object a line in, one a line out.

use std::fs::File;
use std::io::{BufRead, BufReader, Write, stdin};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::Device;
use mamba_core::{Generated, Logprobs, Prepared, Request, Sampler, SamplingConfig, Snapshot};
use mamba_train::compiling;
use mamba_train::load::LoadedRun;
use mamba_train::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sampling;
use super::statistics::Statistics;
use super::text::{Finish, Text};

/// A line of the input: the prompt, and what differs from the options of the command.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    #[serde(default)]
    id: Option<Value>,
    tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
}

/// A line of the output.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: &'a Option<Value>,
    prompt: &'a str,
    text: String,
    finish: &'static str,
    prompt_tokens: usize,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenLogprobs>>,
}

/// What the model thought in the place of a token.
#[derive(Serialize)]
struct TokenLogprobs {
    token: u32,
    text: String,
    logprob: f32,
    top: Vec<Likely>,
}

#[derive(Serialize)]
struct Likely {
    token: u32,
    text: String,
    logprob: f32,
}

/// What all lines have in common.
pub struct Common {
    pub sampling: SamplingConfig,
    pub tokens: usize,
    pub stop: Vec<String>,
    pub logprobs: Option<usize>,
    pub after: Option<Snapshot>,
    /// Prompts at once.
    pub at_once: usize,
}

/// A prompt that is being continued.
struct Job {
    line: Line,
    prompt_tokens: usize,
    stop: Vec<String>,
}

/// Answers the lines of `source`, a file or `-`, in their order.
pub fn run(
    run: &LoadedRun,
    source: &Path,
    common: &Common,
    device: &Device,
    statistics: &mut Statistics,
    out: &mut impl Write,
) -> Result<()> {
    let lines: Box<dyn BufRead> = match source.to_str() {
        Some("-") => Box::new(stdin().lock()),
        _ => {
            let file = File::open(source)
                .with_context(|| format!("cannot read the prompts {}", source.display()))?;
            Box::new(BufReader::new(file))
        }
    };
    let prepared = run.model.prepare(device);
    let mut waiting = Vec::new();
    let mut any = false;
    for (number, line) in lines.lines().enumerate() {
        let place = || match source.to_str() {
            Some("-") => format!("line {} of standard input", number + 1),
            _ => format!("line {} of {}", number + 1, source.display()),
        };
        if line.as_ref().is_ok_and(|line| line.trim().is_empty()) {
            continue;
        }
        any = true;
        let line = line.map_err(anyhow::Error::from);
        match line.and_then(|line| prepare(run, &line, common)) {
            Ok(job) => waiting.push(job),
            Err(error) => {
                // What came before it is not lost.
                answer(run, waiting, common, &prepared, statistics, out)?;
                return Err(error.context(place()));
            }
        }
        if waiting.len() == common.at_once {
            answer(
                run,
                std::mem::take(&mut waiting),
                common,
                &prepared,
                statistics,
                out,
            )?;
        }
    }
    ensure!(any, "{} holds no prompts", source.display());
    answer(run, waiting, common, &prepared, statistics, out)
}

fn prepare(run: &LoadedRun, line: &str, common: &Common) -> Result<(Job, Request)> {
    let line: Line = serde_json::from_str(line).map_err(|error| {
        let problem = error.to_string();
        // The line that it counts is always the first.
        let problem = problem.split(" at line ").next().unwrap_or(&problem);
        anyhow!(
            "expected a JSON object with \"prompt\" and what differs from the options: {problem}"
        )
    })?;
    let tokens = super::encode(&run.tokenizer, &line.prompt, common.after.is_some())?;
    let before = common.after.as_ref().map_or(0, |it| it.state.position) + tokens.len();
    let wanted = line.tokens.unwrap_or(common.tokens);
    let most = super::room(run, before, false);
    let defaults = common.sampling.clone();
    let config = SamplingConfig {
        temperature: line.temperature.unwrap_or(defaults.temperature),
        top_k: line.top_k.or(defaults.top_k),
        top_p: line.top_p.unwrap_or(defaults.top_p),
        seed: line.seed.unwrap_or(defaults.seed),
        ..defaults
    };
    sampling::check(&config)?;
    let mut request = Request::new(&tokens, Sampler::new(config)?)
        .with_max_tokens(most.map_or(wanted, |most| most.min(wanted)))
        .with_stop_tokens(run.tokenizer.ends().iter().copied());
    if let Some(top) = common.logprobs {
        request = request.with_logprobs(top);
    }
    if let Some(after) = &common.after {
        request = request.after(after.clone());
    }
    let stop = line.stop.clone().unwrap_or_else(|| common.stop.clone());
    super::check_stop(&stop)?;
    let prompt_tokens = tokens.len();
    Ok((
        Job {
            line,
            prompt_tokens,
            stop,
        },
        request,
    ))
}

fn answer(
    run: &LoadedRun,
    jobs: Vec<(Job, Request)>,
    common: &Common,
    prepared: &Prepared,
    statistics: &mut Statistics,
    out: &mut impl Write,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let (jobs, requests): (Vec<Job>, Vec<Request>) = jobs.into_iter().unzip();
    let stops: Vec<&[String]> = jobs.iter().map(|job| &job.stop[..]).collect();
    let read = jobs.iter().map(|job| job.prompt_tokens).sum();
    let texts = generate(run, requests, &stops, read, prepared, statistics)?;
    for (job, told) in jobs.iter().zip(texts) {
        let answer = Answer {
            id: &job.line.id,
            prompt: &job.line.prompt,
            text: told.text,
            finish: told.finish.name(),
            prompt_tokens: job.prompt_tokens,
            logprobs: match common.logprobs {
                Some(_) => Some(describe(&run.tokenizer, &told.tokens)?),
                None => None,
            },
            tokens: told.tokens.iter().map(|it| it.token).collect(),
        };
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(out.flush()?)
}

/// What became of a request.
pub struct Told {
    pub text: String,
    pub finish: Finish,
    pub tokens: Vec<Generated>,
}

/// Continues all requests at once, each until one of its stop texts.
pub fn generate(
    run: &LoadedRun,
    requests: Vec<Request>,
    stops: &[&[String]],
    prompt_tokens: usize,
    prepared: &Prepared,
    statistics: &mut Statistics,
) -> Result<Vec<Told>> {
    let mut pass = statistics.read(prompt_tokens);
    compiling::show();
    let mut generations = prepared.generate_all(requests)?;
    let mut streams: Vec<Text> = stops
        .iter()
        .map(|stop| Text::new(&run.tokenizer, stop))
        .collect();
    let mut told: Vec<(String, Vec<Generated>)> = vec![Default::default(); streams.len()];
    while let Some(step) = generations.next() {
        compiling::hide();
        let step = step?;
        pass.tokens(step.iter().flatten().count());
        for (index, generated) in step.into_iter().enumerate() {
            let Some(generated) = generated else { continue };
            told[index].0 += &streams[index].push(generated.token)?;
            told[index].1.push(generated);
            if streams[index].ended() {
                generations.end(index);
            }
        }
    }
    compiling::hide();
    let texts = streams.into_iter().zip(told);
    texts
        .map(|(stream, (text, tokens))| {
            let (rest, finish) = stream.finish()?;
            Ok(Told {
                text: text + &rest,
                finish,
                tokens,
            })
        })
        .collect()
}

fn describe(tokenizer: &Tokenizer, tokens: &[Generated]) -> Result<Vec<TokenLogprobs>> {
    let told = tokens.iter().map(|generated| {
        let Some(Logprobs {
            token: logprob,
            top,
        }) = &generated.logprobs
        else {
            return Ok(None);
        };
        let likely = top.iter().map(|(token, logprob)| {
            Ok(Likely {
                token: *token,
                text: tokenizer.decode(&[*token])?,
                logprob: *logprob,
            })
        });
        Ok(Some(TokenLogprobs {
            token: generated.token,
            text: tokenizer.decode(&[generated.token])?,
            logprob: *logprob,
            top: likely.collect::<Result<_>>()?,
        }))
    });
    told.filter_map(Result::transpose).collect()
}
