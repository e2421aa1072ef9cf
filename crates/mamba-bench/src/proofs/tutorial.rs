use anyhow::Result;
use burn::tensor::Device;

use super::{Proof, VALUES, relative_error};
use crate::engines::ours::{Forward, Training, tutorial_model, tutorial_weights};
use crate::engines::pytorch::{Peer, PeerModel, Precision};
use crate::problems::Tutorial;

/// Steps that training is compared over.
const STEPS: usize = 4;

/// Our tutorial model against PyTorch's in f64, and PyTorch's transformer against itself with
/// attention written out. Leaves small models in the peer.
///
/// # Errors
///
/// If one does not hold, or the peer or the device fails.
pub fn tutorial(peer: &mut Peer, device: &Device) -> Result<Vec<Proof>> {
    let problem = Tutorial::small();
    let model = tutorial_model(&problem, device);
    peer.load_mamba(&tutorial_weights(&model)?, Precision::Double)?;
    peer.load_transformer(&problem)?;
    peer.set_tokens(&problem)?;

    let hidden = Forward::new(&model, &problem, device).run()?.into_data();
    let hidden: Vec<f64> = hidden.iter().collect();
    let error = relative_error(&hidden, &peer.hidden(PeerModel::Mamba)?)?;
    let forward = Proof::new("our backbone equals PyTorch's in f64", error, VALUES)?;

    let mut training = Training::new(model, &problem, device);
    let mut losses = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        let (next, loss) = training.step()?;
        training = next;
        losses.push(f64::from(loss));
    }
    let error = relative_error(&losses, &peer.train(PeerModel::Mamba, STEPS)?.losses)?;
    let training = Proof::new(
        "our losses over four steps equal PyTorch's in f64",
        error,
        VALUES,
    )?;

    let error = peer.attention_error()?;
    let attention = Proof::new(
        "the SDPA transformer equals its plain attention",
        error,
        VALUES,
    )?;
    Ok(vec![forward, training, attention])
}
