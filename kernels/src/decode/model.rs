//! The whole model: its layers, the vectors between them, the launches of a step.

use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::zspace::Shape;

use super::choose::{Chooser, MAX_VOCABULARY, choose, embed, tiles};
use super::layer::{Ends, Layer, LayerWeights, Scale, Vectors, launch_product};
use super::pack::{Packed, copy, pack, zeros};
use super::rows::Products;
use super::team::lanes;
use super::{Before, Choice, MAX_BATCH};
use crate::KernelError;
use crate::pointwise::takes_ptx;
use crate::tensors::{check_bindings, check_shape, check_size, check_whole, scratch};

/// Buffers of the largest kernel, and one for shapes and scalars.
const BINDINGS: usize = 10;

/// Most sequences of which a unit keeps a sum each.
pub(super) const MAX_TEAM_BATCH: usize = 8;

/// The parameters of a model: f32.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[vocabulary or more, d_model]`, contiguous.
    pub embedding: TensorBinding,
    /// First layer first.
    pub layers: Vec<LayerWeights>,
    /// Scale of the last norm, `[d_model]`.
    pub norm: TensorBinding,
    /// Added to the mean square in every norm.
    pub epsilon: f32,
    /// `[vocabulary or more, d_model]`, of any strides; the embedding where it is left out.
    pub head: Option<TensorBinding>,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
}

/// What all launches need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub batch: usize,
    pub epsilon: f32,
    /// Whether kernels take inline PTX.
    pub ptx: bool,
}

/// A model ready to run.
pub(super) struct Model {
    /// One a sequence.
    pub tokens: Handle,
    /// One a sequence.
    pub uniform: Handle,
    /// `[batch, vocab_size]`
    pub logits: TensorBinding,
    pub sizes: Sizes,
    pub embedding: TensorBinding,
    pub layers: Vec<Layer>,
    pub norm: TensorBinding,
    pub head: Packed,
    /// The residual stream, a row a sequence, padded with zeros.
    pub x: TensorBinding,
    /// What is between the launches of layers, once for those of the same widths.
    vectors: Vec<Vectors>,
    pub products: Products,
    chooser: Option<Chooser>,
}

impl Model {
    pub fn new(
        client: &Client,
        weights: Weights,
        before: Before,
        dtype: ElemType,
        choice: Choice,
    ) -> Result<Self, KernelError> {
        check_bindings(client, BINDINGS)?;
        let vocab_size = weights.vocab_size;
        check_size(
            "vocab_size",
            "between 1 and 524288",
            vocab_size,
            MAX_VOCABULARY,
        )?;
        check_size("layers", "at least 1", weights.layers.len(), usize::MAX)?;
        let (batch, states) = match before {
            Before::Nothing { batch } => (batch, vec![None; weights.layers.len()]),
            Before::States(states) => {
                let batch = states.first().map_or(0, |state| state.ssm.shape[0]);
                (batch, states.into_iter().map(Some).collect::<Vec<_>>())
            }
        };
        if states.len() != weights.layers.len() {
            return Err(KernelError::Shape {
                name: "states",
                expected: vec![weights.layers.len()],
                got: vec![states.len()],
            });
        }
        check_size("batch", "between 1 and 1024", batch, MAX_BATCH)?;
        let d_model = weights.norm.size();
        check_table("embedding", &weights.embedding, vocab_size, d_model)?;
        let rows = weights.embedding.shape[0];
        check_whole("embedding", &weights.embedding, &[rows, d_model])?;
        check_whole("norm", &weights.norm, &[d_model])?;
        let products = Products::new(client, &weights, batch, dtype);
        let mut head = weights.head.unwrap_or_else(|| weights.embedding.clone());
        check_table("head", &head, vocab_size, d_model)?;
        head.shape = [vocab_size, d_model].into();

        let sizes = Sizes {
            batch,
            epsilon: weights.epsilon,
            ptx: takes_ptx(client),
        };
        let layers = weights.layers.into_iter().zip(states);
        let layers = layers
            .map(|(weights, state)| {
                Layer::new(client, weights, state, [batch, d_model], dtype, products)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let lanes = lanes(dtype.size(), &client.properties().hardware);
        let mut vectors: Vec<Vectors> = Vec::new();
        // More sequences have their tensors for each launch.
        for layer in layers.iter().filter(|_| products == Products::Teams) {
            let widths = layer.widths();
            if vectors.iter().all(|it| it.widths != widths) {
                vectors.push(Vectors::new(client, batch, widths, lanes));
            }
        }
        let uniform = client.create_from_slice(f32::as_bytes(&vec![0.0; batch]));
        let chooser = match choice {
            Choice::Caller => None,
            Choice::Device { temperature } => Some(Chooser {
                most: scratch(client, &[batch, tiles(vocab_size)]),
                sums: scratch(client, &[batch, tiles(vocab_size)]),
                // SAFETY: the handle holds a value a sequence.
                uniform: unsafe { vector(uniform.clone(), batch) },
                temperature,
            }),
        };
        let model = Self {
            tokens: client.create_from_slice(u32::as_bytes(&vec![0; batch])),
            uniform,
            logits: scratch(client, &[batch, vocab_size]),
            sizes,
            embedding: weights.embedding,
            layers,
            norm: copy(client, weights.norm, lanes),
            head: pack(client, head, dtype),
            x: zeros(client, batch, d_model.next_multiple_of(lanes)),
            vectors,
            products,
            chooser,
        };
        if model.in_rows() {
            model.check_rows()?;
        }
        Ok(model)
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.sizes.batch
    }

    /// Width of the residual stream.
    pub fn d_model(&self) -> usize {
        self.head.columns
    }

    /// Makes the states those before any token.
    pub fn forget(&self, client: &Client) {
        self.layers.iter().for_each(|layer| layer.forget(client));
    }

    /// One step.
    pub fn launch(&self, client: &Client) -> Result<(), KernelError> {
        if self.in_rows() {
            self.launch_rows(client, self.tokens())?;
            self.choose(client);
            return Ok(());
        }
        embed(
            client,
            self.embedding.clone(),
            self.tokens(),
            self.x.clone(),
        );
        for layer in &self.layers {
            layer.launch(client, &self.x, self.vectors(layer), self.sizes)?;
        }
        self.conclude(client)
    }

    /// From the residual stream in the buffers to the logits, and to the tokens if the device chooses.
    pub fn conclude(&self, client: &Client) -> Result<(), KernelError> {
        if self.in_rows() {
            self.conclude_rows(client, self.last())?;
        } else {
            let ends = Ends {
                x: &self.x,
                y: &self.logits,
                norm: Some(Scale {
                    gamma: &self.norm,
                    epsilon: self.sizes.epsilon,
                }),
                bias: None,
                add: false,
            };
            launch_product(client, &self.head, ends, self.sizes);
        }
        self.choose(client);
        Ok(())
    }

    fn vectors(&self, layer: &Layer) -> &Vectors {
        let widths = layer.widths();
        let mut all = self.vectors.iter();
        all.find(|it| it.widths == widths)
            .expect("there are some for every layer")
    }

    fn choose(&self, client: &Client) {
        if let Some(chooser) = &self.chooser {
            choose(client, self.logits.clone(), chooser.clone(), self.tokens());
        }
    }

    /// Whether there are more sequences than a team of units takes.
    fn in_rows(&self) -> bool {
        self.products != Products::Teams
    }

    fn tokens(&self) -> TensorBinding {
        // SAFETY: the handle holds a value a sequence.
        unsafe { vector(self.tokens.clone(), self.sizes.batch) }
    }
}

/// Checks a matrix with a row for each entry of the vocabulary.
fn check_table(
    name: &'static str,
    table: &TensorBinding,
    vocab_size: usize,
    d_model: usize,
) -> Result<(), KernelError> {
    let rows = table.shape.first().map_or(0, |&rows| rows.max(vocab_size));
    check_shape(name, table, &[rows, d_model])
}

/// # Safety
/// The handle holds `len` values.
unsafe fn vector(handle: Handle, len: usize) -> TensorBinding {
    // SAFETY: as the caller says.
    unsafe { TensorBinding::from_raw_parts(handle, [1].into_iter().collect(), Shape::from([len])) }
}
