//! Generation in constant memory. In a process of its own, since the peak is the process's:
//!
//! `cargo test --release -p mamba-tests --test memory -- --ignored --nocapture`
#![recursion_limit = "256"]
#![cfg(target_os = "linux")]

use std::fs;
use std::time::Instant;

use mamba_core::{LanguageModelConfig, MixerKind, Request, Sampler, SamplingConfig};
use mamba_tests::devices::device;

/// The most memory that the process has held, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes << 10
}

/// With penalties and log-probabilities, which look at what came before and at the whole vocabulary.
#[test]
#[ignore = "takes minutes"]
fn a_million_tokens_take_the_memory_of_a_hundred() {
    const TOKENS: usize = 1_000_000;
    mamba_core::memory::keep_freed();
    let device = device();
    device.seed(1);
    let model = LanguageModelConfig::new()
        .with_vocab_size(256)
        .with_d_model(16)
        .with_pattern(vec![MixerKind::Mamba1])
        .init(&device);
    let sampler = Sampler::new(SamplingConfig {
        top_k: Some(50),
        repetition_penalty: 1.1,
        ..Default::default()
    });
    let request = Request::new(&[1, 2, 3], sampler.unwrap()).with_logprobs(3);
    let mut generator = model.generate_from(request, &device).unwrap();
    let start = Instant::now();
    let mut after_100 = 0;
    for count in 1..=TOKENS {
        generator.next().unwrap().unwrap();
        if count == 100 {
            after_100 = peak();
        }
        if count == 100 || count % 250_000 == 0 {
            println!(
                "{count} tokens after {:.0} s: peak {:.2} MiB",
                start.elapsed().as_secs_f64(),
                peak() as f64 / f64::from(1 << 20)
            );
        }
    }
    assert_eq!(generator.position(), 3 + TOKENS);
    let grown = peak() - after_100;
    println!("grown by {} KiB since the first 100", grown >> 10);
    assert!(grown < 1 << 20, "{grown} bytes");
}
