//! How tokens are chosen, as options of a command.

use anyhow::{Result, ensure};
use clap::Args;
use mamba_core::{Sampler, SamplingConfig};

/// How tokens are chosen.
#[derive(Args, Clone)]
pub struct SamplingArguments {
    /// Divides the logits; 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f32,
    /// Sample among this many most likely tokens.
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Sample among the most likely tokens that together have this probability.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    top_p: f32,
    /// Sample among tokens at least this likely relative to the most likely one.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    min_p: f32,
    /// Sample among the tokens whose surprise is nearest to the expected one, that together have this probability.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    typical_p: f32,
    /// Taken off a token's logit for each time it has occurred.
    #[arg(
        long,
        value_name = "PENALTY",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    frequency_penalty: f32,
    /// Taken off a token's logit once it has occurred.
    #[arg(
        long,
        value_name = "PENALTY",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    presence_penalty: f32,
    /// Above 1, makes tokens that have occurred less likely.
    #[arg(
        long,
        value_name = "PENALTY",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    repetition_penalty: f32,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
}

impl SamplingArguments {
    /// The configuration, checked.
    pub fn config(&self) -> Result<SamplingConfig> {
        let config = SamplingConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        check(&config)?;
        Ok(config)
    }

    /// A sampler of its own for the `number`th text of one prompt: the first one's is that of a text alone.
    pub fn sampler(&self, number: usize) -> Result<Sampler> {
        let mut config = self.config()?;
        config.seed = config.seed.wrapping_add(number as u64);
        Ok(Sampler::new(config)?)
    }
}

/// Refuses what is out of range, and filters that have nothing to choose among.
pub fn check(config: &SamplingConfig) -> Result<()> {
    config.validate()?;
    let filters = [
        ("--top-k", config.top_k.is_some()),
        ("--top-p", config.top_p < 1.0),
        ("--min-p", config.min_p > 0.0),
        ("--typical-p", config.typical_p < 1.0),
    ];
    if let Some((name, _)) = filters.into_iter().find(|(_, given)| *given) {
        ensure!(
            config.temperature > 0.0,
            "a temperature of 0 always takes the most likely token, so that {name} has no effect: leave out one of both"
        );
    }
    Ok(())
}
