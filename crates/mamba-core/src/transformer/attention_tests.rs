use super::*;
use burn::tensor::{Distribution, Tolerance};

const TOLERANCE: f32 = 2e-5;

/// Every feature that changes the data path, on sizes that tell the axes apart.
fn configs() -> Vec<AttentionConfig> {
    let base = AttentionConfig::new(24, 6).with_head_dim(Some(10));
    vec![
        base.clone().with_qkv_bias(true).with_out_bias(true),
        base.clone().with_rotary_dim(10),
        base.clone().with_rotary_dim(4).with_num_kv_heads(Some(2)),
        base.with_rotary_dim(6)
            .with_rotary_interleaved(true)
            .with_num_kv_heads(Some(1)),
    ]
}

/// Weights large enough that the softmax is far from uniform.
fn attention_from(config: &AttentionConfig, device: &Device) -> Attention {
    let mut module = config.init(device);
    module.in_proj.weight = module.in_proj.weight.map(|weight| {
        let shape = weight.shape();
        Tensor::random(shape, Distribution::Normal(0.0, 0.5), &weight.device())
            .set_require_grad(weight.is_require_grad())
    });
    if let Some(bias) = module.in_proj.bias.take() {
        module.in_proj.bias = Some(bias.map(|bias| {
            Tensor::random(bias.shape(), Distribution::Normal(0.0, 0.5), &bias.device())
                .set_require_grad(bias.is_require_grad())
        }));
    }
    module
}

fn input<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn assert_close<const D: usize>(actual: Tensor<D>, expected: Tensor<D>) {
    actual
        .to_data()
        .assert_approx_eq::<f32>(&expected.to_data(), Tolerance::absolute(TOLERANCE));
}

/// The formula, token by token in f64, for heads without rotary positions.
fn attend_by_hand(module: &Attention, x: &Tensor<3>) -> Vec<f32> {
    let [batch, seq_len, _] = x.dims();
    let (heads, kv_heads, dim) = (module.num_heads, module.num_kv_heads, module.head_dim);
    let qkv = module
        .in_proj
        .forward(x.clone())
        .to_data()
        .try_to_vec::<f32>()
        .unwrap();
    let at = |b: usize, t: usize, head: usize, i: usize| {
        f64::from(qkv[((b * seq_len + t) * (heads + 2 * kv_heads) + head) * dim + i])
    };

    let mut context = Vec::new();
    for (b, t, h) in
        (0..batch).flat_map(|b| (0..seq_len).flat_map(move |t| (0..heads).map(move |h| (b, t, h))))
    {
        let g = h / (heads / kv_heads);
        let weights: Vec<f64> = (0..=t)
            .map(|past| {
                let score: f64 = (0..dim)
                    .map(|i| at(b, t, h, i) * at(b, past, heads + g, i))
                    .sum();
                (score / (dim as f64).sqrt()).exp()
            })
            .collect();
        let total: f64 = weights.iter().sum();
        context.extend((0..dim).map(|i| {
            let sum: f64 = weights
                .iter()
                .enumerate()
                .map(|(past, weight)| weight * at(b, past, heads + kv_heads + g, i))
                .sum();
            (sum / total) as f32
        }));
    }
    context
}

#[test]
fn forward_matches_the_formula() {
    let device = Device::flex();
    for num_kv_heads in [6, 2, 1] {
        let config = AttentionConfig::new(24, 6).with_num_kv_heads(Some(num_kv_heads));
        let module = attention_from(&config, &device);
        // The last one is several blocks of queries long.
        for seq_len in [1, 17, 300] {
            let x = input([2, seq_len, 24], &device);
            let context = attend_by_hand(&module, &x);
            let context =
                Tensor::<1>::from_floats(context.as_slice(), &device).reshape([2, seq_len, 24]);
            assert_close(
                module.forward_sequence(x, None),
                module.out_proj.forward(context),
            );
        }
    }
}

#[test]
fn step_by_step_equals_forward() {
    let device = Device::flex();
    for config in configs() {
        let module = attention_from(&config, &device);
        // Past the smallest buffer, so that it grows on the way.
        let x = input([2, 70, 24], &device);
        let expected = module.forward_sequence(x.clone(), None);

        let mut cache = module.empty_cache(2, &device);
        let mut steps = Vec::new();
        for t in 0..70 {
            let (y, next) = module.step(x.clone().narrow(1, t, 1).squeeze_dim(1), cache);
            steps.push(y);
            cache = next;
        }
        assert_eq!(cache.len(), 70);
        assert_close(Tensor::stack(steps, 1), expected);
    }
}

#[test]
fn split_sequences_equal_whole_ones() {
    let device = Device::flex();
    for config in configs() {
        let module = attention_from(&config, &device);
        let x = input([2, 306, 24], &device);
        let expected = module.forward_sequence(x.clone(), None);

        let mut cache = None;
        let mut parts = Vec::new();
        for (start, len) in [(0, 5), (5, 1), (6, 140), (146, 160)] {
            let (y, next) = module.forward(x.clone().narrow(1, start, len), cache);
            parts.push(y);
            cache = Some(next);
        }
        assert_close(Tensor::cat(parts, 1), expected);
    }
}

#[test]
fn packed_sequences_equal_separate_ones() {
    let device = Device::flex();
    for (config, lengths) in configs()
        .into_iter()
        .flat_map(|config| [[4, 1, 7], [150, 1, 149]].map(|lengths| (config.clone(), lengths)))
    {
        let seq_len = lengths.iter().sum();
        let module = attention_from(&config, &device);
        let x = input([2, seq_len, 24], &device);
        // The first value comes back: another sequence, not the same one.
        let row: Vec<i32> = [9, 3, 9]
            .into_iter()
            .zip(lengths)
            .flat_map(|(id, n)| vec![id; n])
            .collect();
        let seq_idx = Tensor::<1, Int>::from_ints(row.as_slice(), &device).unsqueeze::<2>();

        let separate = lengths
            .iter()
            .scan(0, |start, &len| {
                let part = x.clone().narrow(1, *start, len);
                *start += len;
                Some(module.forward_sequence(part, None))
            })
            .collect();
        let packed = module.forward_sequence(x, Some(seq_idx.expand([2, seq_len])));
        assert_close(packed, Tensor::cat(separate, 1));
    }
}

#[test]
fn a_later_token_never_changes_earlier_outputs() {
    let device = Device::flex();
    for config in configs() {
        let module = attention_from(&config, &device);
        let x = input([1, 9, 24], &device);
        let changed = Tensor::cat(
            vec![x.clone().narrow(1, 0, 6), input([1, 3, 24], &device)],
            1,
        );

        let before = module.forward_sequence(x, None);
        let after = module.forward_sequence(changed, None);
        before
            .clone()
            .narrow(1, 0, 6)
            .to_data()
            .assert_eq(&after.clone().narrow(1, 0, 6).to_data(), true);
        let moved = (before - after)
            .narrow(1, 6, 3)
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(
            moved > 1e-3,
            "the changed tokens' own outputs must move, moved by {moved}"
        );
    }
}

#[test]
fn grouped_queries_equal_repeated_heads() {
    let device = Device::flex();
    let grouped = attention_from(
        &AttentionConfig::new(24, 6)
            .with_num_kv_heads(Some(2))
            .with_rotary_dim(4),
        &device,
    );
    let mut full = AttentionConfig::new(24, 6).with_rotary_dim(4).init(&device);
    full.out_proj = grouped.out_proj.clone();
    full.in_proj.weight = full.in_proj.weight.map(|_| {
        let weight = grouped.in_proj.weight.val();
        let repeat = |first_head: usize| {
            weight
                .clone()
                .narrow(1, first_head * 4, 2 * 4)
                .reshape([24, 2, 1, 4])
                .expand([24, 2, 3, 4])
                .reshape([24, 24])
        };
        Tensor::cat(
            vec![weight.clone().narrow(1, 0, 24), repeat(6), repeat(8)],
            1,
        )
    });

    let x = input([2, 11, 24], &device);
    assert_close(
        grouped.forward_sequence(x.clone(), None),
        full.forward_sequence(x, None),
    );
}

#[test]
fn training_path_equals_inference_path_and_finite_differences() {
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    let config = AttentionConfig::new(24, 6)
        .with_num_kv_heads(Some(2))
        .with_rotary_dim(4)
        .with_qkv_bias(true);
    let module = attention_from(&config, &device);
    let x = input([2, 7, 24], &plain);
    let target = input([2, 7, 24], &plain);
    let seq_idx = Tensor::<2, Int>::from_ints([[0, 0, 0, 1, 1, 1, 1], [5; 7]], &plain);
    let inference = module.valid();

    for seq_idx in [None, Some(seq_idx)] {
        let tracked = Tensor::<3>::from_inner(x.clone()).require_grad();
        let y = module.forward_sequence(tracked.clone(), seq_idx.clone().map(Tensor::from_inner));
        assert_close(
            y.clone().inner(),
            inference.forward_sequence(x.clone(), seq_idx.clone()),
        );

        let grads = (y * Tensor::from_inner(target.clone())).sum().backward();
        assert!(module.out_proj.weight.grad(&grads).is_some());
        let weight_grad = module.in_proj.weight.grad(&grads).unwrap();
        let input_grad = tracked.grad(&grads).unwrap();

        let loss = |module: &Attention, x: Tensor<3>| {
            let y = module.forward_sequence(x, seq_idx.clone());
            (y * target.clone()).sum().into_scalar::<f32>()
        };
        let h = 1e-2;
        let check = |name: &str, plus: f32, minus: f32, grad: f32| {
            let difference = (plus - minus) / (2.0 * h);
            let bound = 2e-3 + 2e-2 * grad.abs();
            assert!(
                (difference - grad).abs() < bound,
                "{name}: finite difference {difference}, gradient {grad}"
            );
        };

        for [b, t, c] in [[0, 0, 3], [0, 2, 20], [0, 3, 0], [1, 5, 11], [1, 6, 23]] {
            let at = s![b..b + 1, t..t + 1, c..c + 1];
            let moved = |by: f32| x.clone().slice_assign(at, x.clone().slice(at) + by);
            let grad = input_grad.clone().slice(at).into_scalar::<f32>();
            let (plus, minus) = (loss(&inference, moved(h)), loss(&inference, moved(-h)));
            check("x", plus, minus, grad);
        }
        // One column of the queries, the keys and the values each.
        for [row, column] in [[0, 1], [7, 25], [23, 39]] {
            let at = s![row..row + 1, column..column + 1];
            let moved = |by: f32| {
                let mut module = inference.clone();
                module.in_proj.weight = module
                    .in_proj
                    .weight
                    .map(|weight| weight.clone().slice_assign(at, weight.slice(at) + by));
                loss(&module, x.clone())
            };
            let grad = weight_grad.clone().slice(at).into_scalar::<f32>();
            check("in_proj", moved(h), moved(-h), grad);
        }
    }
}

#[test]
fn gradients_flow_through_a_cache() {
    let device = Device::flex().autodiff();
    let module = attention_from(&configs()[1], &device);
    let x = input([2, 9, 24], &device);

    let grad_of = |split: bool| {
        let x = x.clone().detach().require_grad();
        let last = if split {
            let (_, cache) = module.forward(x.clone().narrow(1, 0, 6), None);
            module.forward(x.clone().narrow(1, 6, 3), Some(cache)).0
        } else {
            module.forward_sequence(x.clone(), None).narrow(1, 6, 3)
        };
        let grads = last.square().sum().backward();
        x.grad(&grads).unwrap()
    };
    assert_close(grad_of(true), grad_of(false));
}

#[test]
fn display_shows_the_sizes() {
    let module = AttentionConfig::new(24, 6)
        .with_num_kv_heads(Some(2))
        .init(&Device::flex());
    assert_eq!(
        format!("{module}"),
        "Attention {d_model: 24, num_heads: 6, num_kv_heads: 2, head_dim: 4, rotary_dim: 0, params: 1536}"
    );
}

#[test]
#[should_panic(expected = "num_kv_heads must divide num_heads 6, got 4")]
fn uneven_groups_are_refused() {
    AttentionConfig::new(24, 6)
        .with_num_kv_heads(Some(4))
        .init(&Device::flex());
}
