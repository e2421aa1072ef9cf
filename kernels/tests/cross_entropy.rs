//! The loss's kernel against the f64 oracle, on the default device of the runtime built in.
#![cfg(all(feature = "oracle", feature = "runtime"))]

mod support;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::*;
use mamba_kernels::KernelError;
use mamba_kernels::cross_entropy::{LogitsGradient, LossInputs, cross_entropy};
use mamba_kernels::oracle::{
    LinearCrossEntropyInputs, linear_cross_entropy, linear_cross_entropy_backward,
};
use support::{Uploader, assert_close, binding, client, has_type, uniform};

const SCALE: f32 = 0.25;

struct Case {
    tokens: usize,
    rows: usize,
    vocab_size: usize,
    logits: Vec<f32>,
    targets: Vec<i32>,
}

impl Case {
    /// Every third target is not counted; padding holds what must not be read.
    fn new([tokens, rows, vocab_size]: [usize; 3], range: f32) -> Self {
        let mut logits = uniform(1, tokens * rows, -range, range);
        for row in logits.chunks_mut(rows) {
            row[vocab_size..].fill(f32::NAN);
        }
        let targets = (0..tokens).map(|token| match token % 3 {
            2 => -100,
            _ => (token * 7919 % vocab_size) as i32,
        });
        Self {
            tokens,
            rows,
            vocab_size,
            logits,
            targets: targets.collect(),
        }
    }

    fn inputs(&self, uploader: &Uploader) -> LossInputs {
        let shape = [self.tokens, self.rows];
        let targets = uploader
            .client
            .create_from_slice(i32::as_bytes(&self.targets));
        LossInputs {
            logits: uploader.whole(&self.logits, &shape, FloatKind::F32),
            targets: binding(&targets, &[self.tokens]),
            vocab_size: self.vocab_size,
            index_dtype: ElemType::Int(IntKind::I32),
        }
    }

    /// The losses, the gradient of the logits, and the losses where no gradient was asked for.
    fn kernel(&self, client: &Client, kind: FloatKind) -> [Vec<f64>; 3] {
        let uploader = Uploader::new(client, kind);
        let losses = uploader.poisoned(&[self.tokens], FloatKind::F32);
        let gradient = uploader.poisoned(&[self.tokens, self.rows], kind);
        let alone = uploader.poisoned(&[self.tokens], FloatKind::F32);
        let asked = LogitsGradient {
            logits: gradient.binding(),
            scale: uploader.whole(&[SCALE], &[1], FloatKind::F32),
            dtype: ElemType::Float(kind),
        };
        let inputs = || self.inputs(&uploader);
        cross_entropy(client, inputs(), losses.binding(), Some(asked)).expect("it launches");
        cross_entropy(client, inputs(), alone.binding(), None).expect("it launches");
        [losses, gradient, alone].map(|it| it.read(client))
    }

    /// A head that is the identity passes the logits through.
    fn oracle(&self) -> [Vec<f64>; 2] {
        let rows = self.rows;
        let mut weight = vec![0.0; rows * rows];
        (0..self.vocab_size).for_each(|entry| weight[entry * rows + entry] = 1.0);
        let (mut losses, mut gradient) = (Vec::new(), Vec::new());
        for token in 0..self.tokens {
            let logits = &self.logits[token * rows..(token + 1) * rows];
            let hidden: Vec<f64> = logits
                .iter()
                .map(|it| if it.is_nan() { 0.0 } else { f64::from(*it) })
                .collect();
            let targets = [self.targets[token].into()];
            let inputs = LinearCrossEntropyInputs {
                tokens: 1,
                d_model: rows,
                rows,
                vocab_size: self.vocab_size,
                hidden: &hidden,
                weight: &weight,
                targets: &targets,
                ignore_index: Some(-100),
            };
            losses.push(linear_cross_entropy(&inputs));
            gradient.extend(linear_cross_entropy_backward(&inputs, SCALE.into()).hidden);
        }
        [losses, gradient]
    }

    fn check(&self, kind: FloatKind) {
        let [losses, gradient, alone] = self.kernel(&client(), kind);
        assert_eq!(alone, losses, "with and without the gradient");
        let [want_losses, want_gradient] = self.oracle();
        let case = ([self.tokens, self.rows, self.vocab_size], kind);
        assert_close(
            &case,
            &[("losses", losses)],
            &[("losses", want_losses)],
            1e-6,
            2e-6,
        );
        let relative = match kind {
            FloatKind::F32 => 2e-6,
            FloatKind::F16 => 5e-4,
            _ => 4e-3,
        };
        assert_close(
            &case,
            &[("gradient", gradient)],
            &[("gradient", want_gradient)],
            relative,
            // f16 has no smaller numbers.
            if kind == FloatKind::F16 { 6e-8 } else { 1e-7 },
        );
    }
}

#[test]
fn vocabularies_of_any_size_with_padding() {
    for sizes in [[3, 1, 1], [7, 300, 293], [4, 1500, 1497], [5, 64, 64]] {
        Case::new(sizes, 3.0).check(FloatKind::F32);
    }
}

#[test]
fn huge_logits_do_not_overflow() {
    Case::new([6, 300, 293], 1e4).check(FloatKind::F32);
}

#[test]
fn gradients_in_half_precision() {
    for kind in [FloatKind::F16, FloatKind::BF16] {
        match has_type(&client(), ElemType::Float(kind)) {
            true => Case::new([7, 300, 293], 3.0).check(kind),
            false => println!("not tested: the device has no {kind:?}"),
        }
    }
}

#[test]
fn a_nan_comes_through_and_stays_in_its_token() {
    let mut case = Case::new([4, 300, 293], 3.0);
    case.logits[300 + 5] = f32::NAN;
    let [losses, gradient, _] = case.kernel(&client(), FloatKind::F32);
    assert!(losses[1].is_nan() && losses[0].is_finite());
    assert!(gradient[300].is_nan() && gradient[..300].iter().all(|it| it.is_finite()));
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let client = client();
    let uploader = Uploader::new(&client, FloatKind::F32);
    let losses = || uploader.poisoned(&[2], FloatKind::F32).binding();
    let case = Case::new([2, 8, 8], 1.0);
    let inputs = LossInputs {
        vocab_size: 9,
        ..case.inputs(&uploader)
    };
    let error = cross_entropy(&client, inputs, losses(), None);
    assert!(
        matches!(error, Err(KernelError::Size { got: 9, .. })),
        "{error:?}"
    );
    let wrong = Case::new([3, 8, 8], 1.0);
    let inputs = LossInputs {
        targets: wrong.inputs(&uploader).targets,
        ..case.inputs(&uploader)
    };
    let error = cross_entropy(&client, inputs, losses(), None).unwrap_err();
    assert_eq!(error.to_string(), "targets must have shape [2], got [3]");
}
