use anyhow::{Result, ensure};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, s};
use mamba_core::Precision;

use super::{Proof, relative_error, tolerance};
use crate::engines::model::Subject;
use crate::problems::Model;

/// Length of a proof's sequences: past a block of queries and within a chunk of the scans.
const LENGTH: usize = 70;

/// A model of the same kind, small: the hidden states of whole sequences against those of a pass token by token through
/// the state or the key-value cache. Their operations are proved by themselves, with [`op`](super::op()).
///
/// # Errors
///
/// If it does not hold, or the device fails.
pub fn model(model: &Model, precision: Precision, name: &str, device: &Device) -> Result<Proof> {
    let subject = Subject::new(&model.tiny(), precision, device);
    let tokens = subject.tokens(2, LENGTH);
    let whole = host(subject.forward(&tokens)?);
    let mut state = subject.model.initial_state(2, device);
    let mut steps = Vec::with_capacity(LENGTH);
    for t in 0..LENGTH {
        let (hidden, next) = subject
            .model
            .forward(tokens.clone().slice(s![.., t..t + 1]), state);
        steps.push(hidden);
        state = next;
    }
    let error = relative_error(&whole, &host(Tensor::cat(steps, 1)))?;
    let claim = format!(
        "{} on {name}: whole sequences equal a pass token by token",
        model.family.title()
    );
    Proof::new(claim, error, tolerance(name, precision))
}

/// How far the slope of the loss may be off: the difference quotient's own error in f32, and bf16's.
fn slope_tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 2e-2,
        Precision::Bf16 => 1e-1,
    }
}

/// A model of the same kind, small: the slope of its loss along the gradient, by differences, against the gradient's
/// length. `device` has autodiff.
///
/// # Errors
///
/// If it does not hold, or the device fails.
pub fn gradients(
    model: &Model,
    precision: Precision,
    name: &str,
    device: &Device,
) -> Result<Proof> {
    let tiny = model.tiny();
    let subject = Subject::new(&tiny, precision, device);
    let tokens = subject.tokens(2, LENGTH + 1);
    let inputs = tokens.clone().slice(s![.., ..LENGTH]);
    let targets = tokens.slice(s![.., 1..]);
    let gradients = subject
        .model
        .loss(inputs.clone(), targets.clone())
        .backward();
    let gradients = GradientsParams::from_grads(gradients, &subject.model);
    let mut squares = Squares {
        gradients: &gradients,
        sum: 0.0,
    };
    subject.model.visit(&mut squares);
    let length = squares.sum.sqrt();
    ensure!(
        length.is_finite() && length > 0.0,
        "{}: the gradient's length is {length}",
        model.name
    );

    // A step that changes the loss by a hundredth either way: far above rounding, near enough for a straight line.
    let step = 1e-2 / length;
    let plain = subject.model.clone().valid();
    let at = |distance: f64| {
        let moved = plain.clone().map(&mut Walk {
            gradients: &gradients,
            factor: distance / length,
        });
        f64::from(
            moved
                .loss(inputs.clone().inner(), targets.clone().inner())
                .into_scalar::<f32>(),
        )
    };
    let slope = (at(step) - at(-step)) / (2.0 * step);
    let claim = format!(
        "{} on {name}: the loss grows along its gradient by the gradient's length",
        model.family.title()
    );
    Proof::new(
        claim,
        (slope / length - 1.0).abs(),
        slope_tolerance(precision),
    )
}

/// Logits of `peer`, which has our weights, `theirs`, behind `batch` sequences of `length`, against ours.
///
/// # Errors
///
/// If they are not ours, or the device fails.
pub fn peer(
    subject: &Subject,
    theirs: &[f64],
    [batch, length]: [usize; 2],
    peer: &str,
    precision: Precision,
    name: &str,
) -> Result<Proof> {
    let state = subject.model.initial_state(batch, subject.device());
    let (logits, _) = subject.model.prefill(subject.tokens(batch, length), state);
    let ours: Vec<f64> = logits.cast(DType::F32).into_data().iter().collect();
    let error = relative_error(&ours, theirs)?;
    let claim = format!(
        "logits of {} on {name} equal those of {peer}",
        subject.problem.name
    );
    // Both sum thousands of products in f32, in an order of their own, through all layers.
    Proof::new(claim, error, 10.0 * tolerance(name, precision))
}

/// Adds up the squares of all gradients.
struct Squares<'a> {
    gradients: &'a GradientsParams,
    sum: f64,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let squares = gradient.cast(DType::F32).square().sum();
            self.sum += f64::from(squares.into_scalar::<f32>());
        }
    }
}

/// Moves all parameters along their gradients.
struct Walk<'a> {
    gradients: &'a GradientsParams,
    factor: f64,
}

impl ModuleMapper for Walk<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.gradients.get::<D>(param.id) {
            Some(gradient) => param.map(|value| value + gradient.mul_scalar(self.factor)),
            None => param,
        }
    }
}

fn host(tensor: Tensor<3>) -> Vec<f64> {
    tensor.cast(DType::F32).into_data().iter().collect()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::problems::Size;

    #[test]
    fn every_kind_of_model_passes() {
        for problem in Model::all(Size::Small, 96) {
            model(&problem, Precision::F32, "flex", &Device::flex()).unwrap();
            gradients(&problem, Precision::F32, "flex", &Device::flex().autodiff()).unwrap();
        }
    }
}
