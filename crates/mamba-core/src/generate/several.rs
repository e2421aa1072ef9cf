//! Several sequences at once.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::request::check_positions;
use super::steps::to_host;
use super::{Chooser, GenerateError, Limit, Logprobs, Request, prefill, steps};
use crate::language_model::LanguageModel;
use crate::snapshot::Snapshot;
use crate::state::LanguageModelState;

/// A token of one of several sequences.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The token.
    pub token: u32,
    /// What the model thought in its place, if the request asked for it.
    pub logprobs: Option<Logprobs>,
}

/// Continues several sequences, a token of each an iteration, until all have ended.
///
/// Made by [`LanguageModel::generate_all`]. An item has an entry a sequence, in the order of the requests, none for one
/// that has ended. One pass of the model serves all sequences, of whatever lengths, where its mixers are state spaces;
/// with attention or learned positions, those that are equally long. Sequences that have ended drop out of it, but
/// where kernels decode Mamba-1 and Mamba-2 on a GPU: their batch stays as it is, until all have ended.
///
/// Each gets the tokens that it would get alone, but for the last bits of sums that a device takes in another order.
pub struct Generations<'a> {
    model: &'a LanguageModel,
    device: Device,
    sequences: Vec<Sequence>,
    groups: Vec<Group>,
}

struct Sequence {
    chooser: Chooser,
    last: Option<u32>,
    limit: Limit,
}

/// Sequences that are one batch.
struct Group {
    /// Which, a row each.
    members: Vec<usize>,
    source: Source,
}

/// Where logits come from, `[members, vocab_size]`.
enum Source {
    Modules {
        /// Put back after every step.
        state: Option<LanguageModelState>,
        /// Until tokens are chosen by them.
        logits: Option<Tensor<2>>,
    },
    /// The kernels that decode Mamba-1 and Mamba-2, and the logits of the prompts.
    #[cfg(feature = "cube")]
    Kernels {
        decoder: Box<mamba_kernels::decode::Decoder>,
        logits: Option<Tensor<2>>,
    },
}

impl LanguageModel {
    /// Reads the prompts of all requests and returns the iterator over what follows each.
    ///
    /// # Errors
    ///
    /// As [`LanguageModel::generate_from`], for the first request that cannot be served.
    pub fn generate_all(
        &self,
        requests: Vec<Request>,
        device: &Device,
    ) -> Result<Generations<'_>, GenerateError> {
        for request in &requests {
            request.check(self)?;
        }
        let mut groups: Vec<(Vec<usize>, Snapshot)> = Vec::new();
        for members in alike(self, &requests) {
            let prompts: Vec<&[u32]> = members.iter().map(|it| &requests[*it].prompt[..]).collect();
            let read = prefill::read(self, &prompts, device);
            groups.push((members, read));
        }
        for (index, request) in requests.iter().enumerate() {
            if let Some(after) = &request.after {
                let read = steps::read(self, &request.prompt, Some(after.clone()), device);
                groups.push((vec![index], read));
            }
        }
        let groups = match prefill::packs(self) && !groups.is_empty() {
            true => {
                let (members, read): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
                vec![Group::new(self, members.concat(), prefill::cat(read))]
            }
            false => groups
                .into_iter()
                .map(|(members, read)| Group::new(self, members, read))
                .collect(),
        };
        let sequences = requests.into_iter().map(|request| Sequence {
            limit: Limit::new(&request),
            last: request.prompt.last().copied(),
            chooser: Chooser::new(request.sampler, request.logprobs, &request.prompt),
        });
        Ok(Generations {
            model: self,
            device: device.clone(),
            sequences: sequences.collect(),
            groups,
        })
    }
}

/// The requests that begin anew, in groups that can be read as one batch.
fn alike(model: &LanguageModel, requests: &[Request]) -> Vec<Vec<usize>> {
    let packs = prefill::packs(model);
    let mut groups = std::collections::BTreeMap::<usize, Vec<usize>>::new();
    for (index, request) in requests.iter().enumerate() {
        if request.after.is_none() {
            let length = if packs { 0 } else { request.prompt.len() };
            groups.entry(length).or_default().push(index);
        }
    }
    groups.into_values().collect()
}

impl Generations<'_> {
    /// How many sequences there are, those that have ended included.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Ends a sequence, whose text may hold what its user was waiting for.
    ///
    /// # Panics
    ///
    /// If there is no such sequence.
    pub fn end(&mut self, sequence: usize) {
        self.sequences[sequence].limit.ended = true;
    }

    fn step(&mut self) -> Result<Vec<Option<Generated>>, GenerateError> {
        let mut all = vec![None; self.sequences.len()];
        for group in &mut self.groups {
            if group
                .members
                .iter()
                .all(|it| self.sequences[*it].limit.ended)
            {
                continue;
            }
            let logits = group.logits(self.model, &self.sequences, &self.device)?;
            let rows = logits.len() / group.members.len();
            for (index, row) in group.members.iter().zip(logits.chunks(rows)) {
                let sequence = &mut self.sequences[*index];
                if sequence.limit.ended {
                    continue;
                }
                let token = sequence.chooser.choose(&mut row.to_vec())?;
                sequence.chooser.count(token);
                sequence.last = Some(token);
                sequence.limit.count(token);
                all[*index] = Some(Generated {
                    token,
                    logprobs: sequence.chooser.logprobs.clone(),
                });
            }
        }
        Ok(all)
    }
}

impl Iterator for Generations<'_> {
    type Item = Result<Vec<Option<Generated>>, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.sequences.iter().all(|it| it.limit.ended) {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            (0..self.len()).for_each(|sequence| self.end(sequence));
        }
        Some(step)
    }
}

impl Group {
    fn new(model: &LanguageModel, members: Vec<usize>, read: Snapshot) -> Self {
        let Snapshot { state, logits } = read;
        #[cfg(feature = "cube")]
        {
            use mamba_kernels::decode::Choice;
            if let Some(decoder) = crate::ops::decoder(model, Some(&state), Choice::Caller) {
                let source = Source::Kernels {
                    decoder: Box::new(decoder),
                    logits: Some(logits),
                };
                return Self { members, source };
            }
        }
        #[cfg(not(feature = "cube"))]
        let _ = model;
        Self {
            members,
            source: Source::Modules {
                state: Some(state),
                logits: Some(logits),
            },
        }
    }

    /// Of what follows each member's last token, which is read if that is not done.
    fn logits(
        &mut self,
        model: &LanguageModel,
        sequences: &[Sequence],
        device: &Device,
    ) -> Result<Vec<f32>, GenerateError> {
        let last = |index: &usize| sequences[*index].last.unwrap_or_default();
        match &mut self.source {
            Source::Modules { state, logits } => {
                if let Some(logits) = logits.take() {
                    return to_host(logits);
                }
                let mut before = state.take().expect("put back after every step");
                let going = |row: &usize| !sequences[self.members[*row]].limit.ended;
                let rows: Vec<usize> = (0..self.members.len()).filter(going).collect();
                if rows.len() < self.members.len() {
                    before = before.select(&rows, device);
                    self.members = rows.into_iter().map(|row| self.members[row]).collect();
                }
                check_positions(model, before.position + 1)?;
                let tokens: Vec<i32> = self.members.iter().map(|it| last(it) as i32).collect();
                let shape = [tokens.len()];
                let tokens = TensorData::new::<i32, _>(tokens, shape);
                let tokens = Tensor::<1, Int>::from_data(tokens, device);
                let (logits, after) = model.step(tokens, before);
                *state = Some(after);
                to_host(logits)
            }
            #[cfg(feature = "cube")]
            Source::Kernels { decoder, logits } => {
                use super::kernels::device_failed;
                if let Some(logits) = logits.take() {
                    return to_host(logits);
                }
                let tokens: Vec<u32> = self.members.iter().map(last).collect();
                decoder.give_tokens(&tokens);
                decoder.step().map_err(device_failed)?;
                decoder.logits().map_err(device_failed)
            }
        }
    }
}
