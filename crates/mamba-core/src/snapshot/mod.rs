//! A model that has read something: what it remembers and what it expects, on a device and in a file.

mod file;
mod fingerprint;

use burn::tensor::{Device, Int, Tensor};

use crate::state::LanguageModelState;

pub use file::SnapshotError;

/// A model behind the tokens of a sequence: any number of continuations begin from copies of it.
///
/// Of a model of state-space mixers it has one size, however long the sequence was; attention adds the keys and values of
/// every token.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What the model remembers.
    pub state: LanguageModelState,
    /// What it expects next, `[batch, vocab_size]`.
    pub logits: Tensor<2>,
}

impl Snapshot {
    /// The sequences of these rows, in that order.
    pub(crate) fn select(self, rows: &[usize], device: &Device) -> Self {
        let numbers: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let numbers = Tensor::<1, Int>::from_data(&numbers[..], device);
        Self {
            state: self.state.select(rows, device),
            logits: self.logits.select(0, numbers),
        }
    }
}
