//! Telling models apart.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};

use crate::language_model::LanguageModel;

/// Values of each parameter that are looked at: a step of training changes all of them.
const SAMPLE: usize = 64;

/// FNV-1a (Fowler, Noll and Vo): it tells accidents and other models, and is no defence against forgery.
pub(super) struct Hash(u64);

impl Hash {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub fn finish(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Of a model's shapes and of a sample of each of its parameters, the same on every device.
pub(super) fn fingerprint(model: &LanguageModel) -> String {
    let mut visitor = Visitor(Hash::new());
    visitor.0.update(&(model.vocab_size() as u64).to_le_bytes());
    model.visit(&mut visitor);
    visitor.0.finish()
}

struct Visitor(Hash);

impl ModuleVisitor for Visitor {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        for size in tensor.dims() {
            self.0.update(&(size as u64).to_le_bytes());
        }
        // The first row of the last axis lies together whatever the strides are.
        let mut first = tensor;
        for axis in 0..D {
            let keep = if axis + 1 == D { SAMPLE } else { 1 };
            let keep = keep.min(first.dims()[axis]);
            first = first.narrow(axis, 0, keep);
        }
        let data = first.cast(DType::F32).into_data();
        data.iter::<f32>()
            .for_each(|value| self.0.update(&value.to_le_bytes()));
    }
}
