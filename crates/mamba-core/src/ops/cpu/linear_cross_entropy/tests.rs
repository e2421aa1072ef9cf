use super::{super::testing::*, *};

struct Case {
    d_model: usize,
    vocab_size: usize,
    hidden: Vec<f32>,
    weight: Vec<f32>,
    targets: Vec<i32>,
}

impl Case {
    /// Every fifth token is ignored; three rows of the weight, all NaN, are past the vocabulary.
    fn new(tokens: usize, d_model: usize, vocab_size: usize) -> Self {
        let mut weight = noise(vocab_size * d_model, 2);
        weight.iter_mut().for_each(|value| *value *= 4.0);
        weight.extend(vec![f32::NAN; 3 * d_model]);
        let targets = (0..tokens)
            .map(|token| {
                if token % 5 == 4 {
                    -100
                } else {
                    (token * 7919 % vocab_size) as i32
                }
            })
            .collect();
        Self {
            d_model,
            vocab_size,
            hidden: noise(tokens * d_model, 1),
            weight,
            targets,
        }
    }

    fn inputs(&self) -> LossInputs<'_, i32> {
        LossInputs {
            hidden: &self.hidden,
            weight: &self.weight,
            targets: &self.targets,
            d_model: self.d_model,
            vocab_size: self.vocab_size,
            ignore_index: Some(-100),
        }
    }

    /// The definition in f64: losses of the tokens, gradients of hidden and weight.
    fn exact(&self) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let Self {
            d_model,
            vocab_size,
            ..
        } = *self;
        let (hidden, weight) = (widen(&self.hidden), widen(&self.weight));
        let counted = self.targets.iter().filter(|&&target| target >= 0).count() as f64;
        let mut losses = Vec::new();
        let mut grad_hidden = vec![0.0; hidden.len()];
        let mut grad_weight = vec![0.0; weight.len()];
        for (token, &target) in self.targets.iter().enumerate() {
            if target < 0 {
                losses.push(0.0);
                continue;
            }
            let h = token * d_model..(token + 1) * d_model;
            let logits: Vec<f64> = (0..vocab_size)
                .map(|class| {
                    let w = &weight[class * d_model..(class + 1) * d_model];
                    hidden[h.clone()].iter().zip(w).map(|(h, w)| h * w).sum()
                })
                .collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
            losses.push(sum.ln() + max - logits[target as usize]);
            for (class, logit) in logits.iter().enumerate() {
                let hit = f64::from(u8::from(class == target as usize));
                let grad = ((logit - max).exp() / sum - hit) / counted;
                for i in 0..d_model {
                    grad_hidden[h.start + i] += grad * weight[class * d_model + i];
                    grad_weight[class * d_model + i] += grad * hidden[h.start + i];
                }
            }
        }
        (losses, grad_hidden, grad_weight)
    }
}

#[test]
fn losses_and_gradients_equal_the_definition() {
    for (tokens, d_model, vocab_size) in [
        (1, 1, 1),
        (4, 3, 70),
        (17, 8, 65),
        (40, 16, 1025),
        (300, 12, 5000),
        (600, 5, 130),
    ] {
        let case = Case::new(tokens, d_model, vocab_size);
        let (losses, hidden, weight) = case.exact();
        let counted = case.targets.iter().filter(|&&target| target >= 0).count() as f64;
        let mean = losses.iter().sum::<f64>() / counted;
        let grads = loss_and_grads(&case.inputs());
        assert_close("token_losses", &token_losses(&case.inputs()), &losses, 2e-6);
        assert_close(
            "loss",
            &[loss(&case.inputs()), grads.loss],
            &[mean, mean],
            1e-6,
        );
        assert_close("hidden", &grads.hidden, &hidden, 1e-5);
        assert_close("weight", &grads.weight, &weight, 1e-5);
    }
}

#[test]
fn large_logits_do_not_overflow() {
    let mut case = Case::new(20, 8, 100);
    case.hidden.iter_mut().for_each(|value| *value *= 1e3);
    let (losses, hidden, _) = case.exact();
    assert_close("token_losses", &token_losses(&case.inputs()), &losses, 2e-6);
    assert_close(
        "hidden",
        &loss_and_grads(&case.inputs()).hidden,
        &hidden,
        1e-4,
    );
}

#[test]
fn without_a_counted_token_all_is_zero() {
    let mut case = Case::new(6, 4, 9);
    case.targets.fill(-100);
    let grads = loss_and_grads(&case.inputs());
    assert_eq!((loss(&case.inputs()), grads.loss), (0.0, 0.0));
    assert!(
        grads
            .hidden
            .iter()
            .chain(&grads.weight)
            .all(|&value| value == 0.0)
    );

    let none = LossInputs {
        hidden: &[],
        targets: &[],
        ..case.inputs()
    };
    assert_eq!(loss(&none), 0.0);
    assert_eq!(loss_and_grads(&none).loss, 0.0);
}

#[test]
#[should_panic(expected = "target 9 of token 2 is not in 0..9")]
fn a_target_past_the_vocabulary_is_an_error() {
    let mut case = Case::new(6, 4, 9);
    case.targets[2] = 9;
    loss(&case.inputs());
}

#[test]
fn repeated_runs_agree_bit_by_bit_for_any_number_of_threads() {
    let case = Case::new(300, 12, 5000);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let grads = pool.install(|| loss_and_grads(&case.inputs()));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        (grads.loss.to_bits(), bits(grads.hidden), bits(grads.weight))
    };
    let once = run(1);
    for threads in [1, 2, 3] {
        assert_eq!(run(threads), once);
    }
}
