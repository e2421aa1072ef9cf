//! The loss on one long text, in which every token has a past.

use anyhow::{Result, ensure};
use burn::tensor::{Device, Int, Tensor, TensorData};
use mamba_core::{LanguageModel, Mixer};

use super::{Evaluation, LossMean};
use crate::encoded::EncodedCorpus;

/// Tokens read at once where the state is carried on.
const AT_ONCE: usize = 1024;

/// Windows over a text that overlap, so that most tokens are predicted behind a long past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    /// Tokens of a window.
    pub context: usize,
    /// Tokens between the beginnings of two windows. Of each window but the first so many tokens count, its last ones:
    /// those that the window before has not reached.
    pub stride: usize,
}

/// Tokens `begin..end` of the text, of which those from `counted` on count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    begin: usize,
    counted: usize,
    end: usize,
}

impl Sliding {
    /// Windows such that each token of the text but the first counts once.
    fn spans(self, len: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut counted = 1;
        for begin in (0..len).step_by(self.stride) {
            let end = (begin + self.context).min(len);
            if counted < end {
                spans.push(Span {
                    begin,
                    counted,
                    end,
                });
            }
            counted = end;
            if end == len {
                break;
            }
        }
        spans
    }
}

/// Evaluates `model` in overlapping windows, `batch_size` at once. `on_batch` as for [`evaluate`](super::evaluate).
///
/// # Errors
///
/// When the stride is 0 or so long that tokens would lack a past, the windows are longer than the model's positions, the
/// device fails, or the loss is not finite.
pub fn evaluate_sliding(
    model: &LanguageModel,
    text: &EncodedCorpus,
    sliding: Sliding,
    batch_size: usize,
    device: &Device,
    mut on_batch: impl FnMut(usize, usize) -> bool,
) -> Result<Option<Evaluation>> {
    let Sliding { context, stride } = sliding;
    ensure!(
        context >= 2,
        "a window has at least 2 tokens, got {context}"
    );
    ensure!(
        (1..context).contains(&stride),
        "the stride must be at least 1 and below the window's {context} tokens, got {stride}"
    );
    if let Some(positions) = model.max_positions() {
        ensure!(
            context - 1 <= positions,
            "the model has {positions} positions: no window can have more than {} tokens, got {context}",
            positions + 1
        );
    }
    let spans = sliding.spans(text.len());
    // All are of one length but the last.
    let batches: Vec<&[Span]> = spans
        .chunk_by(|a, b| a.end - a.begin == b.end - b.begin)
        .flat_map(|alike| alike.chunks(batch_size.max(1)))
        .collect();
    let mut mean = LossMean::default();
    for (done, batch) in batches.iter().enumerate() {
        let (mut inputs, mut targets, mut counted) = (Vec::new(), Vec::new(), 0);
        for span in *batch {
            let tokens = text.tokens(span.begin..span.end);
            inputs.extend(tokens[..tokens.len() - 1].iter().map(|it| *it as i32));
            let places = span.begin + 1..span.end;
            targets.extend(tokens[1..].iter().zip(places).map(|(token, place)| {
                match place < span.counted {
                    true => -1,
                    false => *token as i32,
                }
            }));
            counted += span.end - span.counted;
        }
        let shape = [batch.len(), batch[0].end - batch[0].begin - 1];
        let [inputs, targets] = [inputs, targets].map(|it| ids(it, shape, device));
        mean.push(model.loss(inputs, targets), counted)?;
        if !on_batch(done + 1, batches.len()) {
            return Ok(None);
        }
    }
    mean.finish()
}

/// Evaluates `model` on the whole text as one sequence, in parts that each continue the state of the one before.
/// `on_part` as for [`evaluate`](super::evaluate).
///
/// # Errors
///
/// When the model has a mixer that remembers every token or learned positions, the device fails, or the loss is not
/// finite.
pub fn evaluate_carried(
    model: &LanguageModel,
    text: &EncodedCorpus,
    device: &Device,
    mut on_part: impl FnMut(usize, usize) -> bool,
) -> Result<Option<Evaluation>> {
    let grows = |mixer: &Mixer| matches!(mixer, Mixer::Attention(_));
    ensure!(
        model.positions.is_none() && !model.layers.iter().any(|layer| grows(&layer.mixer)),
        "the model has attention or learned positions, so that no state of one size can be carried over a whole text: \
         evaluate it in sliding windows"
    );
    let targets = text.len() - 1;
    let parts = targets.div_ceil(AT_ONCE);
    let mut state = model.initial_state(1, device);
    let mut mean = LossMean::default();
    for part in 0..parts {
        let begin = part * AT_ONCE;
        let len = AT_ONCE.min(targets - begin);
        let tokens = text.tokens(begin..begin + len + 1);
        let tokens: Vec<i32> = tokens.into_iter().map(|it| it as i32).collect();
        let inputs = ids(tokens[..len].to_vec(), [1, len], device);
        let expected = ids(tokens[1..].to_vec(), [1, len], device);
        let losses;
        (losses, state) = model.score(inputs, expected, state);
        // In one order on every device.
        mean.push(losses.flatten::<1>(0, 1).mean_dim(0), len)?;
        if !on_part(part + 1, parts) {
            return Ok(None);
        }
    }
    mean.finish()
}

fn ids(values: Vec<i32>, shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new::<i32, _>(values, shape), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mamba_core::LanguageModelConfig;
    use mamba_core::MixerKind;
    use mamba_core::transformer::AttentionConfig;

    /// A GPU beside it would compile kernels for minutes.
    fn cpu() -> Device {
        mamba_core::device::device("flex").unwrap_or_default()
    }

    fn span(begin: usize, counted: usize, end: usize) -> Span {
        Span {
            begin,
            counted,
            end,
        }
    }

    #[test]
    fn every_token_but_the_first_counts_once() {
        let sliding = Sliding {
            context: 4,
            stride: 2,
        };
        assert_eq!(
            sliding.spans(9),
            [span(0, 1, 4), span(2, 4, 6), span(4, 6, 8), span(6, 8, 9)]
        );
        assert_eq!(sliding.spans(4), [span(0, 1, 4)]);
        assert_eq!(sliding.spans(3), [span(0, 1, 3)]);
        for (len, context, stride) in [(50, 7, 3), (51, 16, 15), (64, 8, 4), (2, 8, 4)] {
            let spans = Sliding { context, stride }.spans(len);
            let counted: Vec<usize> = spans.iter().flat_map(|it| it.counted..it.end).collect();
            assert_eq!(counted, (1..len).collect::<Vec<_>>());
        }
    }

    fn text() -> EncodedCorpus {
        EncodedCorpus::from_tokens(&(0..60).map(|it| it * it % 29).collect::<Vec<u32>>())
    }

    fn model(mixer: MixerKind) -> LanguageModel {
        let device = cpu();
        device.seed(3);
        LanguageModelConfig::new()
            .with_vocab_size(29)
            .with_d_model(16)
            .with_pattern(vec![mixer])
            .with_attention(AttentionConfig::new(0, 2).with_rotary_dim(4))
            .init(&device)
    }

    /// The mean of each token's loss behind all tokens from the beginning of its window.
    #[test]
    fn sliding_windows_are_what_each_token_sees() {
        let (text, device) = (text(), cpu());
        for mixer in [MixerKind::Mamba1, MixerKind::Attention] {
            let model = model(mixer);
            let sliding = Sliding {
                context: 16,
                stride: 5,
            };
            let mut want = 0.0;
            for span in sliding.spans(text.len()) {
                let tokens = text.tokens(span.begin..span.end);
                let score = model.score_tokens(&tokens, None, &device).unwrap();
                let counted = &score.logprobs[span.counted - span.begin - 1..];
                want -= counted.iter().map(|it| f64::from(*it)).sum::<f64>();
            }
            want /= (text.len() - 1) as f64;
            for batch_size in [1, 4] {
                let got =
                    evaluate_sliding(&model, &text, sliding, batch_size, &device, |_, _| true);
                let got = got.unwrap().unwrap();
                assert_eq!(got.tokens, text.len() - 1);
                assert!((got.loss - want).abs() < 1e-4, "{} for {want}", got.loss);
            }
        }
    }

    #[test]
    fn a_carried_state_sees_all() {
        let device = cpu();
        let tokens: Vec<u32> = (0..2500).map(|it| it * it % 29).collect();
        let text = EncodedCorpus::from_tokens(&tokens);
        let mamba = model(MixerKind::Mamba1);
        let want = mamba.score_tokens(&tokens, None, &device).unwrap();
        let want = -want.sum() / (tokens.len() - 1) as f64;
        let mut parts = 0;
        let got = evaluate_carried(&mamba, &text, &device, |done, all| {
            parts = done;
            assert_eq!(all, 3);
            true
        });
        let got = got.unwrap().unwrap();
        assert_eq!((got.tokens, parts), (2499, 3));
        assert!((got.loss - want).abs() < 1e-4, "{} for {want}", got.loss);

        let error = evaluate_carried(&model(MixerKind::Attention), &text, &device, |_, _| true);
        assert!(error.unwrap_err().to_string().contains("sliding"));
    }

    #[test]
    fn windows_that_cannot_be_are_refused() {
        let model = model(MixerKind::Mamba1);
        for (context, stride) in [(1, 1), (8, 0), (8, 8)] {
            let sliding = Sliding { context, stride };
            let device = cpu();
            assert!(evaluate_sliding(&model, &text(), sliding, 1, &device, |_, _| true).is_err());
        }
    }
}
