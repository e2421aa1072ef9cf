//! Several sequences at once.

use burn::tensor::{Device, Int, Tensor, TensorData};

#[cfg(feature = "cube")]
use super::kernels::{Kernels, Row};
use super::request::check_positions;
use super::steps::to_host;
use super::{Chooser, GenerateError, Limit, Logprobs, Prepared, Request, prefill, steps};
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

impl Sequence {
    fn new(request: &Request) -> Self {
        Self {
            limit: Limit::new(request),
            last: request.prompt.last().copied(),
            chooser: Chooser::new(request.sampler.clone(), request.logprobs, &request.prompt),
        }
    }
}

/// Sequences that are one batch.
struct Group {
    /// Which, a row each.
    members: Vec<usize>,
    source: Source,
}

/// Where logits come from, `[members, vocab_size]`.
enum Source {
    Modules(Box<Modules>),
    /// The kernels that decode Mamba-1 and Mamba-2.
    #[cfg(feature = "cube")]
    Kernels(Box<Kernels>),
}

/// What Burn's modules have left behind.
struct Modules {
    /// Put back after every step.
    state: Option<LanguageModelState>,
    /// Until tokens are chosen by them.
    logits: Option<Tensor<2>>,
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
        self.prepare(device).generate_all(requests)
    }
}

impl<'a> Prepared<'a> {
    /// [`LanguageModel::generate_all`] of the model that was prepared.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn generate_all(&self, requests: Vec<Request>) -> Result<Generations<'a>, GenerateError> {
        let Self { model, device, .. } = self;
        for request in &requests {
            request.check(model)?;
        }
        let sequences: Vec<Sequence> = requests.iter().map(Sequence::new).collect();
        let mut generations = Generations {
            model,
            device: device.clone(),
            sequences,
            groups: Vec::new(),
        };
        #[cfg(feature = "cube")]
        if let Some(group) = Group::read(self, &requests, &mut generations.sequences) {
            generations.groups.push(group);
            return Ok(generations);
        }
        let mut groups: Vec<(Vec<usize>, Snapshot)> = Vec::new();
        for members in alike(model, &requests) {
            let prompts: Vec<&[u32]> = members.iter().map(|it| &requests[*it].prompt[..]).collect();
            let read = prefill::read(model, &prompts, device);
            groups.push((members, read));
        }
        for (index, request) in requests.iter().enumerate() {
            if let Some(after) = &request.after {
                let read = steps::read(model, &request.prompt, Some(after.clone()), device);
                groups.push((vec![index], read));
            }
        }
        if prefill::packs(model) && !groups.is_empty() {
            let (members, read): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
            groups = vec![(members.concat(), prefill::cat(read))];
        }
        let groups = groups
            .into_iter()
            .map(|(members, read)| Group::new(model, members, read, &generations.sequences));
        generations.groups = groups.collect();
        Ok(generations)
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
            let tokens = group.next(self.model, &mut self.sequences, &self.device)?;
            for (&index, token) in group.members.iter().zip(tokens) {
                let sequence = &mut self.sequences[index];
                if sequence.limit.ended {
                    continue;
                }
                sequence.chooser.count(token);
                sequence.last = Some(token);
                sequence.limit.count(token);
                all[index] = Some(Generated {
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
    /// Reads prompts that begin anew, none of them longer than what is read at once, where kernels cover that.
    #[cfg(feature = "cube")]
    fn read(prepared: &Prepared, requests: &[Request], sequences: &mut [Sequence]) -> Option<Self> {
        let fits = |it: &Request| it.after.is_none() && it.prompt.len() <= steps::AT_ONCE;
        if requests.is_empty() || !requests.iter().all(fits) {
            return None;
        }
        // Those of one length are read together.
        let mut members: Vec<usize> = (0..requests.len()).collect();
        members.sort_by_key(|index| requests[*index].prompt.len());
        let prompts = members.iter().map(|index| &requests[*index].prompt[..]);
        let mut all: Vec<_> = sequences
            .iter_mut()
            .map(|it| Some(&mut it.chooser))
            .collect();
        let choosers = members
            .iter()
            .map(|index| all[*index].take().expect("one each"));
        let kernels = Kernels::read(
            prepared.model,
            &prompts.collect::<Vec<_>>(),
            &mut choosers.collect::<Vec<_>>(),
            &prepared.spare,
        )?;
        Some(Self {
            members,
            source: Source::Kernels(Box::new(kernels)),
        })
    }

    fn new(
        model: &LanguageModel,
        members: Vec<usize>,
        read: Snapshot,
        sequences: &[Sequence],
    ) -> Self {
        let Snapshot { state, logits } = read;
        #[cfg(feature = "cube")]
        {
            let choosers = members.iter().map(|it| &sequences[*it].chooser);
            if let Some(kernels) = Kernels::go_on(model, &state, logits.clone(), choosers) {
                let source = Source::Kernels(Box::new(kernels));
                return Self { members, source };
            }
        }
        #[cfg(not(feature = "cube"))]
        let _ = (model, sequences);
        Self {
            members,
            source: Source::Modules(Box::new(Modules {
                state: Some(state),
                logits: Some(logits),
            })),
        }
    }

    /// The next token of each member, any where one has ended.
    fn next(
        &mut self,
        model: &LanguageModel,
        sequences: &mut [Sequence],
        device: &Device,
    ) -> Result<Vec<u32>, GenerateError> {
        match &mut self.source {
            Source::Modules(modules) => {
                let Modules { state, logits } = &mut **modules;
                let logits = match logits.take() {
                    Some(logits) => logits,
                    None => {
                        let before = state.take().expect("put back after every step");
                        let (logits, after) =
                            step(model, before, &mut self.members, sequences, device)?;
                        *state = Some(after);
                        logits
                    }
                };
                let mut logits = to_host(logits)?;
                let width = logits.len() / self.members.len();
                let rows = self.members.iter().zip(logits.chunks_mut(width));
                let tokens = rows.map(|(index, row)| match &mut sequences[*index] {
                    it if it.limit.ended => Ok(0),
                    it => it.chooser.choose(row),
                });
                tokens.collect()
            }
            #[cfg(feature = "cube")]
            Source::Kernels(kernels) => {
                let mut all: Vec<_> = sequences.iter_mut().map(Some).collect();
                let rows = self.members.iter().map(|index| {
                    let sequence = all[*index].take().expect("a sequence is one member");
                    Row {
                        chooser: &mut sequence.chooser,
                        last: sequence.last,
                        going: !sequence.limit.ended,
                    }
                });
                kernels.next(&mut rows.collect::<Vec<_>>())
            }
        }
    }
}

/// Reads the last token of each member that goes on; the others are members no longer.
fn step(
    model: &LanguageModel,
    mut before: LanguageModelState,
    members: &mut Vec<usize>,
    sequences: &[Sequence],
    device: &Device,
) -> Result<(Tensor<2>, LanguageModelState), GenerateError> {
    let going = |row: &usize| !sequences[members[*row]].limit.ended;
    let rows: Vec<usize> = (0..members.len()).filter(going).collect();
    if rows.len() < members.len() {
        before = before.select(&rows, device);
        *members = rows.into_iter().map(|row| members[row]).collect();
    }
    check_positions(model, before.position + 1)?;
    let last = |index: &usize| sequences[*index].last.unwrap_or_default() as i32;
    let tokens: Vec<i32> = members.iter().map(last).collect();
    let shape = [tokens.len()];
    let tokens = TensorData::new::<i32, _>(tokens, shape);
    let tokens = Tensor::<1, Int>::from_data(tokens, device);
    Ok(model.step(tokens, before))
}
