//! What Mamba-1 and Mamba-2 have in common, so that one proof serves both.

use crate::devices::seeded;
use burn::tensor::{Device, Gradients, Int, Tensor};
use mamba_core::{Mamba1, Mamba1Config, Mamba1State, Mamba2, Mamba2Config, Mamba2State};

/// Width of the small mixers under test.
pub const D_MODEL: usize = 12;

/// A mixer that remembers a sequence in a state of constant size.
pub trait Recurrent {
    /// What it remembers.
    type State: Clone;

    /// For messages.
    const NAME: &'static str;

    /// A small mixer of width [`D_MODEL`], the same on every call.
    fn small(device: &Device) -> Self;

    /// Mixes a sequence.
    fn forward(&self, x: Tensor<3>, state: Option<Self::State>) -> (Tensor<3>, Self::State);

    /// Mixes packed sequences.
    fn forward_packed(&self, x: Tensor<3>, seq_idx: Tensor<2, Int>) -> (Tensor<3>, Self::State);

    /// Mixes one token.
    fn step(&self, x: Tensor<2>, state: Self::State) -> (Tensor<2>, Self::State);

    /// The state before any token.
    fn initial_state(&self, batch: usize, device: &Device) -> Self::State;

    /// The convolution's window and the recurrence's state, flat.
    fn memory(state: &Self::State) -> [Tensor<1>; 2];

    /// Gradients of the decay, the convolution and the input projection, flat.
    fn gradients(&self, gradients: &Gradients) -> [Tensor<1>; 3];
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    tensor.flatten(0, D - 1)
}

fn gradient<const D: usize>(parameter: &Tensor<D>, gradients: &Gradients) -> Tensor<1> {
    flat(parameter.grad(gradients).expect("a gradient"))
}

macro_rules! recurrent {
    ($mixer:ty, $state:ty, $name:literal, $config:expr) => {
        impl Recurrent for $mixer {
            type State = $state;

            const NAME: &'static str = $name;

            fn small(device: &Device) -> Self {
                seeded(7, device, |device| $config.init(device))
            }

            fn forward(&self, x: Tensor<3>, state: Option<$state>) -> (Tensor<3>, $state) {
                <$mixer>::forward(self, x, state)
            }

            fn forward_packed(&self, x: Tensor<3>, seq_idx: Tensor<2, Int>) -> (Tensor<3>, $state) {
                <$mixer>::forward_packed(self, x, seq_idx, None)
            }

            fn step(&self, x: Tensor<2>, state: $state) -> (Tensor<2>, $state) {
                <$mixer>::step(self, x, state)
            }

            fn initial_state(&self, batch: usize, device: &Device) -> $state {
                <$mixer>::initial_state(self, batch, device)
            }

            fn memory(state: &$state) -> [Tensor<1>; 2] {
                [flat(state.conv.clone()), flat(state.ssm.clone())]
            }

            fn gradients(&self, gradients: &Gradients) -> [Tensor<1>; 3] {
                [
                    gradient(&self.a_log.val(), gradients),
                    gradient(&self.conv_weight.val(), gradients),
                    gradient(&self.in_proj.weight.val(), gradients),
                ]
            }
        }
    };
}

recurrent!(
    Mamba1,
    Mamba1State,
    "Mamba-1",
    Mamba1Config::new(D_MODEL).with_d_state(5)
);
recurrent!(
    Mamba2,
    Mamba2State,
    "Mamba-2",
    Mamba2Config::new(D_MODEL)
        .with_d_state(5)
        .with_headdim(6)
        .with_ngroups(2)
        .with_chunk_size(16)
);
