//! Times whole models that read a prompt in one pass and then a token at a time, on the runtime built in.
//!
//! ```text
//! cargo run --release -p mamba-kernels --features oracle,cuda-cpp --example time_decode
//! ```
//!
//! `-- --help` tells the options.

#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use cubecl::ir::FloatKind;
use mamba_kernels::decode::{Choice, Decoder};
use support::decode::{Case, Heads, Kind, Numbers};
use timing::{sampled_ms, spread};

/// Lengths of the prompts of one sequence.
const PROMPTS: [usize; 4] = [128, 1024, 4096, 65_536];

/// Sequences, layers, width, vocabulary: the official models of 130 million parameters with one sequence and with some.
const SHAPES: [([usize; 4], ()); 4] = [
    ([1, 24, 768, 50_280], ()),
    ([4, 24, 768, 50_280], ()),
    ([8, 24, 768, 50_280], ()),
    ([64, 24, 768, 50_280], ()),
];

const USAGE: &str = "\
Times a model of Mamba-1 or Mamba-2 layers: prompts of one sequence, from the tokens to the next one; steps of some sequences, replayed one
behind the other, and with each token read as it comes.

  --dtype f32|bf16|f16           of the matrices; bf16 without it
  --mixer mamba1|mamba2          of the layers; mamba1 without it
  --runtime default|cuda|wgpu    one of those built in
  --shape BxLAYERSxD_MODELxVOCAB sequences, layers, width, vocabulary; 130 million parameters without it";

fn main() {
    let mut dtype = FloatKind::BF16;
    let mut kinds: &[Kind] = &[Kind::Mamba1];
    let (device, shapes) = timing::arguments(USAGE, &SHAPES, |flag, value| {
        match (flag, value) {
            ("--dtype", "f32") => dtype = FloatKind::F32,
            ("--dtype", "bf16") => dtype = FloatKind::BF16,
            ("--dtype", "f16") => dtype = FloatKind::F16,
            ("--dtype", _) => return Err(format!("--dtype {value}: expected f32, bf16 or f16")),
            ("--mixer", "mamba1") => kinds = &[Kind::Mamba1],
            ("--mixer", "mamba2") => kinds = &[Kind::Mamba2],
            ("--mixer", _) => return Err(format!("--mixer {value}: expected mamba1 or mamba2")),
            _ => return Ok(false),
        }
        Ok(true)
    });
    let client = device.client();
    println!(
        "{}, {kinds:?}, matrices in {dtype:?}; ms a step: median [fastest, slowest]",
        client.name()
    );
    for ([batch, layers, d_model, vocab_size], ()) in shapes {
        let numbers = Numbers::new(Case {
            batch,
            layers,
            d_model,
            d_inner: 2 * d_model,
            d_state: 16,
            dt_rank: d_model.div_ceil(16),
            width: 4,
            vocab_size,
            padding: 0,
            biases: false,
            projection_biases: false,
            head: false,
            dtype,
            kinds,
            heads: Heads::OFFICIAL,
        });
        let greedy = Choice::Device { temperature: 0.0 };
        let mut decoder = numbers.decoder(&client, greedy).expect("it fits");
        if batch == 1 {
            for seq_len in PROMPTS {
                let tokens: Vec<u32> = (0..seq_len).map(|t| (t * 31 % vocab_size) as u32).collect();
                let ms = sampled_ms(&client, || {
                    decoder.forget();
                    decoder
                        .read(&[&tokens], seq_len)
                        .expect("the kernels cover it");
                    decoder.tokens().wait().expect("the device answers");
                });
                println!(
                    "prompt of {seq_len}: {} = {:.0} tokens/s",
                    spread(ms),
                    seq_len as f64 * 1e3 / ms[1]
                );
            }
        }
        let steps = sampled_ms(&client, || decoder.step().expect("it launches"));
        let streamed = sampled_ms(&client, || read_and_step(&mut decoder));
        let speed = |ms: f64| batch as f64 * 1e3 / ms;
        println!(
            "{batch} x {layers} layers of {d_model}: {} = {:.0} tokens/s; each token read: {} = {:.0} tokens/s",
            spread(steps),
            speed(steps[1]),
            spread(streamed),
            speed(streamed[1]),
        );
    }
}

/// The copy of a token is under way while the next step runs.
fn read_and_step(decoder: &mut Decoder) {
    let tokens = decoder.tokens();
    decoder.step().expect("it launches");
    tokens.wait().expect("the device answers");
}
