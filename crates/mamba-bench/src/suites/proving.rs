//! What suites prove before they measure, each once in a process.

use anyhow::Result;
use burn::tensor::Device;

use crate::problems::{Model, Op};
use crate::proofs;
use crate::run::Run;

/// An operation.
pub(super) fn op(run: &mut Run, op: &Op, name: &str, device: &Device) -> Result<()> {
    let precision = run.options.precision;
    let what = format!("{} on {name}", op.name());
    run.prove(what, || proofs::op(op, precision, name, device))
}

/// A model as a whole.
pub(super) fn model(run: &mut Run, model: &Model, name: &str, device: &Device) -> Result<()> {
    let precision = run.options.precision;
    let what = format!("{} on {name}", model.family.title());
    run.prove(what, || proofs::model(model, precision, name, device))
}

/// A model's gradients; `device` is without autodiff.
pub(super) fn gradients(run: &mut Run, model: &Model, name: &str, device: &Device) -> Result<()> {
    let precision = run.options.precision;
    let what = format!("gradients of {} on {name}", model.family.title());
    let device = device.clone().autodiff();
    run.prove(what, || proofs::gradients(model, precision, name, &device))
}

/// Each operation that models are made of, and each model as a whole, on the device of the run.
pub(super) fn models(run: &mut Run, models: &[Model]) -> Result<()> {
    let (name, device) = (run.name, run.device);
    for it in Op::of(models) {
        op(run, &it, name, device)?;
    }
    for it in models {
        model(run, it, name, device)?;
    }
    Ok(())
}
