//! Reading several prompts of different lengths.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData, s};

use super::steps;
use crate::block::{Block, Mixer};
use crate::language_model::{LanguageModel, inputs};
use crate::snapshot::Snapshot;
use crate::state::{LanguageModelState, LayerState};

/// Tokens that are read at once, padding included.
const AT_ONCE: usize = 4096;

/// Whether sequences of different lengths can be one batch: nothing of the model knows how long a sequence is.
pub(super) fn packs(model: &LanguageModel) -> bool {
    let mut mixers = model.layers.iter().map(|layer| &layer.mixer);
    model.positions.is_none() && mixers.all(|mixer| !matches!(mixer, Mixer::Attention(_)))
}

/// Reads prompts, none of them empty, of one length unless the model [packs]: the logits and the state of all, in their
/// order. Those of lengths much alike go together.
pub(super) fn read(model: &LanguageModel, prompts: &[&[u32]], device: &Device) -> Snapshot {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| prompts[*index].len());
    let lengths: Vec<usize> = order.iter().map(|index| prompts[*index].len()).collect();
    let mut parts = Vec::new();
    for range in groups(&lengths) {
        let group: Vec<&[u32]> = order[range].iter().map(|index| prompts[*index]).collect();
        parts.push(match group[..] {
            [prompt] => steps::read(model, prompt, None, device),
            _ => read_group(model, &group, device),
        });
    }
    let all = cat(parts);
    let mut places: Vec<usize> = (0..prompts.len()).collect();
    places.sort_by_key(|place| order[*place]);
    match places.is_sorted() {
        true => all,
        false => all.select(&places, device),
    }
}

/// Cuts ascending lengths so that no group has more tokens than are read at once, or more padding than tokens.
fn groups(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (index, length) in lengths.iter().enumerate() {
        match groups.last_mut() {
            Some(group)
                if (group.len() + 1) * length <= AT_ONCE && *length <= 2 * lengths[group.start] =>
            {
                group.end = index + 1;
            }
            _ => groups.push(index..index + 1),
        }
    }
    groups
}

/// Ascending lengths: each row is a run of padding and then the prompt, packed sequences of which the last one leaves
/// its state.
fn read_group(model: &LanguageModel, prompts: &[&[u32]], device: &Device) -> Snapshot {
    let batch = prompts.len();
    let longest = prompts[batch - 1].len();
    if prompts[0].len() == longest {
        let state = model.initial_state(batch, device);
        let (logits, state) = model.prefill(steps::rows(prompts, device), state);
        return Snapshot { state, logits };
    }
    let padding = |prompt: &&[u32]| longest - prompt.len();
    let tokens = prompts.iter().flat_map(|prompt| {
        let tokens = prompt.iter().map(|token| *token as i32);
        std::iter::repeat_n(0, padding(prompt)).chain(tokens)
    });
    let numbers = prompts.iter().flat_map(|prompt| {
        let padding = std::iter::repeat_n(0, padding(prompt));
        padding.chain(std::iter::repeat_n(1, prompt.len()))
    });
    let shape = [batch, longest];
    let tensor = |values: Vec<i32>| {
        Tensor::<2, Int>::from_data(TensorData::new::<i32, _>(values, shape), device)
    };
    let (hidden, state) =
        forward_packed(model, tensor(tokens.collect()), tensor(numbers.collect()));
    let last = hidden.slice(s![.., longest - 1..longest]);
    Snapshot {
        logits: model.logits(last).squeeze_dim(1),
        state,
    }
}

/// Hidden states of packed sequences, and the states of the last one of each row, of a model that [packs].
fn forward_packed(
    model: &LanguageModel,
    tokens: Tensor<2, Int>,
    seq_idx: Tensor<2, Int>,
) -> (Tensor<3>, LanguageModelState) {
    let [_, seq_len] = tokens.dims();
    let mut x = model.embed(tokens, 0);
    let mut layers = Vec::with_capacity(model.layers.len());
    for stage in model.stages() {
        for (layer, input) in stage.iter().zip(inputs(stage, &x)) {
            let state;
            (x, state) = mix(layer, input, x, seq_idx.clone());
            layers.push(state);
        }
    }
    let state = LanguageModelState {
        layers,
        position: seq_len,
    };
    (model.norm.forward(x), state)
}

/// Adds what the mixer makes of `input`, which is normalised already, to `x`.
fn mix(
    layer: &Block,
    input: Tensor<3>,
    x: Tensor<3>,
    seq_idx: Tensor<2, Int>,
) -> (Tensor<3>, LayerState) {
    match &layer.mixer {
        Mixer::Mamba1(mixer) => {
            let (x, state) = mixer.mix(input, None, Some(seq_idx), Some(x));
            (x, LayerState::Mamba1(state))
        }
        Mixer::Mamba2(mixer) => {
            let (x, state) = mixer.mix(input, None, Some(seq_idx), Some(x));
            (x, LayerState::Mamba2(state))
        }
        // Position by position: runs are all one to it.
        Mixer::Mlp(_) => (layer.mix_sequence(input, x, None), LayerState::Stateless),
        Mixer::Attention(_) => unreachable!("a model with attention is not packed"),
    }
}

/// All sequences of `parts`, in their order.
pub(super) fn cat(parts: Vec<Snapshot>) -> Snapshot {
    let (states, logits): (Vec<_>, Vec<_>) = parts
        .into_iter()
        .map(|part| (part.state, part.logits))
        .unzip();
    Snapshot {
        state: LanguageModelState::cat(states),
        logits: Tensor::cat(logits, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_much_alike_go_together() {
        assert_eq!(groups(&[1, 2, 2, 3, 6, 7]), [0..3, 3..5, 5..6]);
        assert_eq!(groups(&[2000, 2000, 2000, 9000]), [0..2, 2..3, 3..4]);
    }
}
