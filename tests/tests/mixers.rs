//! Mixers of constant memory against themselves: a sequence in one go, in parts, token by token, packed.
#![recursion_limit = "256"]

use burn::tensor::{Int, Tensor, s};
use mamba_core::{Mamba1, Mamba2};
use mamba_tests::devices::device;
use mamba_tests::mixers::{D_MODEL, Recurrent};
use mamba_tests::tensors::{assert_same, numbers};
use mamba_tests::tolerances::{MIXER_F32, MIXER_F32_GRADIENT};

/// Asserts that two states are close.
#[track_caller]
fn assert_memory<M: Recurrent>(name: &str, got: &M::State, want: &M::State) {
    for (got, want) in M::memory(got).into_iter().zip(M::memory(want)) {
        assert_same(name, got.inner(), want.inner(), MIXER_F32);
    }
}

fn step_by_step_equals_forward<M: Recurrent>() {
    let device = device();
    let module = M::small(&device);
    let x = numbers(1, [2, 9, D_MODEL], &device);
    let (whole, last) = module.forward(x.clone(), None);
    let mut state = module.initial_state(2, &device);
    for t in 0..9 {
        let token = x.clone().slice(s![.., t..t + 1]).squeeze_dim::<2>(1);
        let (y, next) = module.step(token, state);
        state = next;
        let want = whole.clone().slice(s![.., t..t + 1]).squeeze_dim::<2>(1);
        assert_same(&format!("{}, position {t}", M::NAME), y, want, MIXER_F32);
    }
    for (got, want) in M::memory(&state).into_iter().zip(M::memory(&last)) {
        assert_same(M::NAME, got, want, MIXER_F32);
    }
}

/// Lengths on both sides of a saved state, and cuts shorter than the window.
const LENGTHS: [(usize, usize); 4] = [(2, 1), (17, 2), (40, 33), (70, 31)];

fn final_state_continues_a_sequence<M: Recurrent>() {
    let device = device().autodiff();
    let module = M::small(&device);
    let used = |state: &M::State| M::memory(state)[1].clone().sum();
    for (seq_len, cut) in LENGTHS {
        let shape = [2, seq_len, D_MODEL];
        let x = numbers(2, shape, &device).require_grad();
        let weights = numbers(3, shape, &device);
        let (whole, last) = module.forward(x.clone(), None);
        let wanted = ((whole.clone() * weights.clone()).sum() + used(&last)).backward();

        let parts = numbers(2, shape, &device).require_grad();
        let (head, state) = module.forward(parts.clone().slice(s![.., ..cut]), None);
        let (tail, state) = module.forward(parts.clone().slice(s![.., cut..]), Some(state));
        let joined = Tensor::cat(vec![head, tail], 1);
        let got = ((joined.clone() * weights).sum() + used(&state)).backward();

        let name = format!("{}, {seq_len} cut at {cut}", M::NAME);
        assert_same(&name, joined.inner(), whole.inner(), MIXER_F32);
        assert_memory::<M>(&name, &state, &last);
        let (got_x, want_x) = (parts.grad(&got).unwrap(), x.grad(&wanted).unwrap());
        assert_same(&name, got_x, want_x, MIXER_F32_GRADIENT);
        let (got, wanted) = (module.gradients(&got), module.gradients(&wanted));
        for (got, wanted) in got.into_iter().zip(wanted) {
            assert_same(&name, got, wanted, MIXER_F32_GRADIENT);
        }
    }
}

fn packed_sequences_equal_separate_ones<M: Recurrent>() {
    let device = device().autodiff();
    let module = M::small(&device);
    let used = |state: &M::State| M::memory(state)[1].clone().sum();
    let lengths = [1, 2, 35, 5];
    let total = lengths.iter().sum();
    let shape = [1, total, D_MODEL];
    let packed = numbers(4, shape, &device).require_grad();
    let separate = numbers(4, shape, &device).require_grad();
    // A number may come back: only its change ends a run.
    let ids: Vec<i32> = [3, 0, 1, 0]
        .into_iter()
        .zip(lengths)
        .flat_map(|(id, length)| std::iter::repeat_n(id, length))
        .collect();
    let ids = Tensor::<1, Int>::from_data(ids.as_slice(), &device).unsqueeze::<2>();
    let weights = numbers(5, shape, &device);

    let (y, last) = module.forward_packed(packed.clone(), ids);
    let got = ((y.clone() * weights.clone()).sum() + used(&last)).backward();

    let mut outputs = Vec::new();
    let mut start = 0;
    let mut states = Vec::new();
    for length in lengths {
        let run = separate.clone().slice(s![.., start..start + length]);
        let (y, state) = module.forward(run, None);
        outputs.push(y);
        states.push(state);
        start += length;
    }
    let joined = Tensor::cat(outputs, 1);
    let state = states.pop().unwrap();
    let wanted = ((joined.clone() * weights).sum() + used(&state)).backward();

    assert_same(M::NAME, y.inner(), joined.inner(), MIXER_F32);
    assert_memory::<M>(M::NAME, &last, &state);
    let (got_x, want_x) = (packed.grad(&got).unwrap(), separate.grad(&wanted).unwrap());
    assert_same(M::NAME, got_x, want_x, MIXER_F32_GRADIENT);
    let (got, wanted) = (module.gradients(&got), module.gradients(&wanted));
    for (got, wanted) in got.into_iter().zip(wanted) {
        assert_same(M::NAME, got, wanted, MIXER_F32_GRADIENT);
    }
}

fn gradients_are_bit_identical_from_run_to_run<M: Recurrent>() {
    let device = device().autodiff();
    let module = M::small(&device);
    let run = || {
        let x = numbers(6, [2, 70, D_MODEL], &device).require_grad();
        let (y, _) = module.forward(x.clone(), None);
        let gradients = y.square().sum().backward();
        let of_x = x.grad(&gradients).unwrap().into_data();
        (of_x, module.gradients(&gradients).map(|it| it.into_data()))
    };
    let first = run();
    for _ in 0..3 {
        assert_eq!(run(), first, "{}", M::NAME);
    }
}

macro_rules! proofs {
    ($($proof:ident),*) => {
        mod mamba1 {
            $(#[test]
            fn $proof() {
                super::$proof::<super::Mamba1>();
            })*
        }

        mod mamba2 {
            $(#[test]
            fn $proof() {
                super::$proof::<super::Mamba2>();
            })*
        }
    };
}

proofs!(
    step_by_step_equals_forward,
    final_state_continues_a_sequence,
    packed_sequences_equal_separate_ones,
    gradients_are_bit_identical_from_run_to_run
);
