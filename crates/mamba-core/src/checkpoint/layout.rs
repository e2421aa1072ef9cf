//! How a tensor of theirs becomes one of ours, and back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use burn::store::bridge::{self, map_data};
use burn::store::burn_pack::Tensor as Packed;
use burn::tensor::{DType, Shape, TensorData};

/// Between the tensors of a file and one of ours.
#[derive(Clone, Debug)]
pub(super) enum Layout {
    /// As it is.
    Same,
    /// `[d_output, d_input]` to `[d_input, d_output]`: PyTorch's linear layers.
    Transposed,
    /// `[channels, 1, width]` to `[channels, width]`: PyTorch's depthwise filters.
    Depthwise,
    /// Several linear layers of one input, transposed and side by side: the output sizes of each.
    Joined(Vec<usize>),
    /// The output features of a linear layer go head by head, each head's query, key and value together, and ours are all
    /// queries, all keys, all values: the number of heads. A matrix is transposed as well.
    ByHead(usize),
}

/// The tensors of files among whose values are NaN or infinite ones, found while they are read.
#[derive(Clone, Debug, Default)]
pub(super) struct NotFinite(Arc<Mutex<BTreeSet<String>>>);

impl NotFinite {
    pub fn names(&self) -> Vec<String> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().cloned().collect()
    }

    /// The values of the tensor `name` in f32.
    fn watch(&self, name: &str, data: TensorData) -> TensorData {
        let data = single(data);
        let values = data.as_slice::<f32>().unwrap_or_default();
        // Without a way out of the loop, so that it is vectorised: a model has hundreds of millions.
        let broken = values
            .iter()
            .fold(false, |any, value| any | !value.is_finite());
        if broken {
            let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            names.insert(name.to_owned());
        }
        data
    }
}

/// Where one of our parameters comes from.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Its path in the module, variants of enums left out.
    pub ours: String,
    /// One name, or those of the parts that are joined.
    pub theirs: Vec<String>,
    pub layout: Layout,
}

impl Rule {
    pub fn new(ours: impl Into<String>, theirs: impl Into<String>, layout: Layout) -> Self {
        Self {
            ours: ours.into(),
            theirs: vec![theirs.into()],
            layout,
        }
    }

    /// The parameter in f32, read from the files when it is applied. What is not finite by then is told to `broken`.
    pub fn import(&self, parts: Vec<Packed>, broken: &NotFinite) -> Packed {
        let name = self.ours.clone();
        let mut theirs = self.theirs.clone().into_iter();
        let (broken, their) = (broken.clone(), theirs.next().unwrap_or_default());
        let mut parts = parts.into_iter();
        let first = parts.next().expect("a rule names a tensor at least");
        let shape = first.shape.to_vec();
        match (&self.layout, &shape[..]) {
            (Layout::Transposed, &[rows, columns]) => {
                let shape = Shape::from([columns, rows]);
                map_data(first, name, DType::F32, shape, move |data| {
                    transposed(broken.watch(&their, data), [rows, columns])
                })
            }
            (Layout::Depthwise, &[channels, 1, width]) => {
                let shape = Shape::from([channels, width]);
                map_data(first, name, DType::F32, shape, move |data| {
                    TensorData::new(values(broken.watch(&their, data)), [channels, width])
                })
            }
            (Layout::Joined(sizes), &[_, columns]) => {
                let rest: Vec<Packed> = parts.collect();
                let mut all = std::iter::once(&first).chain(&rest).zip(sizes);
                if !all.all(|(it, size)| it.shape.to_vec() == [*size, columns]) {
                    // Its shape tells what is wrong when it is applied.
                    return renamed(first, name, their, broken);
                }
                let theirs: Vec<String> = theirs.collect();
                let rows = shape[0] + rest.iter().map(|it| it.shape[0]).sum::<usize>();
                let whole = Shape::from([columns, rows]);
                bridge::deferred(name, DType::F32, whole, None, move || {
                    let mut stacked = Vec::with_capacity(rows * columns);
                    let parts = std::iter::once((&their, &first)).chain(theirs.iter().zip(&rest));
                    for (their, part) in parts {
                        stacked.extend(values(broken.watch(their, bridge::to_data(part)?)));
                    }
                    let stacked = TensorData::new(stacked, [rows, columns]);
                    Ok(transposed(stacked, [rows, columns]))
                })
            }
            (Layout::ByHead(heads), &[rows, columns]) if rows.is_multiple_of(3 * heads) => {
                let (shape, outer) = (Shape::from([columns, rows]), [*heads, 3]);
                map_data(first, name, DType::F32, shape, move |data| {
                    let sorted = swapped(values(broken.watch(&their, data)), outer);
                    transposed(TensorData::new(sorted, [rows, columns]), [rows, columns])
                })
            }
            (Layout::ByHead(heads), &[rows]) if rows.is_multiple_of(3 * heads) => {
                let (shape, outer) = (Shape::from([rows]), [*heads, 3]);
                map_data(first, name, DType::F32, shape, move |data| {
                    TensorData::new(swapped(values(broken.watch(&their, data)), outer), [rows])
                })
            }
            // A wrong rank goes on as it is, and its shape tells when it is applied.
            _ => renamed(first, name, their, broken),
        }
    }

    /// What the parameter is called and holds in a file: names, shapes and values.
    pub fn export(&self, data: TensorData) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let shape = data.shape().to_vec();
        let data = single(data);
        match (&self.layout, &shape[..]) {
            (Layout::Transposed, &[rows, columns]) => {
                let back = values(transposed(data, [rows, columns]));
                vec![(self.theirs[0].clone(), vec![columns, rows], back)]
            }
            (Layout::Depthwise, &[channels, width]) => {
                vec![(
                    self.theirs[0].clone(),
                    vec![channels, 1, width],
                    values(data),
                )]
            }
            (Layout::Joined(sizes), &[rows, columns]) => {
                let whole = values(transposed(data, [rows, columns]));
                let mut begin = 0;
                let parts = self.theirs.iter().zip(sizes).map(|(name, size)| {
                    let part = whole[begin * rows..(begin + size) * rows].to_vec();
                    begin += size;
                    (name.clone(), vec![*size, rows], part)
                });
                parts.collect()
            }
            (Layout::ByHead(heads), &[rows, columns]) => {
                let back = swapped(values(transposed(data, [rows, columns])), [3, *heads]);
                vec![(self.theirs[0].clone(), vec![columns, rows], back)]
            }
            (Layout::ByHead(heads), &[_]) => {
                let back = swapped(values(data), [3, *heads]);
                vec![(self.theirs[0].clone(), shape, back)]
            }
            _ => vec![(self.theirs[0].clone(), shape, values(data))],
        }
    }
}

fn renamed(tensor: Packed, name: String, their: String, broken: NotFinite) -> Packed {
    let shape = tensor.shape.clone();
    map_data(tensor, name, DType::F32, shape, move |data| {
        broken.watch(&their, data)
    })
}

fn single(data: TensorData) -> TensorData {
    data.convert::<f32>()
}

fn values(data: TensorData) -> Vec<f32> {
    data.try_into_vec::<f32>().expect("converted to f32 before")
}

/// `[a, b, rest]` to `[b, a, rest]`.
fn swapped(from: Vec<f32>, [a, b]: [usize; 2]) -> Vec<f32> {
    let rest = from.len() / (a * b);
    let mut to = Vec::with_capacity(from.len());
    for second in 0..b {
        for first in 0..a {
            to.extend_from_slice(&from[(first * b + second) * rest..][..rest]);
        }
    }
    to
}

fn transposed(data: TensorData, [rows, columns]: [usize; 2]) -> TensorData {
    let from = values(data);
    let mut to = Vec::with_capacity(from.len());
    for column in 0..columns {
        to.extend((0..rows).map(|row| from[row * columns + column]));
    }
    TensorData::new(to, [columns, rows])
}
