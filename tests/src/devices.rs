//! The device under test.

use std::sync::{Mutex, PoisonError};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};

/// The device named by `MAMBA_TEST_DEVICE`, by default the CPU backend `flex`.
///
/// # Panics
///
/// If the name is unknown to this build or the device does not start.
pub fn device() -> Device {
    let name = std::env::var("MAMBA_TEST_DEVICE").unwrap_or_else(|_| "flex".into());
    mamba_core::device::device(&name).unwrap_or_else(|error| panic!("MAMBA_TEST_DEVICE: {error}"))
}

/// Both ways to record a tape: keeping results, and recomputing the cheap ones.
pub fn autodiff_devices() -> [Device; 2] {
    [
        device().autodiff(),
        device().autodiff().gradient_checkpointing(),
    ]
}

/// Backends draw from one generator for all threads, and tests run on several.
static DRAWS: Mutex<()> = Mutex::new(());

/// Runs what draws random numbers while nothing else does that comes through here. In a test binary with a [`seeded`]
/// module everything must: a draw in between changes what is drawn behind it.
pub fn drawing<T>(draw: impl FnOnce() -> T) -> T {
    // A test that failed in here left no harm behind.
    let _turn = DRAWS.lock().unwrap_or_else(PoisonError::into_inner);
    draw()
}

/// The module that `init` makes on the device behind that seed: the same on every call.
pub fn seeded<M: Module>(seed: u64, device: &Device, init: impl FnOnce(&Device) -> M) -> M {
    drawing(|| {
        device.seed(seed);
        let module = init(device);
        // Parameters are drawn when they are first used.
        module.visit(&mut Draw);
        module
    })
}

struct Draw;

impl ModuleVisitor for Draw {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        parameter.val();
    }
}

#[cfg(test)]
mod tests {
    use mamba_core::LanguageModelConfig;

    use super::*;
    use crate::tensors::values;

    #[test]
    fn a_seed_gives_the_same_weights_while_others_draw() {
        let device = device();
        let config = LanguageModelConfig::new()
            .with_vocab_size(8)
            .with_d_model(8)
            .with_tie_embeddings(false);
        let weights = |seed: u64| {
            let model = seeded(seed, &device, |device| config.init(device));
            // Drawn last, were it not for `seeded`.
            (
                values(model.head.unwrap().val()),
                values(model.embedding.val()),
            )
        };
        let want = [weights(1), weights(2)];
        assert_ne!(want[0], want[1]);
        std::thread::scope(|scope| {
            for seed in [1, 2] {
                let (weights, want) = (&weights, &want);
                scope.spawn(move || {
                    for _ in 0..50 {
                        assert!(weights(seed) == want[seed as usize - 1], "seed {seed}");
                    }
                });
            }
        });
    }
}
