//! Several sequences at once, saved states and given texts, each against what is done one token of one sequence at a time.
#![recursion_limit = "256"]

use std::fs;

use burn::module::Param;
use burn::tensor::{Device, Int, Tensor, TensorData};
use mamba_core::transformer::AttentionConfig;
use mamba_core::{
    GenerateError, Generations, LanguageModel, LanguageModelConfig, Mamba2Config, Mixer, MixerKind,
    Request, Sampler, SamplingConfig, Snapshot, SnapshotError,
};
use mamba_tests::devices::{self, device};
use mamba_tests::tensors::values;
use tempfile::TempDir;

const VOCABULARY: usize = 301;

fn config(pattern: &[MixerKind]) -> LanguageModelConfig {
    LanguageModelConfig::new()
        .with_vocab_size(VOCABULARY)
        .with_d_model(32)
        .with_n_layer(2)
        .with_pattern(pattern.to_vec())
        .with_mamba2(Mamba2Config::new(0).with_headdim(16).with_d_state(24))
        .with_attention(AttentionConfig::new(0, 4).with_rotary_dim(8))
}

/// Both families, alone and with an MLP, a hybrid with attention, and an MLP that reads what the mixer before it reads.
fn configs() -> [LanguageModelConfig; 5] {
    use MixerKind::{Attention, Mamba1, Mamba2, Mlp};
    [
        config(&[Mamba1]),
        config(&[Mamba2]),
        config(&[Mamba2, Mlp, Mamba1]),
        config(&[Mamba1, Attention, Mlp]),
        config(&[Mamba1, Mlp]).with_parallel_residual(true),
    ]
}

/// Embeddings so large that tokens tell each other apart, and MLPs whose inputs show in what they add.
fn model(config: &LanguageModelConfig, seed: u64, device: &Device) -> LanguageModel {
    let mut model = devices::seeded(seed, device, |device| config.init(device));
    model.embedding = model.embedding.map(|table| table * 25.0);
    let grown = |weight: &Param<Tensor<2>>, factor: f64| weight.clone().map(|it| it * factor);
    for layer in &mut model.layers {
        match &mut layer.mixer {
            Mixer::Mlp(mlp) => mlp.fc_out.weight = grown(&mlp.fc_out.weight, 100.0),
            // What the layer beside it must not read.
            Mixer::Mamba1(mixer) if config.parallel_residual => {
                mixer.out_proj.weight = grown(&mixer.out_proj.weight, 20.0);
            }
            _ => {}
        }
    }
    model
}

fn greedy() -> SamplingConfig {
    SamplingConfig {
        temperature: 0.0,
        ..Default::default()
    }
}

/// Every filter and penalty at work.
fn seeded(seed: u64) -> SamplingConfig {
    SamplingConfig {
        temperature: 0.9,
        top_k: Some(40),
        top_p: 0.95,
        repetition_penalty: 1.2,
        frequency_penalty: 0.1,
        seed,
        ..Default::default()
    }
}

/// Nothing but a temperature, so that a device may choose.
fn plain(seed: u64) -> SamplingConfig {
    SamplingConfig {
        temperature: 0.9,
        seed,
        ..Default::default()
    }
}

fn request(prompt: &[u32], config: SamplingConfig) -> Request {
    Request::new(prompt, Sampler::new(config).unwrap())
}

fn text(len: usize) -> Vec<u32> {
    (0..len)
        .map(|t| ((t * t * 7 + t * 31 + 5) % VOCABULARY) as u32)
        .collect()
}

fn alone(model: &LanguageModel, request: Request, tokens: usize, device: &Device) -> Vec<u32> {
    let generator = model.generate_from(request, device).unwrap();
    generator.take(tokens).map(Result::unwrap).collect()
}

/// The tokens of each sequence.
fn together(model: &LanguageModel, requests: Vec<Request>, device: &Device) -> Vec<Vec<u32>> {
    collected(model.generate_all(requests, device).unwrap())
}

fn collected(generations: Generations) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new(); generations.len()];
    for step in generations {
        for (tokens, generated) in all.iter_mut().zip(step.unwrap()) {
            tokens.extend(generated.map(|it| it.token));
        }
    }
    all
}

#[test]
fn sequences_at_once_get_the_tokens_of_each_alone() {
    let device = device();
    let all = text(100);
    // Of one length and many, some far apart, two alike; and all alike.
    let many = [
        &all[..1],
        &all[3..12],
        &all[5..12],
        &all[10..94],
        &all[20..29],
        &all[..7],
    ];
    let alike = [&all[..9], &all[3..12], &all[20..29]];
    for config in configs() {
        let model = model(&config, 7, &device);
        for (prompts, sampling) in [
            (&many[..], greedy()),
            (&many[..], seeded(0)),
            (&many[..], plain(0)),
            (&alike[..], plain(0)),
            (&alike[..], seeded(0)),
        ] {
            let requests = prompts.iter().enumerate().map(|(index, prompt)| {
                let mut sampling = sampling.clone();
                sampling.seed = index as u64;
                // They end one after the other.
                request(prompt, sampling).with_max_tokens(10 - index)
            });
            let requests: Vec<Request> = requests.collect();
            let want: Vec<Vec<u32>> = requests
                .iter()
                .map(|it| alone(&model, it.clone(), 100, &device))
                .collect();
            for (index, tokens) in want.iter().enumerate() {
                assert_eq!(tokens.len(), 10 - index);
            }
            assert_eq!(
                together(&model, requests, &device),
                want,
                "{:?}",
                config.pattern
            );
        }
    }
}

/// What decodes is kept from one generation to the next, whatever the one before left in it.
#[test]
fn a_prepared_model_generates_as_a_new_one_does() {
    let device = device();
    let all = text(60);
    for config in configs() {
        let model = model(&config, 9, &device);
        let prepared = model.prepare(&device);
        for (turn, batch) in [1, 1, 2, 1, 2, 2].into_iter().enumerate() {
            let sampling = if turn == 3 { seeded(4) } else { plain(4) };
            let requests: Vec<Request> = (0..batch)
                .map(|index| request(&all[index..turn + 3 * index + 5], sampling.clone()))
                .map(|it| it.with_max_tokens(4))
                .collect();
            let want = together(&model, requests.clone(), &device);
            let got = collected(prepared.generate_all(requests.clone()).unwrap());
            assert_eq!(got, want, "{:?}, turn {turn}", config.pattern);
            // One that is given up after a token, and one sequence alone.
            let mut abandoned = prepared.generate_all(requests.clone()).unwrap();
            abandoned.next().unwrap().unwrap();
            drop(abandoned);
            let one = prepared.generate_from(requests[0].clone()).unwrap();
            let one: Vec<u32> = one.map(Result::unwrap).collect();
            assert_eq!(one, alone(&model, requests[0].clone(), 9, &device));
        }
    }
}

/// Finer than the tokens, which a small error need not change.
#[test]
fn prompts_at_once_leave_the_log_probabilities_of_each_alone() {
    let device = device();
    let all = text(100);
    let prompts = [&all[3..12], &all[5..12], &all[10..94], &all[20..31]];
    for config in configs() {
        let model = model(&config, 7, &device);
        let requests = prompts.map(|it| request(it, greedy()).with_logprobs(4));
        let mut generations = model.generate_all(requests.to_vec(), &device).unwrap();
        let step = generations.next().unwrap().unwrap();
        for (prompt, generated) in prompts.iter().zip(step) {
            let want = logprobs(&model, prompt, &device).pop().unwrap();
            for (token, got) in generated.unwrap().logprobs.unwrap().top {
                let want = want[token as usize];
                let pattern = &config.pattern;
                assert!((got - want).abs() < 1e-3, "{pattern:?}: {got} for {want}");
            }
        }
    }
}

#[test]
fn sequences_end_by_stop_tokens_and_on_demand() {
    let device = device();
    let model = model(&configs()[0], 7, &device);
    let prompts = [text(4), text(9)];
    let requests: Vec<Request> = prompts.iter().map(|it| request(it, greedy())).collect();
    let want: Vec<Vec<u32>> = requests
        .iter()
        .map(|it| alone(&model, it.clone(), 8, &device))
        .collect();
    let stop = want[0][3];
    let end = want[0].iter().position(|token| *token == stop).unwrap();
    let stopped = requests[0].clone().with_stop_tokens([stop]);
    assert_eq!(alone(&model, stopped.clone(), 8, &device), want[0][..=end]);

    let mut generations = model
        .generate_all(vec![stopped, requests[1].clone()], &device)
        .unwrap();
    let mut second = Vec::new();
    for count in 0.. {
        let Some(step) = generations.next() else {
            break;
        };
        let step = step.unwrap();
        assert_eq!(step[0].is_some(), count <= end, "step {count}");
        second.extend(step[1].as_ref().map(|it| it.token));
        if second.len() == 7 {
            generations.end(1);
        }
    }
    assert_eq!(second, want[1][..7]);
    assert!(
        model
            .generate_all(vec![], &device)
            .unwrap()
            .next()
            .is_none()
    );
    let none = requests[0].clone().with_max_tokens(0);
    assert_eq!(together(&model, vec![none], &device), [Vec::<u32>::new()]);
}

/// Against the logits of one pass over the whole text.
#[test]
fn log_probabilities_are_those_of_the_logits() {
    let device = device();
    let model = model(&configs()[2], 7, &device);
    let prompt = text(6);
    let mut generator = model
        .generate_from(request(&prompt, seeded(3)).with_logprobs(4), &device)
        .unwrap();
    let mut history = prompt.clone();
    let mut told = Vec::new();
    for _ in 0..5 {
        history.push(generator.next().unwrap().unwrap());
        told.push(generator.logprobs().unwrap().clone());
    }
    let again = model.generate_all(
        vec![
            request(&prompt, seeded(3))
                .with_logprobs(4)
                .with_max_tokens(5),
        ],
        &device,
    );
    let rows = logprobs(&model, &history, &device);
    for (index, (told, step)) in told.iter().zip(again.unwrap()).enumerate() {
        let at = prompt.len() + index;
        let row = &rows[at - 1];
        assert!((told.token - row[history[at] as usize]).abs() < 1e-3);
        let mut order: Vec<u32> = (0..VOCABULARY as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        let top: Vec<u32> = told.top.iter().map(|it| it.0).collect();
        assert_eq!(top, order[..4]);
        for (token, logprob) in &told.top {
            assert!((logprob - row[*token as usize]).abs() < 1e-3);
        }
        let step = step.unwrap().remove(0).unwrap();
        assert_eq!(step.token, history[at]);
        assert!((step.logprobs.unwrap().token - told.token).abs() < 1e-3);
    }
}

/// Of what follows each position.
fn logprobs(model: &LanguageModel, tokens: &[u32], device: &Device) -> Vec<Vec<f32>> {
    let ids = tokens.iter().map(|token| *token as i32).collect();
    let ids = TensorData::new::<i32, _>(ids, [1, tokens.len()]);
    let ids = Tensor::<2, Int>::from_data(ids, device);
    let logits = values(model.logits(model.hidden(ids, None)));
    let rows = logits.chunks(VOCABULARY).map(|row| {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|it| f64::from(it - most).exp()).sum();
        let normaliser = f64::from(most) + sum.ln();
        row.iter()
            .map(|it| (f64::from(*it) - normaliser) as f32)
            .collect()
    });
    rows.collect()
}

#[test]
fn a_score_is_the_sum_of_the_forward_pass() {
    let device = device();
    for config in configs() {
        let model = model(&config, 7, &device);
        // Past one part of a long text.
        let tokens = text(1100);
        let rows = logprobs(&model, &tokens, &device);
        let want: Vec<f32> = (1..tokens.len())
            .map(|t| rows[t - 1][tokens[t] as usize])
            .collect();
        let got = model.score_tokens(&tokens, None, &device).unwrap();
        assert_eq!(got.logprobs.len(), want.len());
        for (t, (got, want)) in got.logprobs.iter().zip(&want).enumerate() {
            assert!(
                (got - want).abs() < 2e-3 * want.abs().max(1.0),
                "{got} for {want} at {t}"
            );
        }
        let sum: f64 = want.iter().map(|it| f64::from(*it)).sum();
        assert!(
            (got.sum() - sum).abs() < 1e-4 * sum.abs(),
            "{} for {sum}",
            got.sum()
        );

        // The same in two parts, of which the second continues the first.
        let mut first = model
            .generate_from(request(&tokens[..40], greedy()), &device)
            .unwrap();
        let after = first.snapshot().unwrap();
        let rest = model
            .score_tokens(&tokens[40..60], Some(&after), &device)
            .unwrap();
        for (got, want) in rest.logprobs.iter().zip(&want[39..59]) {
            assert!(
                (got - want).abs() < 2e-3 * want.abs().max(1.0),
                "{got} for {want}"
            );
        }
        assert_eq!(rest.logprobs.len(), 20);

        let items: [(&[u32], &[u32]); 3] = [
            (&tokens[..9], &tokens[9..12]),
            (&tokens[..30], &tokens[30..31]),
            (&tokens[..2], &[]),
        ];
        let judged = model.score_continuations(&items, &device).unwrap();
        for ((context, continuation), judged) in items.iter().zip(&judged) {
            let first = context.len();
            let want = &want[first - 1..][..continuation.len()];
            assert_eq!(judged.score.logprobs.len(), want.len());
            for (got, want) in judged.score.logprobs.iter().zip(want) {
                assert!(
                    (got - want).abs() < 2e-3 * want.abs().max(1.0),
                    "{got} for {want}"
                );
            }
        }
        let likely = alone(&model, request(&tokens[..9], greedy()), 3, &device);
        let mut unlikely = likely.clone();
        unlikely[2] = (unlikely[2] + 1) % VOCABULARY as u32;
        let items: [(&[u32], &[u32]); 2] = [(&tokens[..9], &likely), (&tokens[..9], &unlikely)];
        let judged = model.score_continuations(&items, &device).unwrap();
        assert_eq!([judged[0].greedy, judged[1].greedy], [true, false]);
    }
}

#[test]
fn a_saved_state_continues_as_if_nothing_had_been() {
    let device = device();
    let folder = TempDir::new().unwrap();
    let prompt = text(11);
    let line = text(30)[20..].to_vec();
    for (number, config) in configs().into_iter().enumerate() {
        let model = model(&config, 7, &device);
        let whole = alone(&model, request(&prompt, greedy()), 12, &device);
        let mut generator = model
            .generate_from(request(&prompt, greedy()), &device)
            .unwrap();
        let path = folder.path().join(format!("{number}.safetensors"));
        // Before the first token, and behind some.
        for begun in [0, 5] {
            while generator.position() < prompt.len() + begun {
                generator.next().unwrap().unwrap();
            }
            let snapshot = generator.snapshot().unwrap();
            assert_eq!(snapshot.state.position, prompt.len() + begun);
            snapshot.save(&model, &path).unwrap();
            let restored = || Snapshot::load(&path, &model, &device).unwrap();
            assert_eq!(restored().state.position, prompt.len() + begun);

            // Saying nothing goes on with what was to come, and so does the generator itself.
            let got = alone(&model, request(&[], greedy()).after(restored()), 7, &device);
            assert_eq!(got, whole[begun..begun + 7], "{:?}", config.pattern);

            // A line more, of several tokens at once, is as if all had been one prompt.
            let all = [&prompt[..], &whole[..begun], &line].concat();
            let want = alone(&model, request(&all, greedy()), 6, &device);
            let got = alone(
                &model,
                request(&line, greedy()).after(restored()),
                6,
                &device,
            );
            assert_eq!(got, want, "{:?}", config.pattern);

            // Whether kept in memory or in a file, alone or among others.
            let seeded = request(&line, seeded(9)).with_max_tokens(6);
            let kept = seeded.clone().after(snapshot);
            let read = seeded.clone().after(restored());
            let want = alone(&model, kept.clone(), 6, &device);
            assert_eq!(alone(&model, read.clone(), 6, &device), want);
            let other = request(&prompt, greedy()).with_max_tokens(3);
            let got = together(&model, vec![read, other, kept], &device);
            assert_eq!(got, [want.clone(), whole[..3].to_vec(), want]);
        }
        let rest: Vec<u32> = generator.take(7).map(Result::unwrap).collect();
        assert_eq!(rest, whole[5..], "a snapshot changes nothing");
    }
}

#[test]
fn a_state_of_a_mamba_has_one_size() {
    let device = device();
    let folder = TempDir::new().unwrap();
    let model = model(&configs()[2], 7, &device);
    let size = |len: usize| {
        let path = folder.path().join(format!("{len}"));
        let mut generator = model
            .generate_from(request(&text(len), greedy()), &device)
            .unwrap();
        generator.snapshot().unwrap().save(&model, &path).unwrap();
        let header = fs::read(&path).unwrap()[..8].try_into().unwrap();
        fs::metadata(path).unwrap().len() - u64::from_le_bytes(header)
    };
    assert_eq!(size(2), size(150));
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        2,
        "nothing else is left"
    );
}

#[test]
fn a_state_that_is_no_state_of_the_model_is_refused() {
    let device = device();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state");
    for config in [&configs()[0], &configs()[3]] {
        let owner = model(config, 7, &device);
        let mut generator = owner
            .generate_from(request(&text(9), greedy()), &device)
            .unwrap();
        generator.snapshot().unwrap().save(&owner, &path).unwrap();
        let good = fs::read(&path).unwrap();

        let other = model(config, 8, &device);
        let error = Snapshot::load(&path, &other, &device).unwrap_err();
        assert!(
            matches!(error, SnapshotError::AnotherModel { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("another model"), "{error}");

        let refused = |bytes: &[u8], what: &str| {
            fs::write(&path, bytes).unwrap();
            let error = Snapshot::load(&path, &owner, &device).unwrap_err();
            let told = error.to_string();
            assert!(told.contains(&path.display().to_string()), "{what}: {told}");
            assert!(!matches!(error, SnapshotError::Device(_)), "{what}: {told}");
        };
        for len in [0, 7, 8, 100, good.len() / 2, good.len() - 1] {
            refused(&good[..len], &format!("cut to {len}"));
        }
        refused(&[&good[..], &[0; 4]].concat(), "too long");
        for at in [0, 9, good.len() - 1, good.len() / 2] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            refused(&bytes, &format!("a bit of byte {at}"));
        }
        // A header that claims everything.
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        refused(&bytes, "an endless header");
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let replaced = |from: &str, to: &str| {
            let text = std::str::from_utf8(&good[8..header]).unwrap();
            assert!(text.contains(from), "{text}");
            let text = text.replace(from, to);
            let len = (text.len() as u64).to_le_bytes();
            [&len, text.as_bytes(), &good[header..]].concat()
        };
        refused(
            &replaced("\"tokens\":\"9\"", "\"tokens\":\"18446744073709551615\""),
            "tokens",
        );
        refused(&replaced("\"tokens\":\"9\"", "\"tokens\":\"-1\""), "tokens");
        refused(&replaced("layers.0.conv", "layers.0.cove"), "a name");
        refused(&replaced("F32", "I32"), "a type");
        refused(
            &replaced("mamba-lab state 1", "mamba-lab state 9"),
            "a format",
        );
    }
    let missing = folder.path().join("none");
    let owner = model(&configs()[0], 7, &device);
    let error = Snapshot::load(&missing, &owner, &device).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn a_model_that_diverged_is_an_error_for_every_caller() {
    let device = device();
    let mut model = model(&configs()[0], 7, &device);
    model.norm.gamma = model.norm.gamma.map(|gamma| gamma * f32::NAN);
    let requests = vec![request(&text(3), greedy()), request(&text(5), greedy())];
    let mut generations = model.generate_all(requests, &device).unwrap();
    let error = generations.next().unwrap().unwrap_err();
    assert!(error.to_string().contains("diverged"), "{error}");
    assert!(generations.next().is_none(), "an error is the last item");
    let error = model.score_tokens(&text(5), None, &device).unwrap_err();
    assert!(
        matches!(error, GenerateError::NotFinite { position: 1, .. }),
        "{error}"
    );
    let items: [(&[u32], &[u32]); 1] = [(&[1, 2], &[3])];
    let error = model.score_continuations(&items, &device).unwrap_err();
    assert!(error.to_string().contains("diverged"), "{error}");
}

#[test]
fn bad_requests_are_refused() {
    let device = device();
    let model = model(&configs()[0], 7, &device);
    let past = [1, VOCABULARY as u32];
    let requests = vec![request(&[1], greedy()), request(&past, greedy())];
    let error = model.generate_all(requests, &device).err().unwrap();
    assert!(
        matches!(error, GenerateError::UnknownToken { .. }),
        "{error}"
    );
    let error = model
        .generate_all(vec![request(&[], greedy())], &device)
        .err()
        .unwrap();
    assert!(matches!(error, GenerateError::EmptyPrompt), "{error}");
    let error = model.score_tokens(&past, None, &device).unwrap_err();
    assert!(
        matches!(error, GenerateError::UnknownToken { .. }),
        "{error}"
    );
    assert!(model.score_tokens(&[], None, &device).is_err());
    assert!(model.score_continuations(&[(&[], &[1])], &device).is_err());
}
